"""Command: FID, KID, Inception Score, precision and recall of generated images."""

import argparse
import difflib
import functools
import sys
from collections.abc import Sequence
from pathlib import Path

from eval.measures.metrics import METRICS
from eval.report.options import (
    add_extractor,
    add_report,
    add_samples,
    add_split,
    report_of_samples,
    request,
)
from pqvae.cli import Parser, command, positive_int
from pqvae.errors import UserError
from pqvae.files import is_same_file

EXAMPLES = """\
  python -m eval.fid
  python -m eval.fid --extractor lite0
  python -m eval.fid --n 2000 --reference-n 2000 --by-class
  python -m eval.fid --samples samples.npz --reference VIRTUAL_imagenet256_labeled.npz
  python -m eval.fid --samples my/pictures --reference emoji --json my-scores.json"""


@functools.partial(command, saves_memory="a smaller --batch-size takes less")
def main(argv: Sequence[str] | None = None) -> None:
    arguments = list(sys.argv[1:] if argv is None else argv)
    args = _parser().parse_args(arguments)
    args.metrics = _metrics(args.metrics)
    asked = request("eval.fid", arguments, args.json, report_of_samples(args.samples, "fid"))
    exported = args.export_reference
    if exported:
        if "fid" not in args.metrics:
            raise UserError(f"--export-reference {exported} needs fid among the --metrics")
        if exported.suffix != ".npz":
            raise UserError(f"--export-reference {exported}: must end in .npz")
        if not exported.parent.is_dir():
            raise UserError(f"--export-reference {exported}: there is no folder {exported.parent}")
        for source in (args.samples, Path(args.reference or "")):
            if is_same_file(exported, source):
                raise UserError(
                    f"--export-reference {exported}: would replace {source}; give another name"
                )

    from eval.report.fid import report_fid

    report_fid(args, asked)


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        "eval.fid",
        "Score generated images against real ones, and held-out real images beside them.",
        EXAMPLES,
    )
    add = parser.add_argument
    add_samples(parser)
    add(
        "--reference",
        metavar="DATA",
        help="emoji, cifar10, a folder or a glob of shards, or an .npz file of mu and sigma "
        "(default: the tokenizer's own data)",
    )
    add_split(parser, "of the reference", "train")
    add(
        "--export-reference",
        type=Path,
        metavar="FILE",
        help="write mu and sigma of the reference to this .npz file",
    )
    add(
        "--reference-n",
        type=positive_int,
        metavar="N",
        help="a fixed random subset of N reference images (default: all)",
    )
    add(
        "--metrics",
        default=",".join(METRICS),
        metavar="LIST",
        help=f"of {','.join(METRICS)} (default: %(default)s)",
    )
    few = " and ".join(name.upper() for name, metric in METRICS.items() if metric.of_classes)
    add("--by-class", action="store_true", help=f"also {few} of each class")
    about = (
        "lite0: a small network, in seconds; its scores are fd_lite0, kd_lite0, is_lite0, no FID"
    )
    add_extractor(parser, "inception", about)
    add_report(parser, "DIR/fid.json")
    add("--batch-size", type=positive_int, metavar="B", help="images per forward pass")
    return parser


def _metrics(text: str) -> tuple[str, ...]:
    names = tuple(dict.fromkeys(name.strip() for name in text.split(",")))
    for name in names:
        if name not in METRICS:
            near = difflib.get_close_matches(name, METRICS, n=1, cutoff=0.3)
            hint = f"did you mean {near[0]}?" if near else f"known are {', '.join(METRICS)}"
            raise UserError(f"--metrics: no metric {name!r}; {hint}")
    return names


if __name__ == "__main__":
    sys.exit(main())
