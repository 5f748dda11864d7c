"""Command: generate N images into a folder; goes on where it was cut, never overwrites silently."""

import argparse
import shlex
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pqvae.cli import Parser, command, positive_int
from pqvae.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

    from stage1_tokenizer import Tokenizer
    from stage2_prior import Prior

EXAMPLES = """\
  python -m sampling.generate --n 10000
  python -m sampling.generate --n 64 --class animals-nature --guidance 2 --out runs/animals
  python -m sampling.generate --n 64 --prefix 4 --out runs/four-codes
  python -m sampling.generate --n 50000 --npz samples.npz"""

GRID_IMAGES = 100
# Kept in samples.json and compared when a folder is filled further.
IDENTITY = ("seed", "settings", "prior_hash", "tokenizer_hash")


@command
def main(argv: Sequence[str] | None = None) -> None:
    """The command line; --help answers before torch is imported."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    args = _parser().parse_args(arguments)
    started = time.monotonic()
    if args.npz and not args.npz.parent.is_dir():
        raise UserError(f"--npz {args.npz}: there is no folder {args.npz.parent}")

    from pqvae import distributed
    from pqvae.config import config_to_dict, load_config
    from pqvae.runtime import select_device, versions
    from sampling.sampler import SamplingSettings
    from stage1_tokenizer import Tokenizer
    from stage1_tokenizer.config import Config as TokenizerRunConfig
    from stage2_prior import Prior
    from stage2_prior.config import Config as PriorRunConfig

    device = select_device(args.device)
    if not (args.prior / "model").is_dir():
        raise UserError(
            f"{args.prior}: no prior here; run python -m stage2_prior.train, or give --prior FOLDER"
        )
    prior = Prior.from_pretrained(args.prior).to(device)
    tokenizer_folder = Path(load_config(PriorRunConfig, args.prior / "config.yaml", []).tokenizer)
    tokenizer = Tokenizer.from_pretrained(tokenizer_folder).to(device)
    if tokenizer.content_hash != prior.tokenizer_hash:
        raise UserError(
            f"{args.prior} was trained on tokenizer {prior.tokenizer_hash[:8]}, but "
            f"{tokenizer_folder} is {tokenizer.content_hash[:8]}; train the prior again"
        )
    data = load_config(TokenizerRunConfig, tokenizer_folder / "config.yaml", []).data
    prefix_length = args.prefix or tokenizer.num_codes
    if prefix_length > tokenizer.num_codes:
        raise UserError(f"--prefix {args.prefix}: an image has 1 to {tokenizer.num_codes} codes")
    label = _label(args.class_name, prior.class_names)
    try:
        settings = SamplingSettings(
            temperature=args.temperature, top_p=args.top_p, guidance=args.guidance
        )
    except ValueError as error:
        raise UserError(f"--{error}") from None
    if settings.guidance != 1 and not prior.class_names:
        raise UserError("--guidance: this prior has no classes to be guided to")

    record: dict[str, Any] = {
        "n": args.n,
        "seed": args.seed,
        "settings": {
            "temperature": args.temperature,
            "top_p": args.top_p,
            "guidance": args.guidance,
            "class": None if label is None else prior.class_names[label],
            "prefix": prefix_length,
        },
        "prior": str(args.prior),
        "prior_hash": prior.content_hash,
        "tokenizer": str(tokenizer_folder),
        "tokenizer_hash": tokenizer.content_hash,
        "class_counts": dict(zip(prior.class_names, prior.class_counts, strict=True)),
        "data": config_to_dict(data),
        "command": shlex.join(["python", "-m", "sampling.generate", *arguments]),
        "versions": versions(),
    }
    with distributed.process_group(device):
        missing = distributed.on_rank_zero(lambda: _open_folder(args.out, record))
        _generate(args, record, missing, tokenizer, prior, label, settings)
        distributed.barrier()
        distributed.on_rank_zero(lambda: _finish(args, record, tokenizer.config.image_size))
    if distributed.is_rank_zero():
        seconds = time.monotonic() - started
        scored = "" if args.out == Path("runs/samples") else f" --samples {args.out}"
        print(
            f"made {args.n} images in {args.out}/images ({len(missing)} new, {seconds:.0f} s); "
            f"look at {args.out}/grid.png, then: python -m eval.fid{scored}"
        )


def _parser() -> argparse.ArgumentParser:
    parser = Parser("sampling.generate", "Generate images from a trained prior.", EXAMPLES)
    add = parser.add_argument
    add("--n", type=positive_int, required=True, metavar="N", help="how many images")
    add(
        "--prior",
        type=Path,
        default=Path("runs/prior"),
        metavar="DIR",
        help="run folder of stage 2; it names its tokenizer (default: %(default)s)",
    )
    add(
        "--out",
        type=Path,
        default=Path("runs/samples"),
        metavar="DIR",
        help="where the images go (default: %(default)s)",
    )
    add("--seed", type=_seed, default=0, help="image i is a function of it (default: 0)")
    add(
        "--class",
        dest="class_name",
        metavar="NAME",
        help="one class, by name or number (default: as frequent as in the training data)",
    )
    add("--prefix", type=positive_int, metavar="K", help="draw the first K codes only")
    add("--temperature", type=float, default=1.0, metavar="T", help="0 is greedy (default: 1)")
    add(
        "--top-p",
        type=float,
        default=0.95,
        metavar="P",
        help="of each code keep the most likely values that reach this (default: %(default)s)",
    )
    add("--guidance", type=float, default=1.0, metavar="S", help="towards the class (default: 1)")
    add(
        "--npz",
        type=Path,
        metavar="FILE",
        help="also write all images to one file, uint8 (N, H, W, 3), as ADM's scorer reads them",
    )
    add("--batch-size", type=positive_int, default=250, metavar="B", help="(default: %(default)s)")
    add("--device", default="auto", help="cpu, cuda, cuda:1, mps or auto (default: auto)")
    return parser


def _seed(text: str) -> int:
    if not text.isascii() or not text.isdecimal() or int(text) >= 2**63:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 0 to 2^63 - 1")
    return int(text)


def _label(name: str | None, class_names: tuple[str, ...]) -> int | None:
    if name is None:
        return None
    if not class_names:
        raise UserError(f"--class {name}: this prior was trained without classes")
    if name in class_names:
        return class_names.index(name)
    if name.isascii() and name.isdecimal() and int(name) < len(class_names):
        return int(name)
    raise UserError(f"--class {name}: the classes are {', '.join(class_names)}")


def _open_folder(folder: Path, record: dict[str, Any]) -> list[int]:
    """Make the folder, or check that it belongs to the same samples; the indices to be made."""
    from pqvae.files import read_json, write_json

    path = folder / "samples.json"
    if path.exists():
        before = read_json(path)
        if not isinstance(before, dict):
            raise UserError(f"{path}: not the record of samples; choose another folder (--out)")
        changed = [key for key in IDENTITY if before.get(key) != record[key]]
        if changed:
            raise UserError(
                f"{folder} holds samples of another {', '.join(changed)}; "
                f"choose another folder (--out) or remove it"
            )
        if before.get("n", 0) > record["n"]:
            raise UserError(
                f"{folder} holds {before['n']} samples already; python -m eval.fid --n "
                f"{record['n']} scores the first {record['n']} of them"
            )
    elif folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder} is not a folder of samples; choose another one (--out)")
    folder.mkdir(parents=True, exist_ok=True)
    existing = {file.name for file in (folder / "images").glob("*.png")}
    missing = [index for index in range(record["n"]) if _file_name(index) not in existing]
    if missing:  # the record first: without it the next call would take the folder for another's
        write_json(path, {**record, "complete": False})
    (folder / "images").mkdir(exist_ok=True)
    return missing


def _file_name(index: int) -> str:
    return f"{index:06d}.png"


def _generate(
    args: argparse.Namespace,
    record: dict[str, Any],
    missing: list[int],
    tokenizer: "Tokenizer",
    prior: "Prior",
    label: int | None,
    settings: Any,
) -> None:
    """Make this process's share of the missing images."""
    from concurrent.futures import ThreadPoolExecutor

    import torch

    from pqvae import distributed
    from pqvae.console import Progress
    from pqvae.images import to_uint8
    from sampling.sampler import class_labels, sample_codes

    folder = args.out / "images"
    progress = Progress("sampling", args.n)
    progress.skip(args.n - len(missing))
    share = torch.tensor(missing[distributed.rank() :: distributed.world_size()], dtype=torch.int64)
    with ThreadPoolExecutor(2) as writers:
        for indices in share.split(args.batch_size) if len(share) else ():
            labels = None
            if label is not None:
                labels = torch.full_like(indices, label)
            elif prior.class_names:
                labels = class_labels(args.seed, indices, prior.class_counts)
            prefix = record["settings"]["prefix"]
            codes = sample_codes(prior, labels, indices, args.seed, prefix, settings)
            images = to_uint8(tokenizer.decode(codes)).cpu()
            files = [folder / _file_name(index) for index in indices.tolist()]
            list(writers.map(_write_png, files, images))  # a full disk is raised here
            progress.advance(min(distributed.world_size() * len(indices), len(missing)))
    progress.close()


def _finish(args: argparse.Namespace, record: dict[str, Any], image_size: int) -> None:
    """Draw the grid, and record that all images are there."""
    import torch

    from pqvae.files import write_json
    from pqvae.images import decode_image, save_grid

    first = [args.out / "images" / _file_name(index) for index in range(min(args.n, GRID_IMAGES))]
    shown = torch.stack([decode_image(file.read_bytes(), image_size) for file in first])
    save_grid(args.out / "grid.png", shown, columns=min(10, len(shown)))
    if args.npz:
        _write_npz(args.npz, args.out / "images", args.n, image_size)
    write_json(args.out / "samples.json", {**record, "complete": True})


def _write_npz(path: Path, folder: Path, n: int, size: int) -> None:
    """Write images 0 to n - 1 as array ``arr_0``, image by image: they need not fit into memory."""
    import zipfile

    import numpy as np

    from pqvae.files import atomic_path
    from pqvae.images import decode_image

    header = {"descr": "|u1", "fortran_order": False, "shape": (n, size, size, 3)}
    with (
        atomic_path(path) as temporary,
        zipfile.ZipFile(temporary, "w") as archive,
        # Without the time of writing: equal images make equal files.
        archive.open(zipfile.ZipInfo("arr_0.npy"), "w", force_zip64=True) as file,
    ):
        np.lib.format.write_array_header_1_0(file, header)
        for index in range(n):
            image = decode_image((folder / _file_name(index)).read_bytes(), size)
            file.write(image.permute(1, 2, 0).contiguous().numpy().data)


def _write_png(path: Path, image: "Tensor") -> None:
    from pqvae.images import encode_png

    temporary = path.with_suffix(".tmp")  # a kill must not leave half a picture under its name
    try:
        temporary.write_bytes(encode_png(image))
        temporary.replace(path)
    except OSError as error:
        error.filename = error.filename or str(path)  # a full disk names no file by itself
        temporary.unlink(missing_ok=True)
        raise


if __name__ == "__main__":
    sys.exit(main())
