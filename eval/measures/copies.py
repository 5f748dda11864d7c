"""The nearest training images of samples and of held-out images, and near-copies among them."""

import dataclasses
import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from eval.measures.rates import prior_bits
from eval.networks.extractors import Extractor, extractor_facts
from eval.networks.features import Images, extract
from eval.subjects.samples import Samples, sample_facts
from eval.subjects.tokenized import Reconstructions, asked_subset, data_facts, encode, subset
from pqvae.console import Progress
from pqvae.data.dataset import ImageDataset
from pqvae.errors import UserError
from stage1_tokenizer import Tokenizer
from stage2_prior import Prior

SPACES = ("features", "pixels")
PAIRS = 10  # the closest ones, that are shown
SIDE = 32  # pixels; larger images are shrunk to that before they are compared
CHUNK = 500  # images at once
POINTS, QUERIES = 4096, 1024  # sides of a block of distances; 100 MB with 3,072 columns


@dataclass(frozen=True, slots=True)
class Neighbours:
    """The nearest training image of each of n images."""

    indices: Tensor  # int64 (n,)
    distances: Tensor  # float64 (n,), RMS differences
    copies: Tensor  # bool (n,): near-copies


@dataclass(frozen=True, slots=True)
class Comparison:
    """Samples and held-out images, both beside the training images."""

    rows: list[dict[str, Any]]
    facts: dict[str, dict[str, Any]]
    neighbours: dict[str, Neighbours]  # of the samples, by space


@dataclass(frozen=True, slots=True)
class Generator:
    """What made the samples."""

    prior: Prior
    tokenizer: Tokenizer
    prefix_length: int  # codes of each sample


@dataclass(frozen=True, slots=True)
class _Points:
    """Images as points of the spaces in which they are compared."""

    spaces: dict[str, Tensor]  # float32 or uint8 (n, D)
    digests: list[bytes]  # of each image's pixels
    content_hash: str


def compare(
    samples: Samples,
    train: ImageDataset,
    test: ImageDataset,
    extractor: Extractor,
    generator: Generator | None = None,
    *,
    reference_n: int | None = None,
    device: torch.device,
    cache: Path | None = None,
) -> Comparison:
    """Find the nearest training image of every sample, and of as many test images.

    Args:
        samples: The images under suspicion.
        train: What the generator was trained on.
        test: What it was not trained on.
        extractor: The feature network.
        generator: What made the samples: test and training images are decoded by it, too.
        reference_n: Use a fixed random subset of so many training images; all by default.
        device: Where features and distances are computed.
        cache: Folder of cached features, or None.

    Raises:
        UserError: Fewer training images than asked for, or fewer than 2.
    """
    seen = asked_subset(train, reference_n, "--reference-n")
    held_out = subset(len(test), len(samples))
    if len(seen) < 2:
        raise UserError(f"{train.name}: 2 training images or more are needed, not {len(seen)}")

    def describe(images: Images, indices: Sequence[int], subject: str) -> _Points:
        return _describe(extractor, images, indices, device, cache, subject)

    # The samples come first: one that is damaged should be found before an hour of reference.
    described = {"samples": describe(samples, range(len(samples)), "samples")}
    described["held-out"] = describe(test, held_out, "held-out")
    bits = {}
    if generator is not None:
        some = seen[: len(held_out)]
        for subject, dataset, chosen in (
            ("held-out, decoded", test, held_out),
            ("training, decoded", train, some),
        ):
            codes = encode(generator.tokenizer, dataset, chosen)
            bits[subject] = prior_bits(generator.prior, codes, dataset, chosen)
            decoded = Reconstructions(generator.tokenizer, codes[:, : generator.prefix_length])
            described[subject] = describe(decoded, range(len(decoded)), subject)
    reference = describe(train, seen, "training")
    known, order = set(reference.digests), torch.tensor(seen)
    rows: list[dict[str, Any]] = []
    found: list[dict[str, Neighbours]] = []
    for subject, side in described.items():
        neighbours = {}
        for space in SPACES:
            near = find_neighbours(side.spaces[space], reference.spaces[space], device)
            neighbours[space] = dataclasses.replace(near, indices=order[near.indices])
        found.append(neighbours)
        equal = sum(digest in known for digest in side.digests)
        rows.append({"subject": subject, "images": len(side.digests), "equal": equal})
        rows[-1] |= _figures(neighbours)
        for name, of_positions in bits.get(subject, {}).items():
            rows[-1][f"{name}_bits"] = of_positions.sum().item()
    control = rows[1 if generator is None else 2]
    rows.append({"subject": f"samples / {control['subject']}"})
    for key in (f"{space}_distance" for space in SPACES):
        rows[-1][key] = rows[0][key] / control[key] if control[key] else None
    for space, near in found[0].items():
        rows[0][f"{space}_closest"] = [
            {
                "sample": number,
                "training_image": train.keys[near.indices[number]],
                "distance": near.distances[number].item(),
            }
            for number in closest(near).tolist()
        ]
    facts = sample_facts(samples, described["samples"].content_hash) | {
        "training": data_facts(train, seen),
        "held-out": data_facts(test, held_out),
        "extractor": extractor_facts(extractor),
        "pixels": {"size": f"{SIDE}x{SIDE} at most, by mean"},
    }
    return Comparison(rows, facts, found[0])


def find_neighbours(images: Tensor, training: Tensor, device: torch.device) -> Neighbours:
    """Find the nearest training image of each image, and tell the near-copies.

    Args:
        images: float32 or uint8 (n, D).
        training: The same of (m, D), 2 images or more.
        device: Where the distances are computed.
    """
    distances, indices = nearest(images, training, device)
    chosen, places = indices.unique(return_inverse=True)
    gaps, _ = nearest(training[chosen], training, device, chosen)
    return Neighbours(indices, distances, distances <= gaps[places])


def nearest(
    queries: Tensor, points: Tensor, device: torch.device, itself: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The nearest point of each query, by blocks of ``QUERIES`` x ``POINTS``.

    Args:
        queries: float32 or uint8 (n, D).
        points: The same of (m, D).
        device: Where to compute.
        itself: Which point each query is, int64 (n,): that one does not count.

    Returns:
        RMS differences, float64 (n,), and numbers of the points, int64 (n,); on the CPU.
    """
    if device.type == "mps":  # it has no float64
        device = torch.device("cpu")
    progress = Progress("comparing", len(queries))
    distances, indices = [], []
    for rows in torch.arange(len(queries)).split(QUERIES):
        block = queries[rows].to(device, torch.float64)
        least = torch.full((len(rows),), torch.inf, dtype=torch.float64, device=device)
        number = torch.zeros(len(rows), dtype=torch.int64, device=device)
        for start in range(0, len(points), POINTS):
            others = points[start : start + POINTS].to(device, torch.float64)
            norms = block.square().sum(1, keepdim=True) + others.square().sum(1)
            table = norms - 2 * block @ others.T
            if itself is not None:
                numbers = torch.arange(start, start + len(others))
                table.masked_fill_((itself[rows].unsqueeze(1) == numbers).to(device), torch.inf)
            values, places = table.min(1)
            number = torch.where(values < least, places + start, number)
            least = torch.minimum(values, least)
        number = number.cpu()
        # Once more, as a difference: that of equal points is 0, the table's only nearly so.
        difference = block - points[number].to(device, torch.float64)
        distances.append(difference.square().mean(1).sqrt().cpu())
        indices.append(number)
        progress.advance(len(rows))
    progress.close()
    return torch.cat(distances), torch.cat(indices)


def closest(neighbours: Neighbours) -> Tensor:
    """The images nearest to a training image, the nearest first: int64 (``PAIRS`` or fewer,)."""
    return neighbours.distances.argsort(stable=True)[:PAIRS]


def _describe(
    extractor: Extractor,
    images: Images,
    indices: Sequence[int],
    device: torch.device,
    cache: Path | None,
    label: str,
) -> _Points:
    features = extract(extractor, images, indices, device=device, cache=cache, label=label)
    shrunk, digests = [], []
    for start in range(0, len(indices), CHUNK):
        pixels = images.images(indices[start : start + CHUNK])
        digests += [hashlib.sha256(image.numpy().tobytes()).digest() for image in pixels]
        if pixels.shape[-1] > SIDE:
            pixels = F.adaptive_avg_pool2d(pixels.float(), SIDE).round()
        shrunk.append(pixels.to(torch.uint8).flatten(1))
    spaces = {"features": features.pool, "pixels": torch.cat(shrunk)}
    return _Points(spaces, digests, features.content_hash)


def _figures(neighbours: dict[str, Neighbours]) -> dict[str, float]:
    figures = {}
    for space, near in neighbours.items():
        share = near.copies.double().mean().item()
        figures[f"{space}_copies"] = share
        figures[f"{space}_copies_error"] = math.sqrt(share * (1 - share) / len(near.copies))
        figures[f"{space}_distance"] = near.distances.quantile(0.5).item()
    return figures


def open_generator(samples: Samples, data: str, device: torch.device) -> Generator:
    """The prior that made the samples, and its tokenizer.

    Args:
        samples: With the record of ``sampling.generate``.
        data: ``data.path`` of the images that they are compared with.
        device: Where the two are to run.

    Raises:
        UserError: They are unknown, gone, have changed, or were trained on other data.
    """
    record = samples.record
    if not isinstance(record.get("prior"), str) or not isinstance(record.get("tokenizer"), str):
        raise UserError(f"{samples.path} names no prior and tokenizer")
    if record.get("data", {}).get("path") != data:
        raise UserError(f"{record['prior']} was trained on other data than {data}")
    prior = Prior.from_pretrained(record["prior"]).to(device)
    tokenizer = Tokenizer.from_pretrained(record["tokenizer"]).to(device)
    hashes = (prior.content_hash, tokenizer.content_hash)
    if hashes != (record.get("prior_hash"), record.get("tokenizer_hash")):
        raise UserError(f"{record['prior']} or its tokenizer has changed since it made the samples")
    return Generator(prior, tokenizer, record.get("settings", {}).get("prefix", len(prior.sizes)))
