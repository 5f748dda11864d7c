"""Command: one page to look at: samples, variations and held-out pictures, by how many codes."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from pqvae.cli import Parser, command, whole_number
from pqvae.errors import UserError
from sampling.options import add_data, add_device, add_models, add_shape
from sampling.settings import given_settings

SUMMARY = """\
Write one HTML file to look at: samples of each class, variations of held-out pictures, and the
training pictures nearest to the samples, with a slider over the number of codes. It needs no server
and loads nothing. Settings that are not given are those that sampling.tune has found, if it has."""
EXAMPLES = """\
  python -m sampling.gallery
  python -m sampling.gallery --per-class 4 --seed 7 --out animals.html
  python -m sampling.gallery --prior runs/photos-prior --data /mnt/photos --out photos.html"""

DEFAULT = Path("runs/gallery.html")


@command
def main(argv: Sequence[str] | None = None) -> None:
    """The command line; --help answers before torch is imported."""
    args = _parser().parse_args(argv)
    args.given = given_settings(vars(args))
    if args.out.suffix != ".html":
        raise UserError(f"--out {args.out}: must end in .html, as it becomes a page")
    if args.out != DEFAULT and not args.out.parent.is_dir():
        raise UserError(f"--out {args.out}: there is no folder {args.out.parent}")

    from eval.gallery.build import build_gallery

    build_gallery(args)


def _parser() -> argparse.ArgumentParser:
    parser = Parser("sampling.gallery", SUMMARY, EXAMPLES)
    add = parser.add_argument
    add_models(parser)
    add_data(parser)
    add(
        "--out",
        type=Path,
        default=DEFAULT,
        metavar="FILE",
        help="the page; replaces a gallery, nothing else (default: %(default)s)",
    )
    add(
        "--per-class",
        type=whole_number(1, 100),
        default=8,
        metavar="N",
        help="samples of each class, at most 100; eight times as many of a prior without classes "
        "(default: 8)",
    )
    add(
        "--seed",
        type=whole_number(0, 2**63 - 1),
        default=0,
        help="equal models, options and seed make an equal file (default: 0)",
    )
    add_shape(parser)
    add_device(parser)
    return parser


if __name__ == "__main__":
    sys.exit(main())
