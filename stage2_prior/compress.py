"""Command: pictures as files of a few bytes, or as a few letters; also installed as ``pqvae``."""

import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from pqvae.cli import Parser, command, positive_int, whole_number
from pqvae.errors import UserError

MODULE = "stage2_prior.compress"
COMMANDS = {
    "encode": "Write pictures as .pq files.",
    "decode": "Draw .pq files, or a placeholder, as PNGs.",
    "info": "Say what .pq files hold.",
    "placeholder": "Print pictures as a few letters each: their first codes, as base64url.",
    "similar": "Find pictures and .pq files that are nearly the same.",
    "tables": "Count the codes of a model's training images, for --mode static.",
}
EXAMPLES = {
    "encode": """\
  pqvae encode photo.jpg -o photo.pq --bytes 32
  pqvae encode photos/ -o small/ --psnr 22
  pqvae encode photos/ -o small/ --prefix 16 --effort 6""",
    "decode": """\
  pqvae decode photo.pq -o photo.png
  pqvae decode small/ -o pictures/ --decoder faithful --side 256
  pqvae decode --placeholder OvJTaDykxUAmPbHgiqz8pQ -o photo.png""",
    "info": """\
  pqvae info photo.pq""",
    "placeholder": """\
  pqvae placeholder photo.jpg --bytes 16
  pqvae placeholder photos/ > placeholders.tsv""",
    "similar": """\
  pqvae similar photos/
  pqvae similar small/ photos/ --within 0.05""",
    "tables": """\
  pqvae tables --model runs/tokenizer""",
}
SUMMARY = "Pictures as files of a few bytes, of which every beginning is a picture, or as text."
USAGE = f"usage: pqvae {{{','.join(COMMANDS)}}} [options], or python -m {MODULE} ..."


@command
def main(argv: Sequence[str] | None = None) -> None:
    arguments = list(sys.argv[1:] if argv is None else argv)
    if arguments[:1] in (["-h"], ["--help"]):
        print(f"{USAGE}\n\n{SUMMARY}\n\nexamples:\n" + "\n".join(EXAMPLES.values()) + "\n")
        for name, summary in COMMANDS.items():
            print(f"{name:12} {summary}")
        print("\npqvae COMMAND --help says more.")
        return
    if not arguments or arguments[0] not in COMMANDS:
        given = repr(arguments[0]) if arguments else "nothing"
        raise UserError(f"{given} is no command; give one of {', '.join(COMMANDS)}")
    args = PARSERS[arguments[0]]().parse_args(arguments[1:])

    from stage2_prior.codec import commands

    getattr(commands, arguments[0])(args)


def _parser(name: str) -> Parser:
    parser = Parser(f"{MODULE} {name}", COMMANDS[name], EXAMPLES[name])
    add = parser.add_argument
    add(
        "--model",
        default="photos",
        metavar="MODEL",
        help="photos or emoji, which come with the package, or a tokenizer's folder (default: "
        "photos)",
    )
    add("--device", default="auto", help="cpu, cuda, mps or auto (default: auto)")
    return parser


def _add_inputs(parser: Parser, what: str, least: str = "+") -> None:
    parser.add_argument(
        "inputs", type=Path, nargs=least, metavar="IN", help=f"{what}, or folders of them"
    )


def _add_prior(parser: Parser) -> None:
    parser.add_argument(
        "--prior", type=Path, metavar="DIR", help="a prior of the model's codes, for mode context"
    )


def _add_output(parser: Parser, what: str) -> None:
    parser.add_argument(
        "-o",
        "--out",
        type=Path,
        required=True,
        metavar="OUT",
        help=f"the {what}; of several inputs or of a folder, a folder",
    )
    parser.add_argument("--force", action="store_true", help="replace files that are there")


def _add_effort(parser: Parser) -> None:
    parser.add_argument(
        "--effort",
        type=whole_number(0, 9),
        default=0,
        metavar="E",
        help="0 to 9: how long to search for codes that describe a picture well (default: 0)",
    )


def _encode_parser() -> Parser:
    parser = _parser("encode")
    _add_inputs(parser, "picture files")
    _add_output(parser, ".pq file")
    add = parser.add_argument
    add("--bytes", type=positive_int, metavar="N", help="of a file at most, its 8 of header too")
    add("--prefix", type=positive_int, metavar="K", help="codes at most (default: all)")
    add("--psnr", type=float, metavar="DB", help="no more codes than reach this, of the square")
    add(
        "--mode",
        choices=("fixed", "static", "context"),
        default="fixed",
        help="how codes are written: each in as many bits; by how frequent it is (pqvae tables); "
        "by its probability under a prior (default: fixed)",
    )
    _add_prior(parser)
    _add_effort(parser)
    return parser


def _decode_parser() -> Parser:
    parser = _parser("decode")
    _add_inputs(parser, ".pq files", least="*")
    _add_output(parser, "PNG")
    add = parser.add_argument
    add("--placeholder", metavar="TEXT", help="draw this instead of files")
    add(
        "--decoder",
        metavar="NAME",
        help="drawn, vivid or faithful (default: the first of these that the model has)",
    )
    add(
        "--side",
        type=whole_number(1, 4096),
        metavar="PIXELS",
        help="of the longest side (default: about those of the picture; 32 of a placeholder)",
    )
    _add_prior(parser)
    return parser


def _info_parser() -> Parser:
    parser = _parser("info")
    _add_inputs(parser, ".pq files")
    _add_prior(parser)
    return parser


def _placeholder_parser() -> Parser:
    parser = _parser("placeholder")
    _add_inputs(parser, "picture files")
    parser.add_argument(
        "--bytes", type=positive_int, default=16, metavar="N", help="of each (default: 16)"
    )
    parser.set_defaults(prior=None)
    _add_effort(parser)
    return parser


def _similar_parser() -> Parser:
    parser = _parser("similar")
    _add_inputs(parser, "picture and .pq files")
    add = parser.add_argument
    add("--bytes", type=positive_int, default=16, metavar="N", help="compared (default: 16)")
    add(
        "--within",
        type=float,
        default=0.15,
        metavar="D",
        help="0 finds pictures of equal codes; 0.05 copies that were resized or compressed; 0.15 "
        "most that were brightened or cropped a little, too; 1 nearly any two (default: 0.15)",
    )
    _add_prior(parser)
    return parser


def _tables_parser() -> Parser:
    parser = _parser("tables")
    parser.add_argument(
        "--data", metavar="DATA", help="the training images, where they are not where they were"
    )
    return parser


PARSERS: dict[str, Callable[[], Parser]] = {
    "encode": _encode_parser,
    "decode": _decode_parser,
    "info": _info_parser,
    "placeholder": _placeholder_parser,
    "similar": _similar_parser,
    "tables": _tables_parser,
}

if __name__ == "__main__":
    sys.exit(main())
