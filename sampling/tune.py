"""Command: find how many codes to draw, and how cold, for a prior."""

import argparse
import itertools
import sys
from collections.abc import Sequence
from pathlib import Path

from pqvae.cli import Parser, command, positive_int, positive_ints
from sampling.options import add_data, add_device, add_models
from sampling.settings import BUILT_IN, settings_of

SUMMARY = """\
Try settings of sampling.generate by KID against validation images, and keep the best, of which
sampling.generate then makes use: in sampling.json in the prior's model folder."""
EXAMPLES = """\
  python -m sampling.tune
  python -m sampling.tune --prefixes 2,4,8 --temperatures 0.3,0.5,0.7 --n 500
  python -m sampling.tune --prior runs/photos-prior --guidances 1,2"""


@command
def main(argv: Sequence[str] | None = None) -> None:
    """The command line; --help answers before torch is imported."""
    args = _parser().parse_args(argv)
    args.settings = [
        settings_of({"temperature": t, "top_p": BUILT_IN["top_p"], "guidance": g})
        for g, t in itertools.product(args.guidances, args.temperatures)
    ]

    from eval.report.tuning import tune

    tune(args)


def _parser() -> argparse.ArgumentParser:
    parser = Parser("sampling.tune", SUMMARY, EXAMPLES)
    add = parser.add_argument
    add_models(parser)
    add_data(parser)
    add(
        "--prefixes",
        type=positive_ints,
        metavar="LIST",
        help="numbers of codes (default: 2, 4, 8 and all)",
    )
    add("--temperatures", type=_numbers, default=(0.5, 1.0), metavar="LIST")
    add("--guidances", type=_numbers, default=(1.0,), metavar="LIST")
    add(
        "--n",
        type=positive_int,
        default=200,
        metavar="N",
        help="images of each setting (default: %(default)s)",
    )
    add(
        "--extractor",
        choices=("inception", "lite0"),
        default="inception",
        help="a network that the decoder was not trained with (default: %(default)s)",
    )
    add("--weights", type=Path, metavar="FILE", help="weights of the network")
    add_device(parser)
    return parser


def _numbers(text: str) -> tuple[float, ...]:
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no list of numbers, as in 0.5,1") from None


if __name__ == "__main__":
    sys.exit(main())
