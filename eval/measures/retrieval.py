"""Nearest images by what codes tell of them: as a tree, by Hamming distance, by partial latents."""

import io
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from eval.measures.neighbours import Distances, Euclidean, Hamming, Tree, nearest
from eval.measures.representations import (
    CHANCE,
    CODES,
    FEATURES,
    LATENT,
    PARTIAL,
    PIXELS,
    Change,
    Described,
    Scores,
    decoder_features,
    describe,
    labels_of,
    partial_latents,
)
from eval.subjects.selection import Selection
from pqvae.console import Progress
from pqvae.data.batches import augment
from pqvae.images import decode_image, save_grid, to_float
from stage1_tokenizer import Tokenizer

PREFIX = "shared prefix"
HITS = 10  # that precision looks at
JPEG_QUALITY = 75
PICTURED_CLASSES, PICTURED_HITS = 12, 6


def shift(images: Tensor) -> Tensor:
    """Everything one pixel to the left; the right border is repeated."""
    offsets = torch.tensor([[0], [1]]).expand(2, len(images))
    return augment(images, torch.zeros(len(images), dtype=torch.bool), offsets)


def jpeg(images: Tensor) -> Tensor:
    """Each image written as JPEG and read again."""
    read = []
    for image in images:
        buffer = io.BytesIO()
        picture = Image.fromarray(image.permute(1, 2, 0).numpy())
        picture.save(buffer, "JPEG", quality=JPEG_QUALITY)
        read.append(decode_image(buffer.getvalue(), images.shape[-1]))
    return torch.stack(read)


def brighten(images: Tensor) -> Tensor:
    """Every value 10% higher, 255 at most."""
    return images.float().mul_(1.1).round_().clamp_(max=255).to(torch.uint8)


CHANGES: dict[str, Change] = {"shift": shift, "jpeg": jpeg, "brightness": brighten}


def retrieve(
    tokenizer: Tokenizer, images: Selection, described: Described, lengths: Sequence[int]
) -> tuple[Scores, Tensor]:
    """Find images among others: of the same class, and the original of a changed one.

    Args:
        tokenizer: Whose codes they are.
        images: Those that are searched, and that search.
        described: The same, encoded.
        lengths: Of the prefixes, ascending.

    Returns:
        For each representation, in percent: ``precision``, the share of the 10 nearest other images
        that are of the query's class, and by the names of ``CHANGES``, the share of changed images
        whose original is the nearest of all. Then the neighbours by shared prefix, int64 (n, 10).
    """
    n, labels = len(images), labels_of(images)
    queries = {"precision": described} | {
        name: describe(tokenizer, images, f"encoding {name}", change)
        for name, change in CHANGES.items()
    }
    same = (labels.bincount()[labels] - 1).double().mean().item() / (n - 1)
    scores: Scores = {(CHANCE, None): {"precision": 100 * same, **dict.fromkeys(CHANGES, 100 / n)}}
    tree, progress = torch.empty(0), Progress("ranking", n * len(queries))
    for key, asked in queries.items():
        themselves = asked is described
        count = min(HITS, n - 1) if themselves else 1
        found = rankings(tokenizer, asked, described, lengths, count, leave_out=themselves)
        for name, k, hits in found:
            wanted = labels[hits] == labels.unsqueeze(1)
            if not themselves:
                wanted = hits[:, 0] == torch.arange(n)
            elif name == PREFIX:
                tree = hits
            scores.setdefault((name, k), {})[key] = 100 * wanted.double().mean().item()
        progress.advance(n)
    progress.close()
    return scores, tree


def rankings(
    tokenizer: Tokenizer,
    queries: Described,
    database: Described,
    lengths: Sequence[int],
    count: int,
    *,
    leave_out: bool,
) -> Iterator[tuple[str, int | None, Tensor]]:
    """The nearest images by every measure.

    Args:
        tokenizer: Whose codes they are.
        queries: Q images.
        database: n images, which are ranked.
        lengths: Of the prefixes, ascending.
        count: How many neighbours.
        leave_out: The queries are the database, and none is a neighbour of itself.

    Yields:
        The representation, the length of its prefix or None, and rows of the database, nearest
        first, int64 (Q, count).
    """
    itself = torch.arange(len(queries.codes)) if leave_out else None

    def ranked(distances: Distances) -> Tensor:
        return nearest(distances, count, itself)

    def by(features: Callable[[Described], Tensor]) -> Tensor:
        return ranked(Euclidean(features(queries), features(database)))

    yield PIXELS, None, by(lambda images: to_float(images.pixels))
    yield LATENT, None, by(lambda images: images.latents)
    for k in lengths:
        yield FEATURES, k, by(lambda images, k=k: decoder_features(tokenizer, images.codes, k))
    for k in lengths:
        yield PARTIAL, k, by(lambda images, k=k: partial_latents(tokenizer, images.codes, k))
    codes = queries.codes, database.codes
    for k in lengths:
        yield CODES, k, ranked(Hamming(*(part[:, :k] for part in codes)))
    N = lengths[-1]
    asked, known = (partial_latents(tokenizer, part, N) for part in codes)
    yield PREFIX, N, ranked(Tree(*codes, Euclidean(asked, known)))


def draw_hits(path: Path, images: Selection, hits: Tensor) -> None:
    """Draw the first query of each class there is, and below it the nearest of its neighbours.

    Args:
        path: The PNG file.
        images: Those that were searched; of many classes, some are drawn.
        hits: Neighbours of each image, nearest first, int64 (n, count).
    """
    labels, names = labels_of(images), images.dataset.class_names
    queries = torch.stack([(labels == label).nonzero()[0, 0] for label in labels.unique()])
    if len(queries) > PICTURED_CLASSES:
        queries = queries[torch.linspace(0, len(queries) - 1, PICTURED_CLASSES).long()]
    found = hits[queries, :PICTURED_HITS].T  # (hits, queries)
    right = (labels[found] == labels[queries]).sum(0).tolist()
    captions = [
        f"{names[label]:.11} {count}/{len(found)}"
        for label, count in zip(labels[queries].tolist(), right, strict=True)
    ]
    places = torch.cat([queries, found.flatten()]).tolist()
    pixels = images.images(places)
    zoom = max(1, 96 // pixels.shape[-1])
    save_grid(path, pixels, len(queries), captions=captions, zoom=zoom)
