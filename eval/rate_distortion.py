"""Command: rate against distortion at every prefix, and what each stretch of codes gains.

Rates are the fixed length, sum of log2 K_i, and the prior's cross-entropy on held-out images, which
an arithmetic coder comes within two bits of. Both stages must not have seen the images: on those of
the training, a prior can cost as little as it remembers.

With a Gaussian of variance MSE_k around the image decoded from k codes, the codes k + 1 ... k' are
worth (D / 2) log2(MSE_k / MSE_k') bits about its D values. Far fewer than they cost: starved codes.
"""

import argparse
import dataclasses
import math
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eval.report.options import (
    add_beam,
    add_data,
    add_report,
    report_path,
    typed,
)
from pqvae.cli import Parser, command, positive_int
from pqvae.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

    from eval.report.plot import Panel
    from eval.report.report import Column
    from stage2_prior import Prior

EXAMPLES = """\
  python -m eval.rate_distortion
  python -m eval.rate_distortion --prior runs/photos-prior --n 1000 --beam 8
  python -m eval.rate_distortion --prior none --tokenizer runs/tokenizer"""

NO_PRIOR = Path("none")
TRAIN_IMAGES = 10_000  # training images at most, for the prior's bits and the mean image
RATES = {  # by the name that the keys of a row begin with
    "fixed": "fixed length",
    "prior": "prior",
    "class_prior": "prior given the class",
}


@command
def main(argv: Sequence[str] | None = None) -> None:
    arguments = list(sys.argv[1:] if argv is None else argv)
    args = _parser().parse_args(arguments)
    started = time.monotonic()
    with_prior = args.prior != NO_PRIOR
    folder = args.tokenizer or Path("runs/tokenizer")
    output = report_path(args.json, (args.prior if with_prior else folder) / "rate_distortion.json")
    if with_prior and not args.prior.is_dir():
        raise UserError(
            f"{args.prior}: no prior here; run python -m stage2_prior.train, or give --prior DIR, "
            "or --prior none"
        )

    import torch

    from eval.measures.rates import TRAIN, mean_image, measure_psnr, prefix_rows, prior_bits
    from eval.report.plot import save_plot
    from eval.report.report import format_report, make_report, write_report
    from eval.subjects.tokenized import (
        asked_subset,
        data_facts,
        encode,
        open_tokenizer,
        subset,
        tokenizer_facts,
    )
    from pqvae.config import load_config
    from pqvae.data.dataset import open_dataset
    from pqvae.runtime import select_device
    from stage1_tokenizer.prefixes import prefix_grid
    from stage2_prior import Prior
    from stage2_prior.config import Config as PriorRunConfig

    device = select_device(args.device)
    prior = Prior.from_pretrained(args.prior).to(device) if with_prior else None
    if with_prior and not args.tokenizer:
        folder = Path(load_config(PriorRunConfig, args.prior / "config.yaml", []).tokenizer)
    tokenizer, data = open_tokenizer(folder, args.data, device)
    if prior is not None and prior.tokenizer_hash != tokenizer.content_hash:
        raise UserError(
            f"{args.prior} was trained on tokenizer {prior.tokenizer_hash[:8]}, but {folder} is "
            f"{tokenizer.content_hash[:8]}; train the prior again, or pass --tokenizer"
        )
    train, test = open_dataset(data, "train"), open_dataset(data, "test")
    seen, held_out = subset(len(train), TRAIN_IMAGES), asked_subset(test, args.n, "--n")

    codes = encode(tokenizer, test, held_out, args.beam)
    rates = {"fixed": torch.tensor(tokenizer.config.quantizer.bits, dtype=torch.float64)}
    facts = {
        "test": data_facts(test, held_out),
        "train": data_facts(train, seen),
        "tokenizer": tokenizer_facts(tokenizer, folder) | {"beam": args.beam},
    }
    if prior is not None:
        rates |= prior_bits(prior, codes, test, held_out)
        on_train = prior_bits(prior, encode(tokenizer, train, seen, args.beam), train, seen)
        rates |= {f"{TRAIN}{name}": bits for name, bits in on_train.items()}
        facts["prior"] = {"folder": str(args.prior), "content": prior.content_hash}
    psnrs = measure_psnr(tokenizer, test, held_out, codes, mean_image(train, seen))
    size = tokenizer.config.image_size
    rows = prefix_rows(psnrs, rates, prefix_grid(tokenizer.num_codes), size)
    report = make_report(
        rows,
        facts,
        _notes(prior, rates, size, args.beam),
        device=device,
        command=typed("eval.rate_distortion", arguments),
        started=started,
    )
    shown = tuple(row for row in rows if row["codes"] == 0 or "gained_bits" in row)
    print(format_report(dataclasses.replace(report, rows=shown), _columns(rates)), flush=True)
    write_report(report, output)
    plot = output.with_suffix(".png")
    drawn = save_plot(plot, _panels(rows, rates))
    look = f"look at {plot}" if drawn else "no plot: matplotlib is not installed"
    print(f"\nwrote {output}, with every prefix length; {look}")


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        "eval.rate_distortion",
        "Measure bits against distortion on the test split, at every prefix length.",
        EXAMPLES,
    )
    add = parser.add_argument
    add(
        "--prior",
        type=Path,
        default=Path("runs/prior"),
        metavar="DIR",
        help="run folder of stage 2, or none for fixed-length bits only (default: %(default)s)",
    )
    add(
        "--tokenizer",
        type=Path,
        metavar="DIR",
        help="run folder of stage 1 (default: the prior's own; without a prior runs/tokenizer)",
    )
    add_data(parser)
    add("--n", type=positive_int, metavar="N", help="a fixed random subset of N test images")
    add_beam(parser)
    add_report(parser, "DIR/rate_distortion.json")
    return parser


def _columns(rates: "Mapping[str, Tensor]") -> "list[Column]":
    from eval.report.report import Column

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


def _panels(rows: Sequence[dict[str, Any]], rates: "Mapping[str, Tensor]") -> "list[Panel]":
    from eval.report.plot import Panel

    shown = {name: label for name, label in RATES.items() if name in rates}
    segments = [row for row in rows if "gained_bits" in row]
    codes = range(1, len(rows))
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
            label: (codes, column(f"{name}_bits_of_last_code")) for label, name in by_code.items()
        }
        panels.append(Panel(f"bits of each code, {RATES[best]}", "position", lines))
    return panels


def _best(rates: "Mapping[str, Tensor]") -> str:
    return "class_prior" if "class_prior" in rates else "prior"


def _notes(prior: "Prior | None", rates: "Mapping[str, Tensor]", size: int, beam: int) -> list[str]:
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
        notes.append("nothing given the class: the images have other classes than the prior knows")
    if beam > 1:
        notes.append("the prior was trained on greedy codes; those of a beam are foreign to it")
    return notes


if __name__ == "__main__":
    sys.exit(main())
