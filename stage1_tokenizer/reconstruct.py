"""Command: any picture at k = 1, 2, 4 ... N codes, as a strip with the bits below."""

import sys
from collections.abc import Sequence
from pathlib import Path

from pqvae.cli import Parser, command, positive_int
from pqvae.errors import UserError
from pqvae.files import is_same_file

EXAMPLES = """\
  python -m stage1_tokenizer.reconstruct photo.jpg
  python -m stage1_tokenizer.reconstruct photo.jpg --refine 8
  python -m stage1_tokenizer.reconstruct a.png b.png --tokenizer runs/photos --out strips.png"""


@command
def main(argv: Sequence[str] | None = None) -> None:
    """The command line; --help answers before torch is imported."""
    parser = Parser(
        "stage1_tokenizer.reconstruct", "Draw pictures as prefixes of their codes.", EXAMPLES
    )
    add = parser.add_argument
    add("images", type=Path, nargs="+", metavar="IMAGE", help="picture files, a row each")
    add("--tokenizer", type=Path, default=Path("runs/tokenizer"), metavar="DIR")
    add("--out", type=Path, default=Path("reconstruction.png"), metavar="FILE")
    add(
        "--beam",
        type=positive_int,
        default=1,
        metavar="B",
        help="width of the search for better codes (default: 1, greedy); takes B times as long",
    )
    add(
        "--refine",
        type=positive_int,
        default=0,
        metavar="R",
        help="times to correct the codes by what they decode to (default: none)",
    )
    add(
        "--decoder",
        metavar="NAME",
        help="drawn, vivid or faithful (default: the first of these that has been trained)",
    )
    add("--device", default="auto", help="cpu, cuda, mps or auto (default: auto)")
    args = parser.parse_args(argv)
    if args.out.suffix.lower() != ".png":
        raise UserError(f"--out {args.out}: must end in .png, as it becomes a PNG")
    for image in args.images:
        if is_same_file(args.out, image):
            raise UserError(f"--out {args.out}: is the picture {image} itself; give another name")
    if not args.out.parent.is_dir():
        raise UserError(f"--out {args.out}: there is no folder {args.out.parent}")

    from stage1_tokenizer.strips import draw_strips

    draw_strips(args)


if __name__ == "__main__":
    sys.exit(main())
