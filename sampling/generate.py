"""Command: generate N images into a folder; resumes where it was cut, never overwrites silently."""

import argparse
import functools
import sys
from collections.abc import Sequence
from pathlib import Path

from pqvae.cli import Parser, command, positive_int, whole_number
from pqvae.errors import UserError
from sampling.options import add_device, add_models, add_shape
from sampling.settings import given_settings

SUMMARY = """\
Generate images from a trained prior. Settings that are not given are those that sampling.tune has
found for it, if it has, and else the defaults."""
EXAMPLES = """\
  python -m sampling.generate --n 10000
  python -m sampling.generate --n 64 --class animals-nature --guidance 2 --out runs/animals
  python -m sampling.generate --n 64 --prefix 4 --out runs/four-codes
  python -m sampling.generate --n 64 --from face.png --keep 2
  python -m sampling.generate --mix plan.png details.png --keep 2 --prefix 16
  python -m sampling.generate --n 50000 --npz samples.npz"""


@functools.partial(command, saves_memory="a smaller --batch-size takes less")
def main(argv: Sequence[str] | None = None) -> None:
    """The command line; --help answers before torch is imported."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    args = _parser().parse_args(arguments)
    args.given = given_settings(vars(args))
    _check_control(args)
    if args.npz and args.npz.suffix != ".npz":
        raise UserError(f"--npz {args.npz}: must end in .npz")
    if args.npz and not args.npz.parent.is_dir():
        raise UserError(f"--npz {args.npz}: there is no folder {args.npz.parent}")

    from sampling.generation import run

    run(args, arguments)


def _parser() -> argparse.ArgumentParser:
    parser = Parser("sampling.generate", SUMMARY, EXAMPLES)
    add = parser.add_argument
    add("--n", type=positive_int, metavar="N", help="how many images; of a mix there is one")
    add_models(parser)
    add(
        "--out",
        type=Path,
        metavar="DIR",
        help="where the images go (default: runs/samples; runs/variations with --from, runs/mix "
        "with --mix)",
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
        type=whole_number(0, 2**16),
        metavar="K",
        help="how many codes an image gets (default: all); 0, of a decoder that draws: the class "
        "alone",
    )
    add_shape(parser)
    _add_control(parser)
    add(
        "--decoder",
        metavar="NAME",
        help="drawn, vivid or faithful (default: the first of these that has been trained)",
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
    add_device(parser)
    return parser


def _add_control(parser: Parser) -> None:
    add = parser.add_argument
    add(
        "--from",
        dest="picture",
        type=Path,
        metavar="IMAGE",
        help="variations: keep the first codes of this picture, draw those after them",
    )
    add(
        "--mix",
        type=Path,
        nargs=2,
        metavar=("PLAN", "DETAILS"),
        help="the first codes of one picture, and those after them of another; nothing is drawn",
    )
    add(
        "--keep",
        type=positive_int,
        metavar="K",
        help="how many first codes --from and --mix keep; of more, less is changed",
    )


def _check_control(args: argparse.Namespace) -> None:
    """Check --from, --mix and --keep beside the other options; set the defaults that follow."""
    source = "--from" if args.picture else "--mix" if args.mix else ""
    if args.picture and args.mix:
        raise UserError("--from with --mix: give one of them")
    if source and args.keep is None:
        raise UserError(f"{source}: say how many first codes are kept: --keep K")
    if args.keep is not None and not source:
        raise UserError(f"--keep {args.keep}: say of which picture: --from IMAGE, or --mix A B")
    if source and args.prefix is not None and args.keep > args.prefix:
        raise UserError(f"--keep {args.keep}: an image gets {args.prefix} codes by --prefix")
    if args.mix:
        drawn = {**args.given, "class": args.class_name}
        for name in ("temperature", "top_p", "guidance", "class"):
            if drawn.get(name) is not None:
                raise UserError(f"--{name.replace('_', '-')} with --mix: nothing is drawn")
        if args.n not in (None, 1):
            raise UserError(f"--n {args.n} with --mix: a mix is one picture; leave --n out")
        args.n = 1
    if args.n is None:
        raise UserError("the following arguments are required: --n")
    folders = {"": "samples", "--from": "variations", "--mix": "mix"}
    args.out = args.out or Path("runs", folders[source])


if __name__ == "__main__":
    sys.exit(main())
