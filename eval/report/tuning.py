"""What ``sampling.tune`` does: draw by each setting, score against validation images, keep one."""

import argparse
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from eval.measures.generation import compute
from eval.measures.metrics import score_name
from eval.measures.near_copies import find_neighbours, pixel_points
from eval.measures.statistics import Reference
from eval.networks.extractor import FeatureExtractor, open_extractor
from eval.subjects.selection import Selection, subset
from eval.subjects.tokenized import Reconstructions, asked_prefixes, encode
from pqvae.cli import next_command
from pqvae.console import format_seconds, say
from pqvae.data.dataset import open_dataset
from pqvae.errors import UserError
from pqvae.pretrained import recorded_data
from pqvae.runtime import select_device
from sampling.found import write_found
from sampling.sampler import sample_codes
from sampling.settings import SETTINGS
from stage1_tokenizer import Tokenizer
from stage1_tokenizer.prefixes import prefix_grid
from stage2_prior import Prior
from stage2_prior.drawing import class_labels
from stage2_prior.provenance import check_known, labels_to_decode, open_pair

SEED = 1  # not the one of the pictures that are reported later
SHORTEST = 2  # codes, of the prefixes that are tried by default
MOST = 8  # but for all of them
MOST_TRAINING = 10_000  # images that samples may be copies of; the more, the longer
TOLERANCE = 0.2  # of the KID, within which recall decides: of 200 images it is no surer


def tune(args: argparse.Namespace) -> None:
    """Try the settings, print a table, write the best.

    Args:
        args: Parsed, as ``sampling.tune`` documents them.

    Raises:
        UserError: There are no models or images, or the network is the one trained with.
    """
    started = time.monotonic()
    device = select_device(args.device)
    prior, tokenizer, _ = open_pair(args.prior, args.tokenizer, device)
    prefixes = _prefixes(args.prefixes, tokenizer, prior)
    if any(settings.guidance != 1 for settings in args.settings) and not prior.class_names:
        raise UserError("--guidances: this prior has no classes to be guided to")
    data = recorded_data(prior.provenance, str(args.prior), args.data, "--data")
    images = subset(open_dataset(data, "val"))
    training = subset(open_dataset(data, "train"), MOST_TRAINING)
    judge = _open_judge(args, tokenizer, images, training)
    rows = _try_all(args, prior, tokenizer, prefixes, judge, images)
    best = choose(rows)
    path = write_found(
        args.prior,
        {
            **{name: best[name] for name in SETTINGS},
            "prior_hash": prior.content_hash,
            "decoder": tokenizer.decoder_to_see,
            "judged_by": judge.extractor.network.name,
            "against": images.facts(),
            "copies_of": training.facts(),
            "images_each": args.n,
            "seed": SEED,
            "tried": rows,
        },
    )
    print("codes  temperature  guidance      KID  precision  recall    near-copies    of held-out")
    for row in rows:
        print(_line(row) + ("  <- kept" if row is best else ""))
    again = [] if args.prior == Path("runs/prior") else ["--prior", args.prior]
    print(
        f"wrote {path} in {format_seconds(time.monotonic() - started)}; by KID against "
        f"{len(images)} validation images, by recall where KID is within a fifth, without settings "
        "that repeat training images; then: "
        f"{next_command('sampling.generate', '--n', '10000', *again)}"
    )


def choose(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The row of most recall among those whose KID is at most a fifth above the lowest.

    KID alone would be content with few pictures, often repeated. Rows that repeat training images
    do not count, unless all do.
    """
    own = [row for row in rows if not repeats(row)] or rows
    lowest = min(row["kid"] for row in own)
    equal = [row for row in own if row["kid"] <= lowest + abs(lowest) * TOLERANCE]
    return max(equal, key=lambda row: row["recall"])


def repeats(row: Mapping[str, Any]) -> bool:
    """Whether near-copies exceed those of held-out pictures by over a standard error."""
    noise = math.hypot(row["near_copies_error"], row["held_out_near_copies_error"])
    return row["near_copies"] - row["held_out_near_copies"] > noise


def _open_judge(
    args: argparse.Namespace, tokenizer: Tokenizer, images: Selection, training: Selection
) -> "_Judge":
    extractor = open_extractor(args.extractor, args.weights, tokenizer.device)
    decoder = tokenizer.decoder_to_see
    trained_with = tokenizer.trained_with(decoder)
    if extractor.network.has_trained(trained_with):
        raise UserError(
            f"--extractor {args.extractor}: the {decoder} decoder was trained with {trained_with}; "
            "take another network"
        )
    features = extractor(images, label="validation images")
    return _Judge(extractor, Reference(features), pixel_points(training)[0])


def _prefixes(asked: Sequence[int] | None, tokenizer: Tokenizer, prior: Prior) -> list[int]:
    if asked is None:
        cuts = [k for k in tokenizer.quantizer.cuts if k <= prior.known_codes]
        return [k for k in prefix_grid(cuts) if SHORTEST <= k <= MOST or k == cuts[-1]]
    prefixes = asked_prefixes(asked, tokenizer)
    check_known(prior, "--prefixes", prefixes[-1])
    return prefixes


def _try_all(
    args: argparse.Namespace,
    prior: Prior,
    tokenizer: Tokenizer,
    prefixes: Sequence[int],
    judge: "_Judge",
    images: Selection,
) -> list[dict[str, Any]]:
    """A row for each setting and prefix length; ``images`` are held-out ones."""
    decoder = tokenizer.decoder_to_see

    def pictures(codes: Tensor, k: int, labels: Tensor | None) -> Reconstructions:
        told = labels_to_decode(prior, tokenizer, decoder, labels)
        return Reconstructions(tokenizer, codes[:, :k], decoder, told)

    held = encode(tokenizer, images)
    beside = {k: judge.near_copies(pictures(held, k, images.labels), "held_out_") for k in prefixes}
    rows: list[dict[str, Any]] = []
    labels = None
    if prior.class_names:
        labels = class_labels(SEED, torch.arange(args.n), prior.class_counts)
    for settings in args.settings:
        codes = sample_codes(prior, labels, torch.arange(args.n), SEED, max(prefixes), settings)
        for k in prefixes:  # a shorter sequence of codes begins the longer one
            scores = judge.score(pictures(codes, k, labels))
            rows.append({"prefix": k, **asdict(settings), **scores, **beside[k]})
            say(_line(rows[-1]))
    return rows


@dataclass(frozen=True)
class _Judge:
    """What pictures are scored by."""

    extractor: FeatureExtractor
    reference: Reference
    training: Tensor  # uint8 (m, D), the training images as points of pixels

    def score(self, pictures: Reconstructions) -> dict[str, float]:
        features = self.extractor(pictures, label="samples")
        suffix = self.extractor.network.suffix
        scores = compute(("kid", "prc"), features, self.reference, suffix)
        keys = ("kid", "precision", "recall")
        return {key: scores[score_name(key, suffix)] for key in keys} | self.near_copies(pictures)

    def near_copies(self, pictures: Reconstructions, prefix: str = "") -> dict[str, float]:
        """By pixels: no network that a decoder was trained with has a say in it."""
        pixels, _ = pixel_points(pictures)
        share, error = find_neighbours(pixels, self.training, self.extractor.device).share
        return {f"{prefix}near_copies": share, f"{prefix}near_copies_error": error}


def _line(row: dict[str, Any]) -> str:
    copies = f"{row['near_copies']:.3f} ± {row['near_copies_error']:.3f}"
    return (
        f"{row['prefix']:>5}  {row['temperature']:>11g}  {row['guidance']:>8g}  {row['kid']:7.4f}"
        f"  {row['precision']:>9.2f}  {row['recall']:>6.2f}  {copies:>13}"
        f"  {row['held_out_near_copies']:.3f} ± {row['held_out_near_copies_error']:.3f}"
        + ("  repeats" if repeats(row) else "")
    )
