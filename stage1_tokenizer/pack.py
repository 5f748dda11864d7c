"""Command: a trained tokenizer in 8 bits a weight, to be shipped."""

import sys
from collections.abc import Sequence
from pathlib import Path

from pqvae.cli import Parser, command

EXAMPLES = """\
  python -m stage1_tokenizer.pack runs/photos --out photos
  python -m stage1_tokenizer.pack runs/tokenizer --out emoji"""


@command
def main(argv: Sequence[str] | None = None) -> None:
    parser = Parser(
        "stage1_tokenizer.pack",
        "Write a trained tokenizer with all its decoders in a quarter of the bytes.\n"
        "It is another model then: its codes are others, and need tables and priors of their own.",
        EXAMPLES,
    )
    add = parser.add_argument
    add("tokenizer", type=Path, metavar="DIR", help="a run or model folder of stage 1")
    add("--out", type=Path, required=True, metavar="DIR", help="the model folder to write")
    args = parser.parse_args(argv)

    from stage1_tokenizer.packed_model import write_packed

    write_packed(args.tokenizer, args.out)


if __name__ == "__main__":
    sys.exit(main())
