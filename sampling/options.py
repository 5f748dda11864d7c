"""Arguments that several commands of sampling share; imports no torch."""

from pathlib import Path

from pqvae.cli import Parser


def add_models(parser: Parser) -> None:
    """Add --prior and --tokenizer."""
    parser.add_argument(
        "--prior",
        type=Path,
        default=Path("runs/prior"),
        metavar="DIR",
        help="run or model folder of stage 2 (default: %(default)s)",
    )
    parser.add_argument(
        "--tokenizer",
        type=Path,
        metavar="DIR",
        help="run or model folder of stage 1 (default: where the prior says, or beside it)",
    )


def add_data(parser: Parser) -> None:
    parser.add_argument(
        "--data", metavar="DATA", help="where the images of both are now, if they have moved"
    )


def add_shape(parser: Parser) -> None:
    """Add how the distribution is shaped: --temperature, --top-p and --guidance."""
    add = parser.add_argument
    add("--temperature", type=float, metavar="T", help="0 is greedy (default: 1)")
    add(
        "--top-p",
        type=float,
        metavar="P",
        help="of each code keep the most likely values that reach this (default: 0.95)",
    )
    add("--guidance", type=float, metavar="S", help="towards the class (default: 1)")


def add_device(parser: Parser) -> None:
    parser.add_argument(
        "--device", default="auto", help="cpu, cuda, cuda:1, mps or auto (default: auto)"
    )
