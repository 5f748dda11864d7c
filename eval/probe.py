"""Command: what codes understand: classes told from the first k of them, and nearest images."""

import argparse
import importlib.util
import sys
from collections.abc import Sequence
from pathlib import Path

from eval.report.options import add_data, add_report, add_tokenizer, request
from pqvae.cli import Parser, command, positive_int
from pqvae.errors import UserError

EXAMPLES = """\
  python -m eval.probe
  python -m eval.probe --tokenizer runs/cifar10 --train-n 10000 --test-n 2000
  python -m eval.probe --against runs/spatial --json with-a-spatial-vq.json
  python -m eval.probe --data my/class-folders --json my-probe.json"""


@command
def main(argv: Sequence[str] | None = None) -> None:
    arguments = list(sys.argv[1:] if argv is None else argv)
    args = _parser().parse_args(arguments)
    asked = request("eval.probe", arguments, args.json, args.tokenizer / "probe.json")
    if importlib.util.find_spec("sklearn") is None:
        raise UserError("eval.probe needs scikit-learn; pip install 'pqvae[eval]'")

    from eval.report.probe import report_probe

    report_probe(args, asked)


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        "eval.probe",
        "Measure what the first k codes tell of an image: its class, and which are like it.",
        EXAMPLES,
    )
    add = parser.add_argument
    add_tokenizer(parser)
    add_data(parser)
    add(
        "--against",
        type=Path,
        action="append",
        default=[],
        metavar="DIR",
        help="run folder of another tokenizer, whose codes are compared; may be given repeatedly",
    )
    add("--train-n", type=positive_int, metavar="N", help="a fixed random subset of N train images")
    add("--test-n", type=positive_int, metavar="N", help="the same of the test images")
    add_report(parser, "DIR/probe.json")
    return parser


if __name__ == "__main__":
    sys.exit(main())
