"""Labelled images in every form that is compared, each asked for its classes in the same way."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from eval.measures.classifiers import (
    Labelled,
    Parts,
    Ridge,
    accuracy,
    nearest,
    nearest_codes,
    softmax_regression,
    vote,
)
from eval.subjects.tokenized import asked_subset, chunk_size
from pqvae.console import Progress
from pqvae.data.config import DataConfig
from pqvae.data.dataset import ImageDataset, open_dataset
from pqvae.data.sample import Split
from pqvae.errors import UserError
from pqvae.images import to_float, to_uint8
from stage1_tokenizer import Tokenizer
from stage1_tokenizer.config import ArchitectureConfig
from stage1_tokenizer.encoder import Encoder

NEIGHBOURS = 10  # that vote
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


@dataclass(frozen=True, slots=True)
class Images:
    """The images of one split that take part."""

    dataset: ImageDataset
    indices: list[int]
    labels: Tensor  # int64 (n,)

    def __len__(self) -> int:
        return len(self.indices)


@dataclass(frozen=True, slots=True)
class Described:
    """Images in the forms that need no training here; on the CPU."""

    pixels: Tensor  # uint8 (n, 3 * side * side)
    latents: Tensor  # float32 (n, D): f, before it is quantized
    codes: Tensor  # int64 (n, N)


def open_splits(
    data: DataConfig, train_n: int | None = None, test_n: int | None = None
) -> dict[Split, Images]:
    """Open the splits of labelled data.

    Args:
        data: Where the images are.
        train_n: Use a fixed random subset of so many train images; all by default.
        test_n: The same of the test images.

    Raises:
        UserError: There are no classes, or too few images.
    """
    splits: dict[Split, Images] = {}
    for split, n in zip(SPLITS, (train_n, None, test_n), strict=True):
        dataset = open_dataset(data, split)
        if dataset.labels is None or len(dataset.class_names) < 2:
            raise UserError(
                f"{dataset.name}: no classes to tell apart; put the images into class folders, or "
                "give others with --data"
            )
        indices = asked_subset(dataset, n, f"--{split}-n")
        splits[split] = Images(dataset, indices, dataset.labels[indices])
    if len(splits["test"]) < 2:
        raise UserError(f"{splits['test'].dataset.name}: 1 image, but retrieval needs 2 or more")
    return splits


@torch.no_grad()
def over_images(
    images: Images, function: Callable[[Tensor], tuple[Tensor, ...]], label: str
) -> tuple[Tensor, ...]:
    """What a function makes of the images, uint8 (B, 3, H, W), batch by batch; on the CPU."""
    parts, progress = [], Progress(label, len(images))
    for chunk in torch.tensor(images.indices).split(chunk_size(images.dataset.image_size)):
        batch = images.dataset.images(chunk)
        parts.append([part.cpu() for part in function(batch)])
        progress.advance(len(batch))
    progress.close()
    return tuple(torch.cat(column) for column in zip(*parts, strict=True))


def describe(
    tokenizer: Tokenizer, images: Images, label: str, change: Change | None = None
) -> Described:
    """Encode images, changed before if asked for, on the tokenizer's device."""
    device = tokenizer.device

    def encode(batch: Tensor) -> tuple[Tensor, ...]:
        batch = to_float(change(batch) if change else batch)
        latents = tokenizer.latents(batch.to(device))
        codes = tokenizer.quantizer.quantize(latents)[0]
        if batch.shape[-1] > PIXELS_SIDE:
            batch = F.adaptive_avg_pool2d(batch, PIXELS_SIDE)
        return to_uint8(batch).flatten(1), latents, codes

    return Described(*over_images(images, encode, label))


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
    images: Images, network: Callable[[Tensor], Tensor], device: torch.device, label: str
) -> Tensor:
    """What a network on this device makes of images (B, 3, H, W) in [-1, 1]: (n, D)."""
    return over_images(images, lambda batch: (network(to_float(batch).to(device)),), label)[0]


def partial_latents(tokenizer: Tokenizer, codes: Tensor, length: int) -> Tensor:
    """f_k of codes int64 (n, N): float32 (n, D), on the CPU."""
    return _of_prefixes(tokenizer, tokenizer.quantizer.dequantize, codes, length)


def decoder_features(tokenizer: Tokenizer, codes: Tensor, length: int) -> Tensor:
    """``Tokenizer.features`` of prefixes of codes int64 (n, N): float32 (n, F), on the CPU."""
    return _of_prefixes(tokenizer, tokenizer.features, codes, length)


@torch.no_grad()
def _of_prefixes(
    tokenizer: Tokenizer, function: Callable[[Tensor], Tensor], codes: Tensor, length: int
) -> Tensor:
    device = tokenizer.device
    parts = codes[:, :length].split(CHUNK)
    return torch.cat([function(part.to(device)).cpu() for part in parts])


def score_features(parts: Parts, classes: int) -> tuple[Row, Ridge]:
    """Test accuracies of a linear probe and of 10 neighbours, in percent; and the probe."""
    train, test = parts["train"], parts["test"]
    ridge = Ridge(train, classes)
    strength = ridge.best_strength(parts["val"])
    hits = nearest(test.features, train.features, min(NEIGHBOURS, len(train.labels)))
    row = {
        "dimensions": train.features.shape[1],
        "linear": accuracy(ridge.predict(test.features, strength), test.labels),
        "strength": strength,
        "knn": accuracy(vote(train.labels[hits], classes), test.labels),
    }
    return row, ridge


def score_codes(
    parts: Parts, sizes: Sequence[int], lengths: Sequence[int], classes: int, seed: int
) -> list[Row]:
    """The same of codes (n, N), a row for each length: softmax regression and Hamming distance."""
    train, test = parts["train"], parts["test"]
    count = min(NEIGHBOURS, len(train.labels))
    hits = nearest_codes(test.features, train.features, lengths, count)
    rows = []
    for k, hits_k in zip(lengths, hits, strict=True):
        cut = {split: Labelled(part.features[:, :k], part.labels) for split, part in parts.items()}
        linear, steps = softmax_regression(cut, sizes[:k], classes, seed)
        knn = accuracy(vote(train.labels[hits_k], classes), test.labels)
        rows.append({"dimensions": sum(sizes[:k]), "linear": linear, "steps": steps, "knn": knn})
    return rows


def classify(
    tokenizer: Tokenizer,
    splits: Mapping[Split, Images],
    described: Mapping[Split, Described],
    networks: Mapping[str, Mapping[Split, Tensor]],
    lengths: Sequence[int],
    seed: int,
) -> Scores:
    """Score every representation.

    Args:
        tokenizer: Whose codes they are.
        splits: Train, val and test.
        described: The same, encoded.
        networks: Features of other networks, by their names.
        lengths: Of the prefixes, ascending.
        seed: Of the softmax regression.

    Returns:
        For each, the accuracies in percent and what decided them.
    """
    classes, n = len(splits["train"].dataset.class_names), len(splits["test"])
    most = accuracy(splits["train"].labels.mode().values, splits["test"].labels)
    scores: Scores = {(CHANCE, None): {"linear": most, "knn": most}}
    progress = Progress("probing", n * (2 + len(networks) + 4 * len(lengths)))

    def labelled(features: Callable[[Split], Tensor]) -> Parts:
        return {split: Labelled(features(split), one.labels) for split, one in splits.items()}

    def add(name: str, k: int | None, features: Callable[[Split], Tensor]) -> Ridge:
        scores[name, k], ridge = score_features(labelled(features), classes)
        progress.advance(n)
        return ridge

    pixels = add(PIXELS, None, lambda split: to_float(described[split].pixels))
    add(LATENT, None, lambda split: described[split].latents)
    for k in lengths:
        add(FEATURES, k, lambda split, k=k: decoder_features(tokenizer, described[split].codes, k))
    for k in lengths:
        add(PARTIAL, k, lambda split, k=k: partial_latents(tokenizer, described[split].codes, k))
    codes, sizes = labelled(lambda split: described[split].codes), tokenizer.config.quantizer.sizes
    for k, row in zip(lengths, score_codes(codes, sizes, lengths, classes, seed), strict=True):
        scores[CODES, k] = row
        progress.advance(n)
    for k in lengths:
        add(PCA, k, lambda split, k=k: pixels.principal(to_float(described[split].pixels), k))
    for name, features in networks.items():
        add(name, None, features.__getitem__)
    progress.close()
    return scores
