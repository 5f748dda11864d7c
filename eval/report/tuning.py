"""What ``sampling.tune`` does: draw by each setting, score against validation images, keep one."""

import argparse
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from eval.measures.generation import compute
from eval.measures.metrics import score_name
from eval.measures.statistics import Reference
from eval.networks.extractor import FeatureExtractor, open_extractor
from eval.subjects.selection import subset
from eval.subjects.tokenized import Reconstructions
from pqvae.cli import next_command
from pqvae.console import format_seconds, say
from pqvae.data.dataset import open_dataset
from pqvae.errors import UserError
from pqvae.pretrained import recorded_data
from pqvae.runtime import select_device
from sampling.found import write_found
from sampling.sampler import sample_codes
from sampling.settings import SETTINGS, SamplingSettings
from stage1_tokenizer import Tokenizer
from stage1_tokenizer.prefixes import prefix_grid
from stage2_prior import Prior
from stage2_prior.drawing import class_labels
from stage2_prior.provenance import open_pair

SEED = 1  # not the one of the pictures that are reported later
SHORTEST = 2  # codes, of the prefixes that are tried by default
MOST = 8  # but for all of them
TOLERANCE = 0.1  # of the KID, within which recall decides


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
    prefixes = _prefixes(args.prefixes, tokenizer)
    if any(settings.guidance != 1 for settings in args.settings) and not prior.class_names:
        raise UserError("--guidances: this prior has no classes to be guided to")
    data = recorded_data(prior.provenance, str(args.prior), args.data, "--data")
    images = subset(open_dataset(data, "val"))
    extractor = open_extractor(args.extractor, args.weights, device)
    decoder = tokenizer.decoder_to_see
    trained_with = tokenizer.trained_with(decoder)
    if extractor.network.has_trained(trained_with):
        raise UserError(
            f"--extractor {args.extractor}: the {decoder} decoder was trained with {trained_with}; "
            "take another network"
        )
    reference = Reference(extractor(images, label="validation images"))
    rows: list[dict[str, Any]] = []
    for settings in args.settings:
        codes = _draw(prior, args.n, max(prefixes), settings)
        for k in prefixes:  # a shorter sequence of codes begins the longer one
            pictures = Reconstructions(tokenizer, codes[:, :k], decoder)
            scores = _score(extractor, pictures, reference)
            rows.append({"prefix": k, **asdict(settings), **scores})
            say(_line(rows[-1]))
    best = choose(rows)
    path = write_found(
        args.prior,
        {
            **{name: best[name] for name in SETTINGS},
            "prior_hash": prior.content_hash,
            "decoder": decoder,
            "judged_by": extractor.network.name,
            "against": images.facts(),
            "images_each": args.n,
            "seed": SEED,
            "tried": rows,
        },
    )
    print("codes  temperature  guidance      KID  precision  recall")
    for row in rows:
        print(_line(row) + ("  <- kept" if row is best else ""))
    again = [] if args.prior == Path("runs/prior") else ["--prior", args.prior]
    print(
        f"wrote {path} in {format_seconds(time.monotonic() - started)}; by KID against "
        f"{len(images)} validation images, by recall where KID is within a tenth; then: "
        f"{next_command('sampling.generate', '--n', '10000', *again)}"
    )


def choose(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The row of most recall among those whose KID is at most a tenth above the lowest.

    KID alone would be content with few pictures, often repeated.
    """
    lowest = min(row["kid"] for row in rows)
    equal = [row for row in rows if row["kid"] <= lowest + abs(lowest) * TOLERANCE]
    return max(equal, key=lambda row: row["recall"])


def _prefixes(asked: Sequence[int] | None, tokenizer: Tokenizer) -> list[int]:
    cuts = tokenizer.quantizer.cuts
    if asked is None:
        return [k for k in prefix_grid(cuts) if SHORTEST <= k <= MOST or k == cuts[-1]]
    if unknown := [k for k in asked if k not in cuts]:
        words = tokenizer.quantizer.cuts_in_words
        raise UserError(f"--prefixes {unknown[0]}: an image has {words} codes")
    return sorted(set(asked))


def _draw(prior: Prior, n: int, length: int, settings: SamplingSettings) -> Tensor:
    indices = torch.arange(n)
    labels = class_labels(SEED, indices, prior.class_counts) if prior.class_names else None
    return sample_codes(prior, labels, indices, SEED, length, settings)


def _score(
    extractor: FeatureExtractor, pictures: Reconstructions, reference: Reference
) -> dict[str, float]:
    features = extractor(pictures, label="samples")
    suffix = extractor.network.suffix
    scores = compute(("kid", "prc"), features, reference, suffix)
    keys = ("kid", "precision", "recall")
    return {key: scores[score_name(key, suffix)] for key in keys}


def _line(row: dict[str, Any]) -> str:
    return (
        f"{row['prefix']:>5}  {row['temperature']:>11g}  {row['guidance']:>8g}  {row['kid']:7.4f}"
        f"  {row['precision']:>9.2f}  {row['recall']:>6.2f}"
    )
