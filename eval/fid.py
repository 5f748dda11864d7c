"""Command: FID, KID, Inception Score, precision and recall of generated images."""

import argparse
import difflib
import shlex
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pqvae.cli import Parser, UserError, command, positive_int

if TYPE_CHECKING:
    from eval.samples import Samples
    from pqvae.datasets import DataConfig

METRICS = ("fid", "kid", "isc", "prc")

EXAMPLES = """\
  python -m eval.fid
  python -m eval.fid --samples runs/samples --n 2000 --reference-n 2000 --metrics fid,kid,prc
  python -m eval.fid --samples my/pictures --reference emoji --json my-scores.json"""


@command
def main(argv: Sequence[str] | None = None) -> None:
    arguments = list(sys.argv[1:] if argv is None else argv)
    args = _parser().parse_args(arguments)
    started = time.monotonic()
    metrics = _metrics(args.metrics)
    output = args.json or args.samples / "fid.json"
    if args.json and not output.parent.is_dir():
        raise UserError(f"--json {output}: there is no folder {output.parent}")

    from eval.extractors import load_inception
    from eval.features import default_cache
    from eval.report import format_report, write_report
    from eval.samples import open_samples
    from eval.scoring import open_floor, score
    from pqvae.datasets import open_dataset
    from pqvae.runtime import select_device

    device = select_device(args.device)
    samples = open_samples(args.samples, args.n)
    reference = _reference_config(samples, args.reference)
    train, test = open_dataset(reference, "train"), open_floor(reference)
    inception = load_inception(args.weights)
    report = score(
        samples,
        train,
        test,
        inception,
        metrics,
        reference_n=args.reference_n,
        device=device,
        batch_size=args.batch_size,
        cache=default_cache(),
        command=shlex.join(["python", "-m", "eval.fid", *arguments]),
        started=started,
    )
    print(format_report(report), flush=True)
    write_report(report, output)
    grid = samples.folder / "grid.png"
    look = f"look at {grid} beside it" if grid.is_file() else "look at the pictures beside it"
    print(f"\nwrote {output}; a score is not a picture: {look}")


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        "eval.fid",
        "Score generated images against the train split, and the test split beside them.",
        EXAMPLES,
    )
    add = parser.add_argument
    add(
        "--samples",
        type=Path,
        default=Path("runs/samples"),
        metavar="DIR",
        help="folder of sampling.generate, or of PNG or JPEG files (default: %(default)s)",
    )
    add(
        "--reference",
        metavar="DATA",
        help="emoji, cifar10, a folder or a glob of shards (default: the tokenizer's own data)",
    )
    add("--n", type=positive_int, metavar="N", help="score the first N samples (default: all)")
    add(
        "--reference-n",
        type=positive_int,
        metavar="N",
        help="a fixed random subset of N reference images (default: all)",
    )
    add(
        "--metrics",
        default="fid,kid,isc",
        metavar="LIST",
        help=f"of {','.join(METRICS)} (default: %(default)s)",
    )
    add(
        "--weights",
        type=Path,
        metavar="FILE",
        help="weights of the FID Inception (default: the cache, a download, or the package)",
    )
    add("--json", type=Path, metavar="FILE", help="the report (default: DIR/fid.json)")
    add("--device", default="auto", help="cpu, cuda, cuda:1, mps or auto (default: %(default)s)")
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


def _reference_config(samples: "Samples", path: str | None) -> "DataConfig":
    from pqvae.config import config_from_dict
    from pqvae.datasets import DataConfig

    record = samples.folder / "samples.json"
    data = samples.record.get("data", {})
    if not isinstance(data, dict):
        raise UserError(f"{record}: 'data' must be an object; generate the samples anew")
    if path is None and not data:
        raise UserError(f"{record} names no data; pass --reference, such as --reference emoji")
    if path is not None and data.get("path") != path:
        data = {"path": path, "image_size": samples.size}
    config = config_from_dict(DataConfig, data, str(record if path is None else "--reference"))
    if config.image_size != samples.size:
        raise UserError(
            f"{samples.folder}: the images have {samples.size} pixels a side, but {record} says "
            f"{config.image_size}; generate the samples anew"
        )
    return config


if __name__ == "__main__":
    sys.exit(main())
