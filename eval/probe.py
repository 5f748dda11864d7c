"""Command: what codes understand: classes told from the first k of them, and nearest images."""

import argparse
import importlib.util
import itertools
import sys
import time
from collections.abc import Callable, Sequence
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from eval.report.options import (
    add_data,
    add_report,
    add_tokenizer,
    report_path,
    typed,
)
from pqvae.cli import Parser, command, positive_int
from pqvae.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

    from eval.report.plot import Panel
    from eval.report.report import Column
    from pqvae.data.config import DataConfig
    from pqvae.data.dataset import ImageDataset
    from stage1_tokenizer import Tokenizer

SEED = 0  # of the random encoder, the softmax regression and the spatial VQ-VAE
VQVAE_STEPS = 400  # about a minute on two cores

EXAMPLES = """\
  python -m eval.probe
  python -m eval.probe --tokenizer runs/cifar10 --train-n 10000 --test-n 2000
  python -m eval.probe --data my/class-folders --vqvae-steps 0 --json my-probe.json"""

NOTES = (
    "linear: ridge regression on one-hot classes, its strength chosen on val; for one-hot codes "
    "softmax regression, stopped by val; chance: always the most frequent class of train",
    "10-NN: the most frequent class of the 10 nearest train images, of equally frequent ones that "
    "of the nearest image; by Euclidean distance, for one-hot codes by Hamming distance",
    "P@10: share of the 10 nearest other test images that are of an image's class",
    "shift (1 pixel), JPEG (quality 75), bright (+10%): share of test images that, changed so, "
    "find themselves unchanged as the nearest of all test images",
    "shared prefix: the longest common prefix is the nearest, then f_N decides; images that are "
    "equally near come in a fixed random order",
    "decoder's features: Tokenizer.features of the first k codes, nothing else of the image",
    "f_k has all dimensions of the latent; PCA, fitted on train, has k",
    "random encoder: the same architecture before training, but no convolution starts at zero",
)
LIBRARY = "vector-quantize-pytorch"


@command
def main(argv: Sequence[str] | None = None) -> None:
    arguments = list(sys.argv[1:] if argv is None else argv)
    args = _parser().parse_args(arguments)
    started = time.monotonic()
    output = report_path(args.json, args.tokenizer / "probe.json")
    if args.vqvae_steps < 0:
        raise UserError(f"--vqvae-steps {args.vqvae_steps}: give 0, for none, or more")

    from eval.measures.representations import PCA, classify, describe, network_features, open_splits
    from eval.measures.retrieval import draw_hits, retrieve
    from eval.report.plot import save_plot
    from eval.report.report import format_report, make_report, write_report
    from eval.subjects.tokenized import data_facts, open_tokenizer, tokenizer_facts
    from pqvae.runtime import select_device
    from stage1_tokenizer.prefixes import prefix_grid

    device = select_device(args.device)
    tokenizer, data = open_tokenizer(args.tokenizer, args.data, device)
    splits = open_splits(data, args.train_n, args.test_n)
    lengths = prefix_grid(tokenizer.num_codes)
    networks, notes = _networks(tokenizer, data, splits["train"].dataset, args.vqvae_steps)
    features = {
        name: {
            split: network_features(images, network, device, f"{name}, {split}")
            for split, images in splits.items()
        }
        for name, network in networks.items()
    }
    described = {
        split: describe(tokenizer, images, f"encoding {split}") for split, images in splits.items()
    }
    classified = classify(tokenizer, splits, described, features, lengths, SEED)
    retrieved, neighbours = retrieve(tokenizer, splits["test"], described["test"], lengths)
    costs = list(itertools.accumulate(tokenizer.config.quantizer.bits))
    rows = [
        {
            "representation": name,
            "k": k,
            "bits": costs[k - 1] if k and name != PCA else None,
            **classified.get((name, k), {}),
            **retrieved.get((name, k), {}),
        }
        for name, k in classified | retrieved
    ]
    report = make_report(
        rows,
        {
            **{split: data_facts(one.dataset, one.indices) for split, one in splits.items()},
            "classes": {"number": len(splits["train"].dataset.class_names)},
            "tokenizer": tokenizer_facts(tokenizer, args.tokenizer),
            "probe": {"seed": SEED, "vqvae_steps": args.vqvae_steps},
        },
        notes,
        device=device,
        command=typed("eval.probe", arguments),
        started=started,
    )
    print(format_report(report, _columns()), flush=True)
    write_report(report, output)
    plot, picture = output.with_suffix(".png"), output.with_name(f"{output.stem}-hits.png")
    drawn = save_plot(plot, _panels(rows, lengths))
    draw_hits(picture, splits["test"], neighbours)
    look = f"look at {plot}" if drawn else "no plot: matplotlib is not installed"
    print(f"\nwrote {output}; {look}")
    print(
        f"made {picture}: a test image of each class, below it those that share the longest prefix "
        "with it, and how many of these are of its class"
    )


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        "eval.probe",
        "Measure what the first k codes tell of an image: its class, and which are like it.",
        EXAMPLES,
    )
    add = parser.add_argument
    add_tokenizer(parser)
    add_data(parser)
    add("--train-n", type=positive_int, metavar="N", help="a fixed random subset of N train images")
    add("--test-n", type=positive_int, metavar="N", help="the same of the test images")
    add(
        "--vqvae-steps",
        type=int,
        default=VQVAE_STEPS,
        metavar="N",
        help="train the spatial VQ-VAE to compare with for N steps (default: %(default)s; 0: none)",
    )
    add_report(parser, "DIR/probe.json")
    return parser


def _networks(
    tokenizer: "Tokenizer", data: "DataConfig", train: "ImageDataset", vqvae_steps: int
) -> "tuple[dict[str, Callable[[Tensor], Tensor]], list[str]]":
    """Networks to compare with, on the tokenizer's device, and all notes."""
    from eval.measures.representations import random_encoder

    device, architecture = tokenizer.device, tokenizer.config.architecture
    networks: dict[str, Callable[[Tensor], Tensor]] = {
        "random encoder": random_encoder(architecture, SEED).to(device)
    }
    if not vqvae_steps:
        return networks, [*NOTES]
    if importlib.util.find_spec(LIBRARY.replace("-", "_")) is None:
        missing = f"left out: the spatial VQ-VAE needs {LIBRARY}; pip install -e '.[benchmarks]'"
        return networks, [*NOTES, missing]
    from eval.spatial_vq import ENTRIES, train_spatial_vq

    model = train_spatial_vq(architecture, data, train, vqvae_steps, SEED, device)
    networks["spatial VQ-VAE, pooled"] = model.histograms
    note = (
        f"spatial VQ-VAE: the same architecture, {vqvae_steps} steps in this run, {LIBRARY} "
        f"{version(LIBRARY)}; a code of {ENTRIES} for each of {model.places} places, of which only "
        "the counts are kept"
    )
    return networks, [*NOTES, note]


def _columns() -> "list[Column]":
    from eval.report.report import Column

    return [
        Column("representation", "representation, %"),
        Column("k", "k"),
        Column("bits", "bits", 0),
        Column("dimensions", "dims"),
        Column("linear", "linear"),
        Column("knn", "10-NN"),
        Column("precision", "P@10"),
        Column("shift", "shift"),
        Column("jpeg", "JPEG"),
        Column("brightness", "bright"),
    ]


def _panels(rows: Sequence[dict[str, Any]], lengths: Sequence[int]) -> "list[Panel]":
    from eval.measures.retrieval import PREFIX
    from eval.report.plot import Panel

    def panel(key: str, title: str) -> Panel:
        lines: dict[str, tuple[list[int], list[float]]] = {}
        for row in rows:
            if row["representation"] == PREFIX:  # one point is no line
                continue
            if key in row and row["k"] is None:
                lines[row["representation"]] = [1, lengths[-1]], [row[key]] * 2
            elif key in row:
                places, values = lines.setdefault(row["representation"], ([], []))
                places.append(row["k"])
                values.append(row[key])
        return Panel(title, "codes k, or dimensions of the PCA", lines, log=True)

    return [
        panel("linear", "accuracy of a linear probe, %"),
        panel("knn", "accuracy of 10 nearest neighbours, %"),
        panel("precision", "nearest 10 test images of the same class, %"),
    ]


if __name__ == "__main__":
    sys.exit(main())
