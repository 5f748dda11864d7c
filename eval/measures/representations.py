"""Labelled images in every form that is compared, each asked for its classes in the same way."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from eval.measures.probes import (
    Labelled,
    Parts,
    accuracy,
    principal_components,
    score_codes,
    score_features,
)
from eval.subjects.selection import Selection, asked_subset
from pqvae.console import Progress
from pqvae.data.batches import map_images
from pqvae.data.config import DataConfig
from pqvae.data.dataset import open_dataset
from pqvae.data.sample import Split
from pqvae.errors import UserError
from pqvae.images import to_float, to_uint8
from stage1_tokenizer import Tokenizer
from stage1_tokenizer.config import ArchitectureConfig
from stage1_tokenizer.encoder import Encoder

CHUNK = 512  # codes decoded at once
PIXELS_SIDE = 32  # raw pixels of larger images are averaged to this side
SPLITS: tuple[Split, ...] = ("train", "val", "test")

# Names in tables and plots.
CHANCE, PIXELS, PCA = "chance", "pixels", "PCA of pixels, k dimensions"
FEATURES = "decoder's features"
PARTIAL, CODES, LATENT = "partial latent f_k", "codes, one-hot", "latent f, no codes"

Row = dict[str, Any]
Scores = dict[tuple[str, int | None], Row]  # by representation, and prefix length or dimensions
Change = Callable[[Tensor], Tensor]  # uint8 (B, 3, H, W) to the same
Splits = Mapping[Split, Selection]


@dataclass(frozen=True, slots=True)
class Described:
    """Images in the forms that need no training here; on the CPU."""

    pixels: Tensor  # uint8 (n, 3 * side * side)
    latents: Tensor  # float32 (n, D): f, before it is quantized
    codes: Tensor  # int64 (n, N)


@dataclass(frozen=True, slots=True)
class Others:
    """What a tokenizer is compared with, of every split."""

    features: Mapping[str, Mapping[Split, Tensor]]  # by their names, float32 (n, D)
    codes: Mapping[str, Mapping[Split, Tensor]]  # of other tokenizers, by their names, (n, N)
    sizes: Mapping[str, Sequence[int]]  # entries of the codebooks of these


def open_splits(data: DataConfig, train_n: int | None = None, test_n: int | None = None) -> Splits:
    """Open the splits of labelled data.

    Args:
        data: Where the images are.
        train_n: Use a fixed random subset of so many train images; all by default.
        test_n: The same of the test images.

    Raises:
        UserError: There are no classes, or too few images.
    """
    splits: dict[Split, Selection] = {}
    for split, n in zip(SPLITS, (train_n, None, test_n), strict=True):
        dataset = open_dataset(data, split)
        if dataset.labels is None or len(dataset.class_names) < 2:
            raise UserError(
                f"{dataset.name}: no classes to tell apart; put the images into class folders, or "
                "give others with --data"
            )
        splits[split] = asked_subset(dataset, n, f"--{split}-n")
    if len(splits["test"]) < 2:
        raise UserError(f"{splits['test'].dataset.name}: 1 image, but retrieval needs 2 or more")
    return splits


def labels_of(images: Selection) -> Tensor:
    """Classes, int64 (n,), of images that have some."""
    assert images.labels is not None  # as ``open_splits`` has seen
    return images.labels


def describe(
    tokenizer: Tokenizer, images: Selection, label: str, change: Change | None = None
) -> Described:
    """Encode images, changed before if asked for, on the tokenizer's device."""

    def forms(batch: Tensor) -> tuple[Tensor, ...]:
        batch = to_float(change(batch) if change else batch)
        moved = batch.to(tokenizer.device)
        # The encoder runs twice, so that codes are those of ``encode`` to the last bit.
        latents, codes = tokenizer.latents(moved), tokenizer.encode(moved)
        if batch.shape[-1] > PIXELS_SIDE:
            batch = F.adaptive_avg_pool2d(batch, PIXELS_SIDE)
        return to_uint8(batch).flatten(1), latents, codes

    return Described(*map_images(images, range(len(images)), forms, label))


def random_encoder(architecture: ArchitectureConfig, seed: int) -> Encoder:
    """An encoder that has learned nothing.

    Every convolution is drawn anew, those too that training starts at zero: with them it would be
    no more than a linear map.
    """
    torch.manual_seed(seed)
    encoder = Encoder(architecture)
    for module in encoder.modules():
        if isinstance(module, nn.Conv2d):
            module.reset_parameters()
    return encoder.eval()


def network_features(
    splits: Splits, network: Callable[[Tensor], Tensor], device: torch.device, name: str
) -> dict[Split, Tensor]:
    """What a network on this device makes of images (B, 3, H, W) in [-1, 1]: (n, D) of a split."""

    def features(batch: Tensor) -> Tensor:
        return network(to_float(batch).to(device))

    return {
        split: map_images(images, range(len(images)), features, f"{name}, {split}")
        for split, images in splits.items()
    }


def counts(codes: Tensor, books: Sequence[int], sizes: Sequence[int]) -> Tensor:
    """How often each entry of each codebook is used, wherever that is.

    Args:
        codes: int64 (B, N).
        books: Which codebook each position reads, numbered from 0.
        sizes: Entries of the codebook at each position.

    Returns:
        float32 (B, entries of all codebooks).
    """
    entries = dict(zip(books, sizes, strict=True))  # of each codebook
    begins = {book: sum(entries[b] for b in range(book)) for book in entries}
    columns = codes + torch.tensor([begins[book] for book in books], device=codes.device)
    found = torch.zeros(len(codes), sum(entries.values()), device=codes.device)
    return found.scatter_add_(1, columns, torch.ones_like(columns, dtype=found.dtype))


def shares_books(books: Sequence[int]) -> bool:
    """Whether every codebook is read at several positions, as by a code for each place."""
    return all(books.count(book) > 1 for book in books)


def partial_latents(tokenizer: Tokenizer, codes: Tensor, length: int) -> Tensor:
    """f_k of codes int64 (n, N): float32 (n, D), on the CPU."""
    return _of_prefixes(tokenizer, tokenizer.quantizer.decode, codes, length)


def decoder_features(tokenizer: Tokenizer, codes: Tensor, length: int) -> Tensor:
    """``Tokenizer.features`` of prefixes of codes int64 (n, N): float32 (n, F), on the CPU."""
    return _of_prefixes(tokenizer, tokenizer.features, codes, length)


@torch.no_grad()
def _of_prefixes(
    tokenizer: Tokenizer, function: Callable[[Tensor], Tensor], codes: Tensor, length: int
) -> Tensor:
    parts = codes[:, :length].split(CHUNK)
    return torch.cat([function(part.to(tokenizer.device)).cpu() for part in parts])


def classify(
    tokenizer: Tokenizer,
    splits: Splits,
    described: Mapping[Split, Described],
    others: Others,
    lengths: Sequence[int],
) -> Scores:
    """Score every representation.

    Args:
        tokenizer: Whose codes they are.
        splits: Train, val and test.
        described: The same, encoded.
        others: What it is compared with.
        lengths: Of the prefixes, ascending.

    Returns:
        For each, the accuracies in percent and what decided them.
    """
    labels = {split: labels_of(images) for split, images in splits.items()}
    most = accuracy(labels["train"].mode().values, labels["test"])
    scores: Scores = {(CHANCE, None): {"linear": most, "knn": most}}
    n = len(labels["test"])
    several = len(others.features) + len(others.codes)
    progress = Progress("probing", n * (2 + several + 4 * len(lengths)))

    def parts(features: Callable[[Split], Tensor]) -> Parts:
        return {split: Labelled(features(split), known) for split, known in labels.items()}

    def add(name: str, k: int | None, features: Callable[[Split], Tensor]) -> None:
        scores[name, k] = score_features(parts(features))
        progress.advance(n)

    def add_codes(
        name: str, k: int | None, codes: Callable[[Split], Tensor], sizes: Sequence[int]
    ) -> None:
        scores[name, k] = score_codes(parts(codes), sizes)
        progress.advance(n)

    add(PIXELS, None, lambda split: to_float(described[split].pixels))
    add(LATENT, None, lambda split: described[split].latents)
    for k in lengths:
        add(FEATURES, k, lambda split, k=k: decoder_features(tokenizer, described[split].codes, k))
    for k in lengths:
        add(PARTIAL, k, lambda split, k=k: partial_latents(tokenizer, described[split].codes, k))
    for k in lengths:
        sizes = tokenizer.quantizer.sizes[:k]
        add_codes(CODES, k, lambda split, k=k: described[split].codes[:, :k], sizes)
    pixels = {split: to_float(one.pixels) for split, one in described.items()}
    principal = principal_components(pixels["train"], lengths[-1])
    components = {split: principal(part) for split, part in pixels.items()}
    for k in lengths:
        add(PCA, k, lambda split, k=k: components[split][:, :k])
    for name, features in others.features.items():
        add(name, None, features.__getitem__)
    for name, codes in others.codes.items():
        add_codes(name, None, codes.__getitem__, others.sizes[name])
    progress.close()
    return scores
