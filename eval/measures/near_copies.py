"""The nearest training images of samples and of held-out images, and near-copies among them."""

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from eval.measures.neighbours import Euclidean, nearest
from eval.measures.rates import prior_bits
from eval.networks.extractor import FeatureExtractor
from eval.networks.features import Images
from eval.subjects.samples import Samples, sample_facts
from eval.subjects.selection import Selection
from eval.subjects.tokenized import Reconstructions, encode
from pqvae.data.batches import map_images
from pqvae.errors import UserError
from sampling.folder import IDENTITY, IDENTITY_0_1
from stage1_tokenizer import Tokenizer
from stage1_tokenizer.tokenizer import FAITHFUL
from stage2_prior import Prior

SPACES = ("features", "pixels")
PAIRS = 10  # the closest ones, that are shown
SIDE = 32  # pixels; larger images are shrunk to that before they are compared
CHUNK = 1024  # images whose distances are measured at once


class Comparable(Images, Protocol):
    """Images by number, of one size."""

    @property
    def image_size(self) -> int: ...

    def images(self, indices: Sequence[int] | Tensor, /) -> Tensor: ...


@dataclass(frozen=True, slots=True)
class Neighbours:
    """The nearest training image of each of n images."""

    indices: Tensor  # int64 (n,), places in the selection
    distances: Tensor  # float64 (n,), RMS differences
    copies: Tensor  # bool (n,): near-copies

    @property
    def share(self) -> tuple[float, float]:
        """The share of near-copies, and its standard error."""
        share = self.copies.double().mean().item()
        return share, math.sqrt(share * (1 - share) / len(self.copies))


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
    decoder: str
    prefix_length: int  # codes of each sample


@dataclass(frozen=True, slots=True)
class _Points:
    """Images as points of the spaces in which they are compared."""

    spaces: dict[str, Tensor]  # float32 or uint8 (n, D)
    digests: list[bytes]  # of each image's pixels
    content_hash: str


def compare(
    samples: Samples,
    seen: Selection,
    held_out: Selection | None,
    extractor: FeatureExtractor,
    generator: Generator | None = None,
) -> Comparison:
    """Find the nearest training image of every sample, and of held-out images.

    Args:
        samples: The images under suspicion.
        seen: Training images.
        held_out: Images that the generator was not trained on, where there are some.
        extractor: Computes the features, and says where to compute.
        generator: What made the samples: held-out and training images are decoded by it, too.

    Raises:
        UserError: Fewer than 2 training images.
    """
    if len(seen) < 2:
        name = seen.dataset.name
        raise UserError(f"{name}: 2 training images or more are needed, not {len(seen)}")
    # The samples come first: one that is damaged should be found before an hour of reference.
    points = {"samples": _as_points(extractor, samples, "samples")}
    known = {} if held_out is None else {"held-out": held_out}
    points |= {name: _as_points(extractor, images, name) for name, images in known.items()}
    bits = {}
    if generator is not None:
        known["training"] = seen.first(len(samples if held_out is None else held_out))
        for subject, images in ((f"{name}, decoded", images) for name, images in known.items()):
            codes = encode(generator.tokenizer, images)
            bits[subject] = prior_bits(generator.prior, codes, images)
            kept = codes[:, : generator.prefix_length]
            decoded = Reconstructions(generator.tokenizer, kept, generator.decoder)
            points[subject] = _as_points(extractor, decoded, subject)
    reference = _as_points(extractor, seen, "training")
    found = {subject: _search(side, reference, extractor) for subject, side in points.items()}
    known_digests = set(reference.digests)
    rows: list[dict[str, Any]] = []
    for subject, side in points.items():
        equal = sum(digest in known_digests for digest in side.digests)
        rows.append({"subject": subject, "images": len(side.digests), "equal": equal})
        rows[-1] |= _figures(found[subject])
        for name, of_positions in bits.get(subject, {}).items():
            rows[-1][f"{name}_bits"] = of_positions.sum().item()
    if held_out is not None:
        rows.append(_ratios(rows[0], control=rows[1 if generator is None else 2]))
    for space, near in found["samples"].items():
        rows[0][f"{space}_closest"] = _closest_pairs(near, seen.keys)
    facts = sample_facts(samples, points["samples"].content_hash) | {
        "training": seen.facts(),
        "held-out": {} if held_out is None else held_out.facts(),
        "extractor": extractor.network.facts(),
        "pixels": {"size": f"{SIDE}x{SIDE} at most, by mean"},
    }
    return Comparison(rows, facts, found["samples"])


def _search(
    side: _Points, reference: _Points, extractor: FeatureExtractor
) -> dict[str, Neighbours]:
    return {
        space: find_neighbours(side.spaces[space], reference.spaces[space], extractor.device)
        for space in SPACES
    }


def _ratios(samples: dict[str, Any], control: dict[str, Any]) -> dict[str, Any]:
    row: dict[str, Any] = {"subject": f"samples / {control['subject']}"}
    for key in (f"{space}_distance" for space in SPACES):
        row[key] = samples[key] / control[key] if control[key] else None
    return row


def _closest_pairs(near: Neighbours, keys: Sequence[str]) -> list[dict[str, Any]]:
    indices, distances = near.indices.tolist(), near.distances.tolist()
    return [
        {
            "sample": number,
            "training_image": keys[indices[number]],
            "distance": distances[number],
        }
        for number in closest(near).tolist()
    ]


def find_neighbours(images: Tensor, training: Tensor, device: torch.device) -> Neighbours:
    """Find the nearest training image of each image, and tell the near-copies.

    Args:
        images: float32 or uint8 (n, D).
        training: The same of (m, D), 2 images or more.
        device: Where the distances are computed.
    """
    distances, indices = nearest_point(images, training, device)
    chosen, places = indices.unique(return_inverse=True)
    gaps, _ = nearest_point(training[chosen], training, device, chosen)
    return Neighbours(indices, distances, distances <= gaps[places])


def nearest_point(
    queries: Tensor, points: Tensor, device: torch.device, itself: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The nearest point of each query.

    Args:
        queries: float32 or uint8 (n, D).
        points: The same of (m, D).
        device: Where to search.
        itself: Which point each query is, int64 (n,): that one does not count.

    Returns:
        RMS differences, float64 (n,), and numbers of the points, int64 (n,); on the CPU.
    """
    distances = Euclidean(queries, points, torch.float64, device)
    indices = nearest(distances, 1, itself, "comparing")[:, 0]
    # Once more, as a difference: that of equal points is 0, a product's only nearly so.
    parts = zip(queries.split(CHUNK), points[indices].split(CHUNK), strict=True)
    found = [(one.double() - other.double()).square().mean(1).sqrt() for one, other in parts]
    return torch.cat(found), indices


def closest(neighbours: Neighbours) -> Tensor:
    """The images nearest to a training image, the nearest first: int64 (``PAIRS`` or fewer,)."""
    return neighbours.distances.argsort(stable=True)[:PAIRS]


def pixel_points(images: Comparable) -> tuple[Tensor, list[bytes]]:
    """Images as points of pixels, uint8 (n, D), at most ``SIDE`` a side; the sha256 of each one."""

    def shrink(batch: Tensor) -> tuple[Tensor, Tensor]:
        # Equal images are equal as they are, before they are shrunk.
        digests = [hashlib.sha256(image.numpy().tobytes()).digest() for image in batch]
        if batch.shape[-1] > SIDE:
            batch = F.adaptive_avg_pool2d(batch.float(), SIDE).round()
        columns = torch.tensor([list(digest) for digest in digests], dtype=torch.uint8)
        return batch.to(torch.uint8).flatten(1), columns

    pixels, digests = map_images(images, range(len(images)), shrink)
    return pixels, [digest.numpy().tobytes() for digest in digests]


def _as_points(extractor: FeatureExtractor, images: Comparable, label: str) -> _Points:
    features = extractor(images, label=label)
    pixels, digests = pixel_points(images)
    return _Points({"features": features.pool, "pixels": pixels}, digests, features.content_hash)


def _figures(neighbours: dict[str, Neighbours]) -> dict[str, float]:
    figures = {}
    for space, near in neighbours.items():
        figures[f"{space}_copies"], figures[f"{space}_copies_error"] = near.share
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
    decoder = record.get("decoder", FAITHFUL)
    if decoder not in tokenizer.decoders:
        raise UserError(f"{record['tokenizer']} has lost the decoder {decoder!r} of these samples")
    found = {
        "prior_hash": prior.content_hash,
        "tokenizer_hash": tokenizer.content_hash,
        "decoder_hash": tokenizer.decoder_hash(decoder),
    }
    # What decides the pictures counts: of a tokenizer with further decoders that has not changed.
    identity = IDENTITY if "decoder_hash" in record else IDENTITY_0_1
    if any(record.get(key) != found[key] for key in identity if key in found):
        raise UserError(f"{record['prior']} or its tokenizer has changed since it made the samples")
    prefix_length = record.get("settings", {}).get("prefix", len(prior.sizes))
    return Generator(prior, tokenizer, decoder, prefix_length)
