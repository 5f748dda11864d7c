"""The report of ``eval.rate_distortion``: bits and errors at every prefix length, with a plot."""

import argparse
import dataclasses
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from eval.measures.distortion import measure
from eval.measures.rates import TRAIN, mean_image, prefix_rows, prior_bits
from eval.report.options import Request
from eval.report.report import Column, format_report, make_report, write_report
from eval.subjects.selection import Selection, asked_subset, subset
from eval.subjects.tokenized import data_of, encode, load_tokenizer, tokenizer_facts
from pqvae.data.batches import map_images
from pqvae.data.dataset import open_dataset
from pqvae.images import psnr
from pqvae.plots import NO_PLOT, Panel, save_plot
from pqvae.runtime import select_device
from stage1_tokenizer import Tokenizer
from stage1_tokenizer.prefixes import prefix_grid
from stage2_prior import Prior
from stage2_prior.provenance import open_tokenizer_of

TRAIN_IMAGES = 10_000  # training images at most, for the prior's bits and the mean image
RATES = {  # by the name that the keys of a row begin with
    "fixed": "fixed length",
    "prior": "prior",
    "class_prior": "prior given the class",
}


def report_rate_distortion(args: argparse.Namespace, request: Request) -> None:
    """Measure rate and distortion as the command's arguments say."""
    device = select_device(args.device)
    prior, tokenizer, folder = open_models(args.prior, args.tokenizer, device)
    data = data_of(tokenizer, folder, args.data)
    train, test = open_dataset(data, "train"), open_dataset(data, "test")
    seen, held_out = subset(train, TRAIN_IMAGES), asked_subset(test, args.n, "--n")

    cuts = list(tokenizer.quantizer.cuts)
    codes, values = measure(tokenizer, held_out, cuts, {"psnr": psnr}, args.beam)
    start = mean_image(seen)
    nothing = map_images(held_out, range(len(held_out)), lambda batch: psnr(start, batch))
    psnrs = torch.cat([nothing.unsqueeze(1), values["psnr"]], dim=1)
    rates = {"fixed": torch.tensor(tokenizer.quantizer.bits, dtype=torch.float64)}
    facts = {
        "test": held_out.facts(),
        "train": seen.facts(),
        "tokenizer": tokenizer_facts(tokenizer, folder) | {"beam": args.beam},
    }
    if prior is not None:
        rates |= prior_bits(prior, codes, held_out)
        on_train = prior_bits(prior, encode(tokenizer, seen, args.beam), seen)
        rates |= {f"{TRAIN}{name}": bits for name, bits in on_train.items()}
        facts["prior"] = {"folder": str(args.prior), "content": prior.content_hash}
    size = tokenizer.config.image_size
    rows = prefix_rows(psnrs, rates, cuts, prefix_grid(cuts), size)
    notes = _notes(prior, held_out, rates, size, args.beam)
    report = make_report(rows, facts, notes, device, request)
    write_report(report, request.output)
    plot = request.output.with_suffix(".png")
    look = f"look at {plot}" if save_plot(plot, _panels(rows, rates)) else NO_PLOT
    shown = tuple(row for row in rows if row["codes"] == 0 or "gained_bits" in row)
    print(format_report(dataclasses.replace(report, rows=shown), _columns(rates)), flush=True)
    print(f"\nwrote {request.output}, with every prefix length; {look}")


def open_models(
    prior_folder: Path | None, given: Path | None, device: torch.device
) -> tuple[Prior | None, Tokenizer, Path]:
    """The prior, if there is to be one, and its tokenizer with the folder of that.

    Raises:
        UserError: One of them is missing, or they do not belong together.
    """
    if prior_folder is None:
        assert given is not None  # the command has a default
        return None, load_tokenizer(given, device), given
    prior = Prior.from_pretrained(prior_folder).to(device)
    tokenizer, folder = open_tokenizer_of(prior, prior_folder, given)
    return prior, tokenizer.to(device), folder


def _columns(rates: Mapping[str, Tensor]) -> list[Column]:
    best = _best(rates)
    return [
        Column("codes", "codes"),
        Column("fixed_bits", "bits", 1),
        Column("prior_bits", "prior", 1),
        Column("class_prior_bits", "given class", 1),
        Column(f"train_{best}_bits", "on train", 1),
        Column("fixed_bits_per_pixel", "bpp", 3),
        Column(f"{best}_bits_per_pixel", "prior's bpp", 3),
        Column("psnr", "PSNR", 2),
        Column("mse", "MSE", 5),
        Column("gained_bits", "gained", 1),
        Column("gained_per_fixed_bit", "per bit", 2),
        Column(f"gained_per_{best}_bit", "per prior's bit", 2),
    ]


def _panels(rows: Sequence[dict[str, Any]], rates: Mapping[str, Tensor]) -> list[Panel]:
    shown = {name: label for name, label in RATES.items() if name in rates}
    segments = [row for row in rows if "gained_bits" in row]
    best = _best(rates)
    by_code = {"log2 K": "fixed", "test": best, "train": f"train_{best}"}

    def column(key: str) -> list[float]:
        return [row[key] for row in rows[1:]]

    def ratio(name: str) -> tuple[list[float], list[float]]:
        key = f"gained_per_{name}_bit"
        known = [row for row in segments if row[key] is not None]
        return [row["codes"] for row in known], [row[key] for row in known]

    panels = [
        Panel(
            "PSNR on test images, dB",
            "bits of an image",
            {label: (column(f"{name}_bits"), column("psnr")) for name, label in shown.items()},
        ),
        Panel(
            "bits gained for each bit spent, in the segment that ends here",
            "codes",
            {label: ratio(name) for name, label in shown.items()},
            log=True,
            log_up=True,
        ),
    ]
    if best in rates:
        lines = {
            label: (column("codes"), column(f"{name}_bits_of_last_code"))
            for label, name in by_code.items()
            if name in rates  # not that of train images without the classes of the test images
        }
        panels.append(Panel(f"bits of each code, {RATES[best]}", "position", lines))
    return panels


def _best(rates: Mapping[str, Tensor]) -> str:
    return "class_prior" if "class_prior" in rates else "prior"


def _notes(
    prior: Prior | None, held_out: Selection, rates: Mapping[str, Tensor], size: int, beam: int
) -> list[str]:
    notes = [
        "bits are means over the images; PSNR is the mean of each image's, MSE (of images in "
        "[-1, 1]) that of all; 0 codes: the mean training image",
        f"gained: {3 * size**2 // 2:,} log2 of the ratio of MSE since the row above, what a "
        "Gaussian of that variance makes of it",
    ]
    if prior is None:
        return notes
    notes.append("a prior's bits are ideal: an arithmetic coder adds about 2, and k must be known")
    if "class_prior" in rates:
        most = math.log2(len(prior.class_names))
        notes.append(
            "given class, on train, prior's bpp and per prior's bit are of the prior told the "
            f"class; what that costs, {most:.1f} bits at most, is not counted"
        )
    elif prior.class_names:
        have = "no" if held_out.labels is None else "other"
        known = "" if held_out.labels is None else " than the prior knows"
        notes.append(f"nothing given the class: the test images have {have} classes{known}")
    if beam > 1:
        notes.append("the prior was trained on greedy codes; those of a beam are foreign to it")
    return notes
