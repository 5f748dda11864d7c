"""Command: FID, KID, Inception Score, precision and recall of generated images."""

import argparse
import difflib
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from eval.networks.extractors import EXTRACTORS
from eval.report.options import (
    add_report,
    add_samples,
    add_weights,
    report_of_samples,
    report_path,
    typed,
)
from pqvae.cli import Parser, command, positive_int
from pqvae.errors import UserError

METRICS = ("fid", "kid", "isc", "prc")

EXAMPLES = """\
  python -m eval.fid
  python -m eval.fid --extractor lite0
  python -m eval.fid --n 2000 --reference-n 2000 --by-class
  python -m eval.fid --samples samples.npz --reference VIRTUAL_imagenet256_labeled.npz
  python -m eval.fid --samples my/pictures --reference emoji --json my-scores.json"""


@command
def main(argv: Sequence[str] | None = None) -> None:
    arguments = list(sys.argv[1:] if argv is None else argv)
    args = _parser().parse_args(arguments)
    started = time.monotonic()
    metrics = _metrics(args.metrics)
    output = report_path(args.json, report_of_samples(args.samples, "fid"))
    exported = args.export_reference
    if exported:
        if "fid" not in metrics:
            raise UserError(f"--export-reference {exported} needs fid among the --metrics")
        if not exported.parent.is_dir():
            raise UserError(f"--export-reference {exported}: there is no folder {exported.parent}")

    from eval.measures.generation import columns, open_floor, score
    from eval.measures.statistics import read_statistics, write_statistics
    from eval.networks.extractors import load_extractor
    from eval.networks.features import default_cache
    from eval.report.report import format_report, make_report, write_report
    from eval.subjects.samples import open_samples, reference_config
    from pqvae.data.dataset import open_dataset
    from pqvae.runtime import select_device

    device = select_device(args.device)
    samples = open_samples(args.samples, args.n)
    published = Path(args.reference) if (args.reference or "").endswith(".npz") else None
    if published is None:
        config = reference_config(samples, args.reference)
        reference, test = open_dataset(config, "train"), open_floor(config)
        extractor = load_extractor(args.extractor, args.weights)
    else:
        extractor = load_extractor(args.extractor, args.weights)
        reference, test = read_statistics(published, extractor), None
    result = score(
        samples,
        reference,
        test,
        extractor,
        metrics,
        by_class=args.by_class,
        reference_n=args.reference_n,
        device=device,
        batch_size=args.batch_size,
        cache=default_cache(),
    )
    report = make_report(
        result.rows,
        result.facts,
        result.notes,
        device=device,
        command=typed("eval.fid", arguments),
        started=started,
    )
    print(format_report(report, columns(extractor)), flush=True)
    write_report(report, output)
    if exported and result.reference is not None:
        write_statistics(exported, result.reference, extractor)
        print(f"\nwrote {exported}: mean and covariance of the reference")
    grid = args.samples / "grid.png"
    look = f"look at {grid} beside it" if grid.is_file() else "look at the pictures beside it"
    print(f"\nwrote {output}; a score is not a picture: {look}")


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        "eval.fid",
        "Score generated images against the train split, and the test split beside them.",
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
    add("--by-class", action="store_true", help="also FID and KID of each class")
    add(
        "--extractor",
        choices=EXTRACTORS,
        default="inception",
        help="lite0: a small network, in seconds; its scores are fd_lite0, kd_lite0, no FID",
    )
    add_weights(parser)
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
