"""Command: does the generator copy? Samples beside their nearest training images.

A sample is a near-copy if it is as near to its nearest training image as that is to any other
training image (Alaa et al., "How faithful is your synthetic data?", 2022, call it not authentic).
That takes no threshold, but a comparison: of images that were never trained on, as many are
near-copies as two nearest neighbours are each other's, 62% in a plane (Clark and Evans 1955) and
fewer in more dimensions. So the same figures of held-out images stand below those of the samples.

Samples have passed the decoder, which alone takes them away from any training image. So held-out
images come once more as the tokenizer gives them back: by chance, samples are as these. Training
images given back are what a generator that knows them by heart would make.
"""

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from eval.networks.extractors import EXTRACTORS
from eval.report.options import (
    add_report,
    add_samples,
    add_weights,
    report_of_samples,
    report_path,
    typed,
)
from pqvae.cli import Parser, command, positive_int
from pqvae.errors import UserError

if TYPE_CHECKING:
    from eval.measures.copies import Neighbours
    from eval.report.report import Column
    from eval.subjects.samples import Samples
    from pqvae.data.dataset import ImageDataset

EXAMPLES = """\
  python -m eval.memorization
  python -m eval.memorization --samples runs/photos-samples --n 2000
  python -m eval.memorization --samples my/pictures --reference emoji --json copies.json"""


@command
def main(argv: Sequence[str] | None = None) -> None:
    arguments = list(sys.argv[1:] if argv is None else argv)
    args = _parser().parse_args(arguments)
    started = time.monotonic()
    output = report_path(args.json, report_of_samples(args.samples, "memorization"))

    from eval.measures.copies import SPACES, compare, open_generator
    from eval.networks.extractors import load_extractor
    from eval.networks.features import default_cache
    from eval.report.report import format_report, make_report, write_report
    from eval.subjects.samples import open_samples, reference_config
    from pqvae.data.dataset import open_dataset
    from pqvae.runtime import select_device

    device = select_device(args.device)
    samples = open_samples(args.samples, args.n)
    config = reference_config(samples, args.reference)
    train, test = open_dataset(config, "train"), open_dataset(config, "test")
    extractor = load_extractor(args.extractor, args.weights)
    notes = [
        "near-copies: no farther from its nearest training image than that is from any other; what "
        "counts is how many more of them there are among samples than among held-out images",
        "distances: RMS difference from the nearest training image, median; pixels in grey levels",
    ]
    generator = None
    try:
        generator = open_generator(samples, config.path, device)
        notes.append(
            f"decoded: given back from {generator.prefix_length} codes; by chance samples are as "
            "held-out images decoded, known by heart as training images decoded"
        )
    except UserError as error:
        notes.append(f"nothing decoded, and no bits of the prior: {error}")
    found = compare(
        samples,
        train,
        test,
        extractor,
        generator,
        reference_n=args.reference_n,
        device=device,
        cache=default_cache(),
    )
    report = make_report(
        found.rows,
        found.facts,
        notes,
        device=device,
        command=typed("eval.memorization", arguments),
        started=started,
    )
    print(format_report(report, _columns()), flush=True)
    pictures = [output.with_name(f"{output.stem}-{space}.png") for space in SPACES]
    for picture, neighbours in zip(pictures, found.neighbours.values(), strict=True):
        save_pairs(picture, samples, train, neighbours)
    write_report(report, output)
    print(f"\nwrote {output}; look at the closest pairs: {' and '.join(map(str, pictures))}")


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        "eval.memorization",
        "Compare samples with their nearest training images, and held-out images likewise.",
        EXAMPLES,
    )
    add = parser.add_argument
    add_samples(parser)
    add(
        "--reference",
        metavar="DATA",
        help="emoji, cifar10, a folder or a glob of shards (default: the tokenizer's own data)",
    )
    add(
        "--reference-n",
        type=positive_int,
        metavar="N",
        help="a fixed random subset of N training images (default: all, as copies may be of any)",
    )
    add(
        "--extractor",
        choices=EXTRACTORS,
        default="lite0",
        help="network of the features (default: %(default)s, a tenth of the other's work)",
    )
    add_weights(parser)
    add_report(parser, "DIR/memorization.json")
    return parser


def save_pairs(
    path: Path, samples: "Samples", train: "ImageDataset", neighbours: "Neighbours"
) -> None:
    """Draw the closest pairs: samples above, their nearest training images below."""
    import torch

    from eval.measures.copies import closest
    from pqvae.images import save_grid

    first = closest(neighbours)
    pairs = [samples.images(first.tolist()), train.images(neighbours.indices[first])]
    captions = [f"{distance:.3g}" for distance in neighbours.distances[first].tolist()]
    zoom = max(1, 96 // samples.size)
    save_grid(path, torch.cat(pairs), len(first), captions=captions, zoom=zoom)


def _columns() -> "list[Column]":
    from eval.report.report import Column

    return [
        Column("subject", ""),
        Column("images", "images"),
        Column("features_copies", "near-copies", 3, "features_copies_error"),
        Column("features_distance", "distance", 3),
        Column("pixels_copies", "near-copies in pixels", 3, "pixels_copies_error"),
        Column("pixels_distance", "distance", 2),
        Column("equal", "equal", 0),
        Column("prior_bits", "prior's bits", 1),
        Column("class_prior_bits", "given the class", 1),
    ]


if __name__ == "__main__":
    sys.exit(main())
