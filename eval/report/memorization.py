"""The report of ``eval.memorization``: near-copies among samples, and the closest pairs."""

import argparse
from pathlib import Path

import torch

from eval.measures.near_copies import SPACES, Neighbours, closest, compare, open_generator
from eval.networks.extractor import open_extractor
from eval.report.options import Request
from eval.report.report import Column, format_report, make_report, write_report
from eval.subjects.real import open_reference
from eval.subjects.samples import Samples, open_samples
from eval.subjects.selection import Selection, asked_subset, subset
from pqvae.errors import UserError
from pqvae.images import save_grid
from pqvae.runtime import select_device

COLUMNS = (
    Column("subject", ""),
    Column("images", "images"),
    Column("features_copies", "near-copies", 3, "features_copies_error"),
    Column("features_distance", "distance", 3),
    Column("pixels_copies", "near-copies in pixels", 3, "pixels_copies_error"),
    Column("pixels_distance", "distance", 2),
    Column("equal", "equal", 0),
    Column("prior_bits", "prior's bits", 1),
    Column("class_prior_bits", "given the class", 1),
)


def report_memorization(args: argparse.Namespace, request: Request) -> None:
    """Compare samples with training images as the command's arguments say."""
    device = select_device(args.device)
    samples = open_samples(args.samples, args.n)
    real = open_reference(samples, args.reference)
    training = real.choose(None, "train")
    train, other = real.splits[training](), real.held_out(training)
    held_out = None if other is None else subset(real.splits[other](), len(samples))
    extractor = open_extractor(args.extractor, args.weights, device)
    seen = asked_subset(train, args.reference_n, "--reference-n")
    notes = [
        "near-copies: no farther from its nearest training image than that is from any other; what "
        "counts is how many more of them there are among samples than among held-out images",
        "distances: RMS difference from the nearest training image, median; pixels in grey levels",
    ]
    if held_out is None:
        notes.append(
            f"no held-out images: {real.path} has no test split of its own, so that all its images "
            "count as training images, and nothing tells how many near-copies chance makes"
        )
    generator = None
    try:
        generator = open_generator(samples, real.path, device)
        notes.append(
            f"decoded: given back from {generator.prefix_length} codes; by chance samples are as "
            "held-out images decoded, known by heart as training images decoded"
        )
    except UserError as error:
        notes.append(f"nothing decoded, and no bits of the prior: {error}")
    found = compare(samples, seen, held_out, extractor, generator)
    report = make_report(found.rows, found.facts, notes, device, request)
    output = request.output
    pictures = [output.with_name(f"{output.stem}-{space}.png") for space in SPACES]
    for picture, neighbours in zip(pictures, found.neighbours.values(), strict=True):
        save_pairs(picture, samples, seen, neighbours)
    write_report(report, output)
    print(format_report(report, COLUMNS), flush=True)
    print(f"\nwrote {output}; look at the closest pairs: {' and '.join(map(str, pictures))}")


def save_pairs(path: Path, samples: Samples, seen: Selection, neighbours: Neighbours) -> None:
    """Draw the closest pairs: samples above, their nearest training images below."""
    first = closest(neighbours)
    pairs = [samples.images(first), seen.images(neighbours.indices[first])]
    captions = [f"{distance:.3g}" for distance in neighbours.distances[first].tolist()]
    zoom = max(1, 96 // samples.image_size)
    save_grid(path, torch.cat(pairs), len(first), captions=captions, zoom=zoom)
