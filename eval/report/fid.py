"""The report of ``eval.fid``: scores of generated images, with their floor."""

import argparse
from dataclasses import replace
from pathlib import Path

import torch

from eval.measures.generation import Floor, Scored, of_classifier, open_floor, score
from eval.measures.metrics import METRICS, named
from eval.measures.statistics import Statistics, read_statistics, write_statistics
from eval.networks.extractor import FeatureExtractor, open_extractor
from eval.report.options import Request
from eval.report.report import Column, format_report, make_report, write_report
from eval.subjects.real import open_reference
from eval.subjects.samples import Samples, open_samples
from eval.subjects.selection import Selection, asked_subset
from pqvae.errors import UserError
from pqvae.runtime import select_device

STAND_IN = "lite0"  # its classifier, where Inception's is missing


def report_fid(args: argparse.Namespace, request: Request) -> None:
    """Score samples as the command's arguments say."""
    device = select_device(args.device)
    samples = open_samples(args.samples, args.n)
    floor: Floor | None = None
    if (args.reference or "").endswith(".npz"):
        if args.split is not None:
            raise UserError(f"--split {args.split}: {args.reference} is statistics, without splits")
        extractor = _open_network(args, device)
        reference, against = read_statistics(Path(args.reference), extractor.network), "statistics"
    else:
        real = open_reference(samples, args.reference)
        split = real.choose(args.split, "train")
        images, floor, against = real.splits[split](), open_floor(real, split), real.called(split)
        extractor = _open_network(args, device)
        reference = asked_subset(images, args.reference_n, "--reference-n")
    scored = _score(args, samples, reference, floor, extractor)
    rows = [{**row, "against": against} for row in scored.rows]
    report = make_report(rows, scored.facts, scored.notes, device, request)
    write_report(report, request.output)
    if args.export_reference:
        write_statistics(args.export_reference, scored.reference.statistics, extractor.network)
    suffixes = dict.fromkeys((extractor.network.suffix, f"_{STAND_IN}"))
    shown = [column for suffix in suffixes for column in columns(suffix)]
    print(format_report(report, list(dict.fromkeys(shown))), flush=True)
    if args.export_reference:
        print(f"\nwrote {args.export_reference}: mean and covariance of the reference")
    grid = args.samples / "grid.png"
    look = f"look at {grid} beside it" if grid.is_file() else "look at the pictures beside it"
    print(f"\nwrote {request.output}; a score is not a picture: {look}")


def _open_network(args: argparse.Namespace, device: torch.device) -> FeatureExtractor:
    """The network that is asked for; or what stands in for it, where that has all that is asked."""
    extractor = open_extractor(args.extractor, args.weights, device, args.batch_size)
    if extractor.network.has_logits or of_classifier(args.metrics) != list(args.metrics):
        return extractor
    return open_extractor(STAND_IN, None, device, args.batch_size)


def _score(
    args: argparse.Namespace,
    samples: Samples,
    reference: Selection | Statistics,
    floor: Floor | None,
    extractor: FeatureExtractor,
) -> Scored:
    """All scores; those for which the network lacks the classifier, by the one that stands in."""
    scored = score(samples, reference, floor, extractor, args.metrics, args.by_class)
    lacking = of_classifier(args.metrics)
    if extractor.network.has_logits or not lacking:
        return scored
    try:
        stand_in = open_extractor(STAND_IN, None, extractor.device, args.batch_size)
        return scored.beside(score(samples, reference, floor, stand_in, lacking))
    except UserError as error:
        return replace(scored, notes=[*scored.notes, f"nor by {STAND_IN} in its place: {error}"])


def columns(suffix: str) -> list[Column]:
    """The columns of the table, by the names that a network's scores bear."""
    shown = [Column("subject", ""), Column("images", "images"), Column("against", "against")]
    for one in (named(one, suffix) for metric in METRICS.values() for one in metric.scores):
        shown.append(Column(one.key, one.title, one.digits, one.deviation))
    return shown
