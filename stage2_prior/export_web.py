"""Command: the small decoder of a tokenizer as a file for browsers."""

import sys
from collections.abc import Sequence
from pathlib import Path

from pqvae.cli import Parser, command

SUMMARY = """\
Write the small decoder of a tokenizer (stage1_tokenizer.train_small) as the file that web/pqvae.js
loads, and say what it is worth on validation pictures."""
EXAMPLES = """\
  python -m stage2_prior.export_web
  python -m stage2_prior.export_web --tokenizer runs/photos --out web/photos.bin
  python -m stage2_prior.export_web --examples photos/ beach.jpg"""


@command
def main(argv: Sequence[str] | None = None) -> None:
    """The command line; --help answers before torch is imported."""
    parser = Parser("stage2_prior.export_web", SUMMARY, EXAMPLES)
    add = parser.add_argument
    add("--tokenizer", type=Path, default=Path("runs/tokenizer"), metavar="DIR")
    add(
        "--out",
        type=Path,
        default=Path("web/photos.bin"),
        metavar="FILE",
        help="the weights (default: web/photos.bin, where the demo page looks)",
    )
    add(
        "--examples",
        type=Path,
        nargs="+",
        default=[],
        metavar="PICTURE",
        help="pictures or folders of them that the demo page offers: examples.json beside the "
        "weights holds their placeholders, and themselves in small",
    )
    add(
        "--data",
        metavar="PATH",
        help="where the tokenizer's images are (default: where it was trained)",
    )
    add("--device", default="auto", help="cpu, cuda, mps or auto (default: auto)")
    args = parser.parse_args(argv)

    from stage2_prior.codec.web_export import export

    export(args)


if __name__ == "__main__":
    sys.exit(main())
