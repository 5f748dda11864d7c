"""The report of ``eval.reconstruction``: what prefixes of codes keep, with a plot and a picture."""

import argparse
import functools
import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from eval.measures.distortion import Measure, distance_facts, measure, ssim
from eval.measures.metrics import score_name
from eval.measures.statistics import frechet_distance, statistics_of
from eval.networks.extractor import FeatureExtractor, open_extractor
from eval.report.options import Request
from eval.report.report import Column, format_report, make_report, write_report
from eval.subjects.selection import Selection, asked_subset
from eval.subjects.tokenized import (
    Reconstructions,
    asked_prefixes,
    load_tokenizer,
    real_images,
    tokenizer_facts,
)
from pqvae.errors import UserError
from pqvae.images import psnr
from pqvae.lite0 import NAME as LITE0
from pqvae.lite0 import Lite0, lite0_distance
from pqvae.lite0 import load_network as load_lite0
from pqvae.plots import NO_PLOT, Panel, save_plot
from pqvae.runtime import select_device
from stage1_tokenizer import Tokenizer
from stage1_tokenizer.prefixes import prefix_grid, reconstruct, save_prefix_grid
from stage1_tokenizer.tokenizer import FAITHFUL

PICTURE_ROWS = 2  # of the best, the median and the worst images each
MEASURED = (
    Column("psnr", "PSNR, dB", 2),
    Column("ssim", "SSIM", 4),
    Column("lite0_distance", "lite0 distance", 4),
    Column("rfid", "rFID", 2),
    Column("rfd_lite0", "rfd_lite0", 2),
)
COLUMNS = (Column("codes", "codes"), Column("bits", "bits", 0), *MEASURED)


def report_reconstruction(args: argparse.Namespace, request: Request) -> None:
    """Measure reconstructions as the command's arguments say."""
    device = select_device(args.device)
    tokenizer = load_tokenizer(args.tokenizer, device)
    real = real_images(tokenizer, args.tokenizer, args.data)
    split = real.choose(args.split, "test")
    images = asked_subset(real.splits[split](), args.n, "--n")
    name = images.dataset.name
    trained_with = tokenizer.trained_with(args.decoder)
    extractor, lite0, notes = open_networks(args.extractor, args.weights, device, trained_with)
    if extractor is not None and len(images) < 2:
        raise UserError(f"{name}: rFID needs 2 images or more; pass --extractor none")

    lengths = prefix_grid(tokenizer.quantizer.cuts)
    if args.prefixes:
        lengths = asked_prefixes(args.prefixes, tokenizer)
    search = {"beam": args.beam, "refine": args.refine}
    codes, values = measure(
        tokenizer, images, lengths, _measures(lite0), **search, decoder=args.decoder
    )
    bits = list(itertools.accumulate(tokenizer.quantizer.bits))
    table: dict[str, Sequence[float]] = {"codes": lengths, "bits": [bits[k - 1] for k in lengths]}
    table |= {key: of_images.double().mean(0).tolist() for key, of_images in values.items()}
    facts: dict[str, dict[str, Any]] = {
        "images": images.facts(),
        "tokenizer": tokenizer_facts(tokenizer, args.tokenizer) | search,
        "decoder": {"name": args.decoder, "trained_with": trained_with or None},
        "ssim": {"window": "11x11 Gaussian of sigma 1.5", "over": "red, green and blue"},
        "distance": {} if lite0 is None else distance_facts(),
    }
    if extractor is not None:
        network = extractor.network
        rfid = "r" + score_name("fid", network.suffix)
        table[rfid] = frechet_distances(extractor, tokenizer, codes, images, lengths, args.decoder)
        facts["extractor"] = network.facts()
        if len(images) < network.dimensions:
            notes.append(
                f"{rfid} of {len(images):,} images, fewer than its {network.dimensions:,} "
                "features, is biased upwards; compare it at equal counts only"
            )
    shown = picture_rows(values["psnr"][:, -1])
    facts["picture"] = {
        title: [images.keys[place] for place in places] for title, places in shown.items()
    }
    rows = [dict(zip(table, row, strict=True)) for row in zip(*table.values(), strict=True)]
    report = make_report(rows, facts, notes, device, request)
    write_report(report, request.output)
    plot = request.output.with_suffix(".png")
    picture = plot.with_name(f"{plot.stem}-images.png")
    originals = images.images([place for places in shown.values() for place in places])
    decoded = reconstruct(tokenizer, originals, lengths, args.decoder, **search)
    save_prefix_grid(picture, tokenizer, originals, lengths, decoded)
    drawn = save_plot(plot, _panels(rows, name))
    print(format_report(report, COLUMNS), flush=True)
    look = f"{plot} and {picture}" if drawn else f"{picture} ({NO_PLOT})"
    ranks = f"{', '.join(shown)} images by PSNR, original last"
    print(f"\nwrote {request.output}; look at {look}: {ranks}")


def open_networks(
    name: str | None, weights: Path | None, device: torch.device, trained_with: str
) -> tuple[FeatureExtractor | None, Lite0 | None, list[str]]:
    """The extractor, the network of the distance, and a note where that cannot measure.

    It cannot where its weights are missing, or where the decoder was trained with it: an error only
    where it was asked for.
    """
    asked = name == "lite0" or (name is None and weights is not None)
    lite0, notes = None, []
    try:
        if trained_with.startswith(LITE0):
            raise UserError(f"the decoder was trained with {trained_with}")
        lite0 = load_lite0(weights if asked else None).to(device)
    except UserError as error:
        if asked:
            raise
        notes.append(f"left out what lite0 measures: {error}")
    name = name or ("none" if lite0 is None else "lite0")
    return None if name == "none" else open_extractor(name, weights, device), lite0, notes


def frechet_distances(
    extractor: FeatureExtractor,
    tokenizer: Tokenizer,
    codes: Tensor,
    images: Selection,
    lengths: Sequence[int],
    decoder: str = FAITHFUL,
) -> list[float]:
    """The rFID of reconstructions at each prefix length.

    Args:
        extractor: Computes the features.
        tokenizer: Decodes the codes.
        codes: int64 (n, N).
        images: The n originals.
        lengths: Prefix lengths.
        decoder: Which of its decoders.
    """
    originals = statistics_of(extractor(images, label="features of originals"))
    distances = []
    for k in lengths:
        decoded = Reconstructions(tokenizer, codes[:, :k], decoder)
        found = statistics_of(extractor(decoded, label=f"features at k={k}"))
        distances.append(frechet_distance(found, originals))
    return distances


def picture_rows(psnrs: Tensor) -> dict[str, list[int]]:
    """Which of n images to show, two each, none twice: the best first, then median, then worst."""
    order = psnrs.argsort(descending=True).tolist()
    middle = max((len(order) - PICTURE_ROWS) // 2, PICTURE_ROWS)
    return {
        "best": order[:PICTURE_ROWS],
        "median": order[middle:-PICTURE_ROWS][:PICTURE_ROWS],
        "worst": order[PICTURE_ROWS:][-PICTURE_ROWS:],
    }


def _measures(lite0: Lite0 | None) -> dict[str, Measure]:
    measures: dict[str, Measure] = {"psnr": psnr, "ssim": ssim}
    if lite0 is not None:
        measures["lite0_distance"] = functools.partial(lite0_distance, lite0)
    return measures


def _panels(rows: Sequence[dict[str, Any]], label: str) -> list[Panel]:
    bits = [row["bits"] for row in rows]
    return [
        Panel(
            column.title,
            "bits of an image",
            {label: (bits, [row[column.key] for row in rows])},
            log=True,
        )
        for column in MEASURED
        if column.key in rows[0]
    ]
