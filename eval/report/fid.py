"""The report of ``eval.fid``: scores of generated images, with their floor."""

import argparse
from pathlib import Path

from eval.measures.generation import open_floor, score
from eval.measures.metrics import METRICS, named
from eval.measures.statistics import read_statistics, write_statistics
from eval.networks.extractor import open_extractor
from eval.report.options import Request
from eval.report.report import Column, format_report, make_report, write_report
from eval.subjects.samples import open_samples, reference_config
from eval.subjects.selection import asked_subset
from pqvae.data.dataset import open_dataset
from pqvae.runtime import select_device


def report_fid(args: argparse.Namespace, request: Request) -> None:
    """Score samples as the command's arguments say."""
    device = select_device(args.device)
    samples = open_samples(args.samples, args.n)
    weights = args.extractor, args.weights
    if (args.reference or "").endswith(".npz"):
        extractor = open_extractor(*weights, device, args.batch_size)
        reference, test = read_statistics(Path(args.reference), extractor.network), None
    else:
        config = reference_config(samples, args.reference)
        train, test = open_dataset(config, "train"), open_floor(config)
        extractor = open_extractor(*weights, device, args.batch_size)
        reference = asked_subset(train, args.reference_n, "--reference-n")
    scored = score(samples, reference, test, extractor, args.metrics, args.by_class)
    report = make_report(scored.rows, scored.facts, scored.notes, device, request)
    write_report(report, request.output)
    print(format_report(report, columns(extractor.network.suffix)), flush=True)
    if args.export_reference:
        statistics = scored.reference.statistics
        write_statistics(args.export_reference, statistics, extractor.network)
        print(f"\nwrote {args.export_reference}: mean and covariance of the reference")
    grid = args.samples / "grid.png"
    look = f"look at {grid} beside it" if grid.is_file() else "look at the pictures beside it"
    print(f"\nwrote {request.output}; a score is not a picture: {look}")


def columns(suffix: str) -> list[Column]:
    """The columns of the table, by the names that a network's scores bear."""
    shown = [Column("subject", ""), Column("images", "images")]
    for one in (named(one, suffix) for metric in METRICS.values() for one in metric.scores):
        shown.append(Column(one.key, one.title, one.digits, one.deviation))
    return shown
