"""What a gallery shows: held-out pictures, samples, variations, the nearest training pictures."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from eval.gallery.album import Album, Picture
from eval.measures.neighbours import Euclidean, nearest
from eval.subjects.selection import Selection, subset
from eval.subjects.tokenized import encode
from pqvae.console import Progress
from pqvae.data.dataset import ImageDataset
from sampling.sampler import BLOCK_IMAGES, sample_codes
from sampling.settings import SamplingSettings
from stage1_tokenizer.prefixes import evenly_spaced_indices
from stage2_prior import Prior

HELD_OUT = 5  # pictures
VARIED = 3  # of these
VARIATIONS = 8  # of each, for each number of codes that is kept
MOST_CLASSES = 20  # of more, so many from all over the list
WITHOUT_CLASSES = 8  # rows of samples then
SEARCHED = 10_000  # training pictures, at random where there are more
NEAREST = 3  # of them for each sample
PAIRS = 10  # the closest, which have a section
NEAREST_NAME = "nearest training picture"

Section = dict[str, Any]  # title, text, groups: name, still or None, rows: name, pictures


@dataclass(frozen=True, slots=True)
class Draw:
    """How codes are drawn."""

    prior: Prior
    settings: SamplingSettings
    seed: int


@dataclass(frozen=True, slots=True)
class Samples:
    codes: Tensor  # int64 (n, N), on the CPU
    pictures: list[Picture]
    section: Section


def add_samples(album: Album, draw: Draw, per_class: int) -> Samples:
    """Draw samples of every class, or without one. More of them begin with the same ones."""
    names = draw.prior.class_names
    classes = torch.linspace(0, len(names) - 1, min(len(names), MOST_CLASSES)).long()
    rows = len(classes) or WITHOUT_CLASSES
    numbers = torch.arange(rows * per_class)
    labels = classes[numbers % rows] if names else None
    N = draw.prior.known_codes
    progress, parts = Progress("sampling", len(numbers)), []
    for block in numbers.split(BLOCK_IMAGES):
        given = None if labels is None else labels[block]
        parts.append(sample_codes(draw.prior, given, block, draw.seed, N, draw.settings).cpu())
        progress.advance(len(block))
    progress.close()
    codes = torch.cat(parts)
    if names:
        shown = [names[label] for label in classes.tolist()]
        called = [f"{shown[n % rows]}, sample {n // rows + 1}" for n in numbers.tolist()]
        pictures = album.add(codes, labels, called)
        groups = [_group(name, pictures[row::rows]) for row, name in enumerate(shown)]
        count = f"{per_class} of each class"
        if len(shown) < len(names):
            count = f"{per_class} of each of {len(shown)} classes, of {len(names):,}"
    else:
        pictures = album.add(codes, None, [f"sample {n + 1}" for n in numbers.tolist()])
        groups, count = [_group("", pictures)], f"{len(pictures)} of them"
    text = (
        f"Drawn code by code, coarse to fine: {count}, as they came. Open one for all of its "
        "prefixes at once."
    )
    return Samples(codes, pictures, {"title": "Samples", "text": text, "groups": groups})


@dataclass(frozen=True, slots=True)
class HeldOut:
    codes: Tensor  # int64 (n, N), on the CPU
    labels: Tensor | None  # int64 (n,)
    classes: list[str]  # the name of each one's class; "" for none
    pictures: list[Picture]  # "beside" them the originals
    section: Section


def add_held_out(album: Album, dataset: ImageDataset) -> HeldOut:
    """Take pictures from all over a data set, with the originals."""
    indices = evenly_spaced_indices(dataset, min(HELD_OUT, len(dataset))).tolist()
    images = Selection(dataset, indices)
    codes = encode(album.tokenizer, images)[:, : album.prior.known_codes]
    names = [f"held-out picture {number + 1}" for number in range(len(images))]
    labels, classes = None, [""] * len(images)
    if images.labels is not None and dataset.class_names == album.prior.class_names:
        labels, classes = images.labels, [dataset.class_names[label] for label in images.labels]
        names = [f"{each}, {name}" for each, name in zip(classes, names, strict=True)]
    pictures = album.add(codes, labels, names)
    stills = album.add_stills(images.images(range(len(images))))
    for picture, still in zip(pictures, stills, strict=True):
        picture |= {"beside": still, "besideName": "original"}
    text = (
        "Pictures that neither model was trained on, from the first of their own codes; beside "
        "each the original."
    )
    section = {"title": "Held-out pictures", "text": text, "groups": [_group("", pictures)]}
    return HeldOut(codes, labels, classes, pictures, section)


def variations_section(album: Album, draw: Draw, held_out: HeldOut, start: int) -> Section | None:
    """Keep the first codes of held-out pictures and draw the others; None where none can be kept.

    Args:
        album: Takes the pictures.
        draw: How codes are drawn.
        held_out: The pictures to vary.
        start: The prefix length that the page begins with: some fewer codes are kept.
    """
    kept = _kept_lengths(album.lengths, start, draw.prior)
    if not kept:
        return None
    groups = []
    count = len(held_out.codes)
    for place in torch.linspace(0, count - 1, min(VARIED, count)).long().tolist():
        label = None if held_out.labels is None else held_out.labels[place].expand(VARIATIONS)
        origin, rows = held_out.pictures[place], []
        for k in kept:
            known = held_out.codes[place].expand(VARIATIONS, -1)
            first = 10**6 * (place + 1) + 100 * k  # noise of its own, far from that of the samples
            numbers = torch.arange(first, first + VARIATIONS)
            codes = sample_codes(
                draw.prior, label, numbers, draw.seed, known.shape[1], draw.settings, known[:, :k]
            ).cpu()
            said = f"{k} code{'s' * (k > 1)} kept"
            called = [f"{origin['name']}, {said}, no. {n + 1}" for n in range(VARIATIONS)]
            rows.append({"name": said, "pictures": album.add(codes, label, called, noise=place)})
        groups.append({"name": held_out.classes[place], "still": origin["beside"], "rows": rows})
    text = (
        "The first codes of a held-out picture are kept, and what follows is drawn anew. Up to as "
        "many codes as are kept, all are alike."
    )
    return {"title": "Variations", "text": text, "groups": groups}


def nearest_section(album: Album, samples: Samples, train: ImageDataset, start: int) -> Section:
    """Find the training pictures nearest to the samples, tell the samples, and show the closest.

    Args:
        album: Takes the training pictures.
        samples: Whose pictures get "near", numbers of stills, and "same".
        train: The training pictures.
        start: How many codes are compared.
    """
    searched = subset(train, SEARCHED)
    codes = encode(album.tokenizer, searched)[:, :start]
    points = album.tokenizer.features(codes).cpu()
    queries = album.tokenizer.features(samples.codes[:, :start]).cpu()
    found = nearest(Euclidean(queries, points, torch.float64), min(NEAREST, len(points)))
    distances = (queries - points[found[:, 0]]).square().sum(1)
    shown, places = found.unique(return_inverse=True)
    stills = torch.tensor(album.add_stills(searched.images(shown)))[places]
    known = set(map(tuple, codes.tolist()))
    for picture, near, own in zip(
        samples.pictures, stills.tolist(), samples.codes[:, :start].tolist(), strict=True
    ):
        picture |= {"near": near, "same": tuple(own) in known}
    closest = distances.argsort(stable=True)[:PAIRS].tolist()
    near_ones = [samples.pictures[n] for n in closest]
    pairs = [{**one, "beside": one["near"][0], "besideName": NEAREST_NAME} for one in near_ones]
    same = sum(picture["same"] for picture in samples.pictures)
    text = (
        "The samples that come closest to a training picture, which stands beside them: by what "
        f"the first {_codes(start)} mean to the decoder, among {len(searched):,} training "
        f"pictures. {same} of {len(samples.pictures)} samples begin with the same "
        f"{_codes(start)} as one."
    )
    return {"title": "Nearest training pictures", "text": text, "groups": [_group("", pairs)]}


def _kept_lengths(lengths: Sequence[int], start: int, prior: Prior) -> list[int]:
    """One or two of the lengths below the start that the prior draws before all other codes."""
    order = prior.sequence.order
    below = [k for k in lengths if k < start] or [k for k in lengths[:1] if k < len(order)]
    below = [k for k in below if max(order[:k]) < k]
    return sorted({below[len(below) // 3], below[2 * len(below) // 3]}) if below else []


def _codes(k: int) -> str:
    return f"{k} codes" if k > 1 else "code"


def _group(name: str, pictures: list[Picture]) -> dict[str, Any]:
    return {"name": name, "still": None, "rows": [{"name": "", "pictures": pictures}]}
