"""The report of ``eval.fid``: scores of generated images, with their floor."""

import argparse
from pathlib import Path

from eval.measures.generation import Floor, open_floor, score
from eval.measures.metrics import METRICS, named
from eval.measures.statistics import read_statistics, write_statistics
from eval.networks.extractor import open_extractor
from eval.report.options import Request
from eval.report.report import Column, format_report, make_report, write_report
from eval.subjects.real import open_reference
from eval.subjects.samples import open_samples
from eval.subjects.selection import asked_subset
from pqvae.errors import UserError
from pqvae.runtime import select_device


def report_fid(args: argparse.Namespace, request: Request) -> None:
    """Score samples as the command's arguments say."""
    device = select_device(args.device)
    samples = open_samples(args.samples, args.n)
    weights = args.extractor, args.weights
    floor: Floor | None = None
    if (args.reference or "").endswith(".npz"):
        if args.split is not None:
            raise UserError(f"--split {args.split}: {args.reference} is statistics, without splits")
        extractor = open_extractor(*weights, device, args.batch_size)
        reference, against = read_statistics(Path(args.reference), extractor.network), "statistics"
    else:
        real = open_reference(samples, args.reference)
        split = real.choose(args.split, "train")
        images, floor, against = real.splits[split](), open_floor(real, split), real.called(split)
        extractor = open_extractor(*weights, device, args.batch_size)
        reference = asked_subset(images, args.reference_n, "--reference-n")
    scored = score(samples, reference, floor, extractor, args.metrics, args.by_class)
    rows = [{**row, "against": against} for row in scored.rows]
    report = make_report(rows, scored.facts, scored.notes, device, request)
    write_report(report, request.output)
    if args.export_reference:
        write_statistics(args.export_reference, scored.reference.statistics, extractor.network)
    print(format_report(report, columns(extractor.network.suffix)), flush=True)
    if args.export_reference:
        print(f"\nwrote {args.export_reference}: mean and covariance of the reference")
    grid = args.samples / "grid.png"
    look = f"look at {grid} beside it" if grid.is_file() else "look at the pictures beside it"
    print(f"\nwrote {request.output}; a score is not a picture: {look}")


def columns(suffix: str) -> list[Column]:
    """The columns of the table, by the names that a network's scores bear."""
    shown = [Column("subject", ""), Column("images", "images"), Column("against", "against")]
    for one in (named(one, suffix) for metric in METRICS.values() for one in metric.scores):
        shown.append(Column(one.key, one.title, one.digits, one.deviation))
    return shown
