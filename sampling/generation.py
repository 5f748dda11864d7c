"""What ``sampling.generate`` does: open the models, fill the folder block by block, record it."""

import argparse
import dataclasses
import shlex
import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch

from pqvae import distributed
from pqvae.cli import next_command
from pqvae.config import config_to_dict
from pqvae.console import Progress
from pqvae.data.labels import class_name
from pqvae.data.passed_over import shorten
from pqvae.errors import UserError
from pqvae.images import to_uint8
from pqvae.pretrained import recorded_data
from pqvae.runtime import Runtime, select_runtime, versions
from sampling.control import Control, open_control
from sampling.folder import close_folder, open_folder, write_image, write_npz
from sampling.found import settle
from sampling.sampler import BLOCK_IMAGES, sample_codes
from sampling.settings import BUILT_IN
from stage1_tokenizer import Tokenizer
from stage2_prior import Prior
from stage2_prior.drawing import class_labels
from stage2_prior.provenance import check_known, labels_to_decode, open_pair


def run(args: argparse.Namespace, arguments: Sequence[str]) -> None:
    """Generate as the arguments say, or fill up what an earlier call left.

    Args:
        args: Parsed, as ``sampling.generate`` documents them.
        arguments: As typed, for the record.
    """
    started = time.monotonic()
    runtime = select_runtime(args.device)
    prior, tokenizer, tokenizer_folder = open_pair(args.prior, args.tokenizer, runtime.device)
    _settle(args, prior, tokenizer)
    control = open_control(args, prior, tokenizer)
    record = _record(args, prior, tokenizer, control)
    record |= {
        "tokenizer": str(tokenizer_folder),
        "command": shlex.join(["python", "-m", "sampling.generate", *arguments]),
    }
    with distributed.process_group(runtime.device):
        missing = distributed.on_rank_zero(lambda: open_folder(args.out, record))
        _generate(args, record, missing, tokenizer, prior, control, runtime)
        distributed.barrier()
        distributed.on_rank_zero(lambda: _finish(args, record, tokenizer.config.image_size))
    if distributed.is_rank_zero():
        seconds = time.monotonic() - started
        print(
            f"made {args.n} images in {args.out}/images ({len(missing)} new, {seconds:.0f} s); "
            f"look at {args.out}/grid.png, then: {_next(args, tokenizer_folder)}"
        )


def _next(args: argparse.Namespace, tokenizer_folder: Path) -> str:
    if args.keep is not None:  # to see what more or fewer codes would keep
        pictures = args.mix or [args.picture]
        return next_command(
            "stage1_tokenizer.reconstruct", *pictures, "--tokenizer", tokenizer_folder
        )
    scored = [] if args.out == Path("runs/samples") else ["--samples", args.out]
    return next_command("eval.fid", *scored)


def _settle(args: argparse.Namespace, prior: Prior, tokenizer: Tokenizer) -> None:
    """Put ``settings`` and ``prefix`` into the arguments: as given, as found, or as built in."""
    given = {**BUILT_IN, **args.given} if args.mix else args.given  # of a mix nothing is drawn
    prefix, args.settings = settle(args.prior, prior, given, args.keep or 0)
    args.prefix = prefix
    if prefix is None:
        args.prefix = tokenizer.num_codes if args.mix else prior.known_codes
    draws = tokenizer.decoder(args.decoder or tokenizer.decoder_to_see).noise_size > 0
    if args.prefix or not draws:
        tokenizer.quantizer.check_cut(args.prefix, f"--prefix {args.prefix}")
    if not args.mix:
        check_known(prior, "--prefix", args.prefix)


def _record(
    args: argparse.Namespace, prior: Prior, tokenizer: Tokenizer, control: Control
) -> dict[str, Any]:
    """What ``samples.json`` says, but for where the tokenizer is and what was typed."""
    decoder = args.decoder or tokenizer.decoder_to_see
    label = _label(args.class_name, prior.class_names)
    labels = None
    if label is not None:
        labels = [label] * args.n
    elif control.class_weights:
        labels = class_labels(args.seed, torch.arange(args.n), control.class_weights).tolist()
    provenance = prior.provenance if "data" in prior.provenance else tokenizer.provenance
    data = {}
    if "data" in provenance:
        data = config_to_dict(recorded_data(provenance, str(args.prior), None, None))
    return {
        "n": args.n,
        "seed": args.seed,
        "settings": {
            **dataclasses.asdict(args.settings),
            "class": None if label is None else prior.class_names[label],
            "prefix": args.prefix,
            **control.settings,
        },
        "prior": str(args.prior),
        "prior_hash": prior.content_hash,
        "tokenizer_hash": tokenizer.content_hash,
        "codes_hash": tokenizer.codes_hash,
        "decoder": decoder,
        "decoder_trained_with": tokenizer.trained_with(decoder) or None,
        "decoder_hash": tokenizer.decoder_hash(decoder),
        "class_counts": dict(zip(prior.class_names, prior.class_counts, strict=True)),
        "data": data,
        "data_hash": provenance.get("data_hash"),
        "versions": versions(),
        "labels": labels,
    }


def _label(name: str | None, class_names: tuple[str, ...]) -> int | None:
    if name is None:
        return None
    if not class_names:
        raise UserError(f"--class {name}: this prior was trained without classes")
    known = [class_name(each) for each in class_names]
    if class_name(name) in known:
        return known.index(class_name(name))
    if name.isascii() and name.isdecimal() and len(name) < 10 and int(name) < len(class_names):
        return int(name)
    raise UserError(f"--class {name}: the classes are {shorten(', '.join(known), 150)}")


def _generate(
    args: argparse.Namespace,
    record: dict[str, Any],
    missing: list[int],
    tokenizer: Tokenizer,
    prior: Prior,
    control: Control,
    runtime: Runtime,
) -> None:
    """Make this process's share of the missing images.

    Always whole blocks are sampled, the same ones, whichever of their images are missing: image i
    has its place in block i // size and the same images beside it. So not even rounding can make it
    depend on the other arguments, on what an earlier call left, or on the number of processes; the
    decoder, too, takes blocks of one shape. Codes are drawn in float32, so that they are the same
    where the hardware has no bfloat16; pictures differ by a level or so there.

    Files are written while the next images are made.
    """
    size = BLOCK_IMAGES
    fixed = None if args.class_name is None else record["labels"][0]
    progress = Progress("sampling", args.n)
    progress.skip(args.n - len(missing))
    wanted, world = set(missing), distributed.world_size()
    blocks = torch.tensor(sorted({index // size for index in missing}), dtype=torch.int64)
    rounds = blocks[distributed.rank() :: world].split(max(1, round(args.batch_size / size)))
    before: list[Future[None]] = []  # the files of the round before
    with ThreadPoolExecutor(2) as writers:
        for numbers in rounds if len(blocks) > distributed.rank() else ():
            indices = (numbers.unsqueeze(1) * size + torch.arange(size)).flatten()
            labels = None
            if fixed is not None:
                labels = torch.full_like(indices, fixed)
            elif control.class_weights:
                labels = class_labels(args.seed, indices, control.class_weights)
            kept = control.kept.expand(len(indices), -1)
            codes = sample_codes(
                prior, labels, indices, args.seed, args.prefix, args.settings, kept
            )
            told = labels_to_decode(prior, tokenizer, record["decoder"], labels)
            with runtime.autocast():
                decoded = tokenizer.decode(
                    codes, record["decoder"], seed=args.seed, indices=indices, labels=told
                )
            images = to_uint8(decoded).cpu()
            _await(before)
            before = [
                writers.submit(write_image, args.out, index, image)
                for index, image in zip(indices.tolist(), images, strict=True)
                if index in wanted
            ]
            progress.advance(min(world * len(before), len(missing)))
        _await(before)
    progress.close()


def _await(files: Sequence[Future[None]]) -> None:
    for file in files:
        file.result()  # a full disk is raised here


def _finish(args: argparse.Namespace, record: dict[str, Any], image_size: int) -> None:
    if args.npz:
        write_npz(args.npz, args.out, args.n, image_size)
    close_folder(args.out, record, image_size)
