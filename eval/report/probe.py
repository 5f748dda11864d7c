"""The report of ``eval.probe``: accuracies and retrieval of every representation, with pictures."""

import argparse
import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import sklearn

from eval.measures.representations import (
    PCA,
    Others,
    Splits,
    classify,
    counts,
    describe,
    network_features,
    open_splits,
    random_encoder,
    shares_books,
)
from eval.measures.retrieval import PREFIX, draw_hits, retrieve
from eval.report.options import Request
from eval.report.report import Column, format_report, make_report, write_report
from eval.subjects.tokenized import data_of, encode, load_tokenizer, tokenizer_facts
from pqvae.errors import UserError
from pqvae.plots import NO_PLOT, Panel, save_plot
from pqvae.runtime import select_device
from stage1_tokenizer import Tokenizer
from stage1_tokenizer.prefixes import prefix_grid

SEED = 0  # of the random encoder
RANDOM = "random encoder"
COLUMNS = (
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
)
NOTES = (
    "linear: ridge regression on one-hot classes, for one-hot codes softmax regression, the "
    "strength of the penalty chosen on val; chance: always the most frequent class of train",
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
COUNTED = (
    "codes, counted: how often an image uses each entry of the codebooks; where it is used is not "
    "kept, as by a code for each place"
)


def report_probe(args: argparse.Namespace, request: Request) -> None:
    """Probe representations as the command's arguments say."""
    device = select_device(args.device)
    tokenizer = load_tokenizer(args.tokenizer, device)
    others = {folder: load_tokenizer(folder, device, "--against") for folder in args.against}
    _check_sizes(tokenizer, others)
    splits = open_splits(data_of(tokenizer, args.tokenizer, args.data), args.train_n, args.test_n)
    lengths = prefix_grid(tokenizer.quantizer.cuts)
    compared = compared_with(tokenizer, others, splits)
    described = {
        split: describe(tokenizer, images, f"encoding {split}") for split, images in splits.items()
    }
    classified = classify(tokenizer, splits, described, compared, lengths)
    retrieved, neighbours = retrieve(tokenizer, splits["test"], described["test"], lengths)
    costs = list(itertools.accumulate(tokenizer.quantizer.bits))
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
    facts = {
        **{split: images.facts() for split, images in splits.items()},
        "classes": {"number": len(splits["train"].dataset.class_names)},
        "tokenizer": tokenizer_facts(tokenizer, args.tokenizer),
        **{f"against {f}": tokenizer_facts(other, f) for f, other in others.items()},
        "probe": {"seed": SEED, "scikit-learn": sklearn.__version__},
    }
    notes = [*NOTES, COUNTED] if len(compared.features) > 1 else NOTES
    report = make_report(rows, facts, notes, device, request)
    write_report(report, request.output)
    plot = request.output.with_suffix(".png")
    picture = plot.with_name(f"{plot.stem}-hits.png")
    look = f"look at {plot}" if save_plot(plot, _panels(rows, lengths)) else NO_PLOT
    draw_hits(picture, splits["test"], neighbours)
    print(format_report(report, COLUMNS), flush=True)
    print(f"\nwrote {request.output}; {look}")
    print(
        f"made {picture}: a test image of each class, below it those that share the longest prefix "
        "with it, and how many of these are of its class"
    )


def compared_with(tokenizer: Tokenizer, others: dict[Path, Tokenizer], splits: Splits) -> Others:
    """What a tokenizer is compared with: a random encoder, and codes of other tokenizers.

    Codes whose codebooks are each read at several positions are counted: a code for each place, of
    which the place is forgotten. All others are kept by position.
    """
    encoder = random_encoder(tokenizer.config.architecture, SEED).to(tokenizer.device)
    features = {RANDOM: network_features(splits, encoder, tokenizer.device, RANDOM)}
    codes, sizes = {}, {}
    for folder, other in others.items():
        found = {split: encode(other, images) for split, images in splits.items()}
        quantizer = other.quantizer
        if shares_books(quantizer.books):
            features[f"codes of {folder}, counted"] = {
                split: counts(part, quantizer.books, quantizer.sizes)
                for split, part in found.items()
            }
        else:
            codes[f"codes of {folder}, one-hot"] = found
            sizes[f"codes of {folder}, one-hot"] = quantizer.sizes
    return Others(features, codes, sizes)


def _check_sizes(tokenizer: Tokenizer, others: dict[Path, Tokenizer]) -> None:
    size = tokenizer.config.image_size
    for folder, other in others.items():
        if other.config.image_size != size:
            raise UserError(
                f"--against {folder}: made for images of {other.config.image_size} pixels, but "
                f"those compared here have {size}"
            )


def _panels(rows: Sequence[dict[str, Any]], lengths: Sequence[int]) -> list[Panel]:
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
