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
from collections.abc import Sequence

from eval.report.options import (
    add_extractor,
    add_report,
    add_samples,
    report_of_samples,
    request,
)
from pqvae.cli import Parser, command, positive_int

EXAMPLES = """\
  python -m eval.memorization
  python -m eval.memorization --samples runs/photos-samples --n 2000
  python -m eval.memorization --samples my/pictures --reference emoji --json copies.json"""


@command
def main(argv: Sequence[str] | None = None) -> None:
    arguments = list(sys.argv[1:] if argv is None else argv)
    args = _parser().parse_args(arguments)
    default = report_of_samples(args.samples, "memorization")
    asked = request("eval.memorization", arguments, args.json, default)

    from eval.report.memorization import report_memorization

    report_memorization(args, asked)


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
    about = "network of the features (default: %(default)s, a tenth of the other's work)"
    add_extractor(parser, "lite0", about)
    add_report(parser, "DIR/memorization.json")
    return parser


if __name__ == "__main__":
    sys.exit(main())
