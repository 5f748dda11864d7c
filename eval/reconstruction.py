"""Command: what is lost at k = 1, 2, 4 ... N codes: PSNR, SSIM, perceptual distance and rFID.

rFID is the Frechet distance of the reconstructions from the very images that they are of, so a
perfect tokenizer has 0 whatever their number. KID, which supposes independent sets, is left out: of
such pairs it is too low.
"""

import argparse
import functools
import itertools
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from eval.report.options import (
    add_beam,
    add_data,
    add_report,
    add_tokenizer,
    add_weights,
    report_path,
    typed,
)
from pqvae.cli import Parser, command, positive_int
from pqvae.errors import UserError

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from eval.networks.extractors import Extractor, ExtractorName
    from eval.networks.lite0 import Lite0
    from eval.report.plot import Panel
    from eval.report.report import Column
    from pqvae.data.dataset import ImageDataset
    from stage1_tokenizer import Tokenizer

EXTRACTORS = ("inception", "lite0", "none")
SPLITS = ("train", "val", "test")
PICTURE_ROWS = 2  # of the best, the median and the worst images each

EXAMPLES = """\
  python -m eval.reconstruction
  python -m eval.reconstruction --extractor inception
  python -m eval.reconstruction --tokenizer runs/photos --split val --n 500 --refine 8"""


@command
def main(argv: Sequence[str] | None = None) -> None:
    arguments = list(sys.argv[1:] if argv is None else argv)
    args = _parser().parse_args(arguments)
    started = time.monotonic()
    output = report_path(args.json, args.tokenizer / "reconstruction.json")
    if args.extractor == "none" and args.weights:
        raise UserError("--weights is the file of an extractor, but --extractor is none")

    from eval.measures.generation import score_name
    from eval.networks.extractors import extractor_facts
    from eval.report.plot import save_plot
    from eval.report.report import format_report, make_report, write_report
    from eval.subjects.tokenized import asked_subset, data_facts, open_tokenizer, tokenizer_facts
    from pqvae.data.dataset import open_dataset
    from pqvae.runtime import select_device
    from stage1_tokenizer.prefixes import prefix_grid, save_prefix_grid

    device = select_device(args.device)
    tokenizer, data = open_tokenizer(args.tokenizer, args.data, device)
    dataset = open_dataset(data, args.split)
    indices = asked_subset(dataset, args.n, "--n")
    extractor, lite0, notes = _networks(args.extractor, args.weights, device)
    if extractor is not None and len(indices) < 2:
        raise UserError(f"{dataset.name}: rFID needs 2 images or more; pass --extractor none")

    lengths = prefix_grid(tokenizer.num_codes)
    search = {"beam": args.beam, "refine": args.refine}
    codes, values = measure(tokenizer, dataset, indices, lengths, lite0, **search)
    bits = list(itertools.accumulate(tokenizer.config.quantizer.bits))
    table: dict[str, Sequence[float]] = {"codes": lengths, "bits": [bits[k - 1] for k in lengths]}
    table |= {name: of_images.double().mean(1).tolist() for name, of_images in values.items()}
    facts: dict[str, dict[str, Any]] = {
        "images": data_facts(dataset, indices),
        "tokenizer": tokenizer_facts(tokenizer, args.tokenizer) | search,
        "ssim": {"window": "11x11 Gaussian of sigma 1.5", "over": "red, green and blue"},
    }
    if lite0 is not None:
        facts["distance"] = distance_facts()
    if extractor is not None:
        name = "r" + score_name("fid", extractor)
        table[name] = frechet_distances(extractor, tokenizer, codes, dataset, indices, lengths)
        facts["extractor"] = extractor_facts(extractor)
        if len(indices) < extractor.dimensions:
            notes.append(
                f"{name} of {len(indices):,} images, fewer than its {extractor.dimensions:,} "
                "features, is biased upwards; compare it at equal counts only"
            )
    rows = [dict(zip(table, row, strict=True)) for row in zip(*table.values(), strict=True)]
    shown = picture_rows(values["psnr"][-1])
    facts["picture"] = {
        title: [dataset.keys[indices[place]] for place in places] for title, places in shown.items()
    }
    report = make_report(
        rows,
        facts,
        notes,
        device=device,
        command=typed("eval.reconstruction", arguments),
        started=started,
    )
    print(format_report(report, _columns()), flush=True)
    write_report(report, output)
    picture, plot = output.with_name(f"{output.stem}-images.png"), output.with_suffix(".png")
    images = dataset.images([indices[place] for places in shown.values() for place in places])
    save_prefix_grid(picture, tokenizer, images, lengths, **search)
    drawn = save_plot(plot, _panels(rows, dataset.name))
    look = f"{plot} and {picture}" if drawn else f"{picture} (no plot: matplotlib is not installed)"
    print(f"\nwrote {output}; look at {look}: {', '.join(shown)} images by PSNR, original last")


def measure(
    tokenizer: "Tokenizer",
    dataset: "ImageDataset",
    indices: Sequence[int],
    lengths: Sequence[int],
    lite0: "Lite0 | None" = None,
    beam: int = 1,
    refine: int = 0,
) -> "tuple[Tensor, dict[str, Tensor]]":
    """Encode images once, and compare what prefixes of their codes decode to with the originals.

    Args:
        tokenizer: On the device to work on.
        dataset: The originals.
        indices: Which of them, n.
        lengths: Prefix lengths, L.
        lite0: The network of the perceptual distance; None for no such distance.
        beam: As in ``Tokenizer.encode``.
        refine: As in ``Tokenizer.encode``.

    Returns:
        Codes, int64 (n, N), and "psnr" in dB, "ssim" and "lite0_distance" of each image, (L, n);
        all on the CPU.
    """
    import torch

    from eval.measures.distortion import lite0_distance, ssim
    from eval.subjects.tokenized import chunk_size, decode
    from pqvae.console import Progress
    from pqvae.images import psnr, to_float

    measures: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"psnr": psnr, "ssim": ssim}
    if lite0 is not None:
        measures["lite0_distance"] = functools.partial(lite0_distance, lite0)
    device = tokenizer.device
    progress = Progress("reconstructing", len(indices))
    codes: list[Tensor] = []
    values: dict[str, list[Tensor]] = {name: [] for name in measures}
    with torch.inference_mode():
        for chunk in torch.tensor(indices).split(chunk_size(dataset.image_size)):
            originals = dataset.images(chunk)
            codes.append(tokenizer.encode(to_float(originals).to(device), beam, refine).cpu())
            decoded = [decode(tokenizer, codes[-1][:, :k]) for k in lengths]
            for name, of in measures.items():
                rows = [of(images, originals).cpu() for images in decoded]
                values[name].append(torch.stack(rows))
            progress.advance(len(chunk))
    progress.close()
    return torch.cat(codes), {name: torch.cat(parts, 1) for name, parts in values.items()}


def frechet_distances(
    extractor: "Extractor",
    tokenizer: "Tokenizer",
    codes: "Tensor",
    dataset: "ImageDataset",
    indices: Sequence[int],
    lengths: Sequence[int],
) -> list[float]:
    """The rFID of reconstructions at each prefix length.

    Args:
        extractor: The feature network.
        tokenizer: Decodes the codes.
        codes: int64 (n, N).
        dataset: The originals.
        indices: Which of them the codes are of, n.
        lengths: Prefix lengths.
    """
    from eval.measures.statistics import frechet_distance, statistics_of
    from eval.networks.features import default_cache, extract
    from eval.subjects.tokenized import Reconstructions

    device = tokenizer.device
    features = functools.partial(extract, extractor, device=device, cache=default_cache())
    originals = statistics_of(features(dataset, indices, label="features of originals"))
    distances = []
    for k in lengths:
        images = Reconstructions(tokenizer, codes[:, :k])
        found = features(images, range(len(images)), label=f"features at k={k}")
        distances.append(frechet_distance(statistics_of(found), originals))
    return distances


def picture_rows(psnrs: "Tensor") -> dict[str, list[int]]:
    """Which of n images to show, two each, none twice: the best first, then median, then worst."""
    order = psnrs.argsort(descending=True).tolist()
    middle = max((len(order) - PICTURE_ROWS) // 2, PICTURE_ROWS)
    return {
        "best": order[:PICTURE_ROWS],
        "median": order[middle:-PICTURE_ROWS][:PICTURE_ROWS],
        "worst": order[PICTURE_ROWS:][-PICTURE_ROWS:],
    }


def distance_facts() -> dict[str, Any]:
    """What a report must say of the perceptual distance."""
    from eval.measures import distortion
    from eval.networks import lite0

    return {
        "network": "efficientnet-lite0",
        "stem_and_blocks": distortion.BLOCKS,
        "enlarged_to_at_least": distortion.LEAST_SIDE,
        "weights": f"{lite0.PACKAGE} {lite0.PACKAGE_VERSION}",
        "sha256": lite0.WEIGHTS_SHA256,
    }


def _networks(
    name: 'ExtractorName | Literal["none"] | None', weights: Path | None, device: "torch.device"
) -> "tuple[Extractor | None, Lite0 | None, list[str]]":
    """The extractor, the network of the distance, and a note where weights are missing.

    Missing weights are an error only where they were asked for.
    """
    from eval.networks.extractors import load_extractor
    from eval.networks.lite0 import load_network

    asked = name == "lite0" or (name is None and weights is not None)
    lite0, notes = None, []
    try:
        lite0 = load_network(weights if asked else None).to(device)
    except UserError as error:
        if asked:
            raise
        notes.append(f"left out what lite0 measures: {error}")
    name = name or ("none" if lite0 is None else "lite0")
    return None if name == "none" else load_extractor(name, weights), lite0, notes


def _columns() -> "list[Column]":
    from eval.report.report import Column

    return [
        Column("codes", "codes"),
        Column("bits", "bits", 0),
        Column("psnr", "PSNR, dB", 2),
        Column("ssim", "SSIM", 4),
        Column("lite0_distance", "lite0 distance", 4),
        Column("rfid", "rFID", 2),
        Column("rfd_lite0", "rfd_lite0", 2),
    ]


def _panels(rows: Sequence[dict[str, Any]], label: str) -> "list[Panel]":
    from eval.report.plot import Panel

    bits = [row["bits"] for row in rows]
    return [
        Panel(
            column.title,
            "bits of an image",
            {label: (bits, [row[column.key] for row in rows])},
            log=True,
        )
        for column in _columns()[2:]
        if column.key in rows[0]
    ]


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        "eval.reconstruction",
        "Measure what prefixes of codes keep of the images, with a plot and a picture.",
        EXAMPLES,
    )
    add = parser.add_argument
    add_tokenizer(parser)
    add_data(parser)
    add("--split", choices=SPLITS, default="test", help="(default: %(default)s)")
    add("--n", type=positive_int, metavar="N", help="a fixed random subset of N images")
    add(
        "--extractor",
        choices=EXTRACTORS,
        help="network of rFID: inception, several times slower, or lite0, whose column is "
        "rfd_lite0, no FID (default: lite0, if it is installed)",
    )
    add_weights(parser)
    add_beam(parser)
    add(
        "--refine",
        type=positive_int,
        default=0,
        metavar="R",
        help="times to correct the codes by what they decode to (default: none)",
    )
    add_report(parser, "DIR/reconstruction.json")
    return parser


if __name__ == "__main__":
    sys.exit(main())
