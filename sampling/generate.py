"""Command: generate N images into a folder; resumes where it was cut, never overwrites silently."""

import argparse
import functools
import sys
from collections.abc import Sequence
from pathlib import Path

from pqvae.cli import Parser, command, positive_int, whole_number
from pqvae.errors import UserError
from sampling.settings import given_settings

SUMMARY = """\
Generate images from a trained prior. Settings that are not given are those that sampling.tune has
found for it, if it has, and else the defaults."""
EXAMPLES = """\
  python -m sampling.generate --n 10000
  python -m sampling.generate --n 64 --class animals-nature --guidance 2 --out runs/animals
  python -m sampling.generate --n 64 --prefix 4 --out runs/four-codes
  python -m sampling.generate --n 50000 --npz samples.npz"""


@functools.partial(command, saves_memory="a smaller --batch-size takes less")
def main(argv: Sequence[str] | None = None) -> None:
    """The command line; --help answers before torch is imported."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    args = _parser().parse_args(arguments)
    args.given = given_settings(vars(args))
    if args.npz and args.npz.suffix != ".npz":
        raise UserError(f"--npz {args.npz}: must end in .npz")
    if args.npz and not args.npz.parent.is_dir():
        raise UserError(f"--npz {args.npz}: there is no folder {args.npz.parent}")

    from sampling.generation import run

    run(args, arguments)


def _parser() -> argparse.ArgumentParser:
    parser = Parser("sampling.generate", SUMMARY, EXAMPLES)
    add = parser.add_argument
    add("--n", type=positive_int, required=True, metavar="N", help="how many images")
    add(
        "--prior",
        type=Path,
        default=Path("runs/prior"),
        metavar="DIR",
        help="run or model folder of stage 2 (default: %(default)s)",
    )
    add(
        "--tokenizer",
        type=Path,
        metavar="DIR",
        help="run or model folder of stage 1 (default: where the prior says, or beside it)",
    )
    add(
        "--out",
        type=Path,
        default=Path("runs/samples"),
        metavar="DIR",
        help="where the images go (default: %(default)s)",
    )
    add(
        "--seed",
        type=whole_number(0, 2**63 - 1),
        default=0,
        help="image i is a function of it (default: 0)",
    )
    add(
        "--class",
        dest="class_name",
        metavar="NAME",
        help="one class, by name or number (default: as frequent as in the training data)",
    )
    add(
        "--prefix",
        type=positive_int,
        metavar="K",
        help="draw the first K codes (default: all)",
    )
    add("--temperature", type=float, metavar="T", help="0 is greedy (default: 1)")
    add(
        "--top-p",
        type=float,
        metavar="P",
        help="of each code keep the most likely values that reach this (default: 0.95)",
    )
    add("--guidance", type=float, metavar="S", help="towards the class (default: 1)")
    add(
        "--decoder",
        metavar="NAME",
        help="vivid, to look at, or faithful (default: vivid, where it has been trained)",
    )
    add(
        "--npz",
        type=Path,
        metavar="FILE",
        help="also write all images to one file, uint8 (N, H, W, 3), as ADM's scorer reads them",
    )
    add(
        "--batch-size",
        type=positive_int,
        default=256,
        metavar="B",
        help="images in work at once, in blocks of a fixed size: takes memory, changes no image "
        "(default: %(default)s)",
    )
    add("--device", default="auto", help="cpu, cuda, cuda:1, mps or auto (default: auto)")
    return parser


if __name__ == "__main__":
    sys.exit(main())
