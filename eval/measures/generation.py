"""The score of samples: against the train split, with the test split's own score as the floor."""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from eval.measures.metrics import FEWEST, METRIC_SEED, compute
from eval.measures.statistics import Statistics, statistics_of
from eval.networks.extractors import Extractor, extractor_facts
from eval.networks.features import Features, Images, extract
from eval.networks.inception import WEIGHTS_FILE
from eval.report.report import Column
from eval.subjects.samples import Samples, sample_facts
from eval.subjects.tokenized import asked_subset, data_facts, subset
from pqvae.data.config import DataConfig
from pqvae.data.dataset import ImageDataset, open_dataset
from pqvae.errors import UserError

FLOOR = "floor: test split"
FEWEST_OF_CLASS = 10  # images, on both sides; fewer say nothing of a class
TITLES = (  # of the standard Inception's scores; another network's have its name at their end
    Column("fid", "FID", 2),
    Column("kid", "KID", 5, "kid_std"),
    Column("isc", "IS", 2, "isc_std"),
    Column("precision", "precision", 3),
    Column("recall", "recall", 3),
    Column("f_score", "F", 3),
)


def columns(extractor: Extractor) -> list[Column]:
    """The columns of the table, by the names that the network's scores bear."""
    shown = [Column("subject", ""), Column("images", "images")]
    for column in TITLES:
        key = score_name(column.key, extractor)
        deviation = score_name(column.deviation, extractor) if column.deviation else None
        title = key if extractor.suffix else column.title
        shown.append(Column(key, title, column.digits, deviation))
    return shown


def score_name(key: str, extractor: Extractor) -> str:
    """The name that a score bears: "fid" is "fd_lite0" where "lite0" stands in for Inception."""
    if not extractor.suffix:
        return key
    for metric, name in (("fid", "fd"), ("kid", "kd")):
        if key.startswith(metric):  # also kid_std
            return name + extractor.suffix + key.removeprefix(metric)
    return key + extractor.suffix


def open_floor(reference: DataConfig) -> ImageDataset | None:
    """The test split, or None, with a line on stderr, where there is none."""
    try:
        return open_dataset(reference, "test")
    except UserError as error:
        print(f"no floor: {error}", file=sys.stderr)
        return None


@dataclass(frozen=True, slots=True)
class Score:
    """Scores with all that decided them."""

    rows: list[dict[str, Any]]  # the samples', the floor's, then each class's
    facts: dict[str, dict[str, Any]]
    notes: list[str]
    reference: Statistics | None  # None if no FID was asked for


def score(
    samples: Samples,
    reference: ImageDataset | Statistics,
    test: ImageDataset | None,
    extractor: Extractor,
    metrics: Sequence[str],
    *,
    by_class: bool = False,
    reference_n: int | None = None,
    device: torch.device,
    batch_size: int | None = None,
    cache: Path | None = None,
) -> Score:
    """Score samples against real images, and held-out real images likewise.

    Args:
        samples: The images to be scored.
        reference: The train split; or statistics, against which only FID can be had.
        test: Held-out images for the floor, or None for no floor.
        extractor: The feature network.
        metrics: Of "fid", "kid", "isc", "prc"; one that cannot be had is left out with a note.
        by_class: Also FID and KID of each class.
        reference_n: Use a fixed random subset of so many reference images; all by default.
        device: Where the features are computed.
        batch_size: Images per forward pass; by default what suits the device.
        cache: Folder of cached features, or None.

    Raises:
        UserError: Too few images, no classes to tell apart, or none of the metrics is possible.
    """
    train = reference if isinstance(reference, ImageDataset) else None
    metrics, notes = _possible(metrics, extractor, has_images=train is not None)
    _require_images(metrics, len(samples), str(samples.path))
    indices: dict[str, list[int]] = {}
    if train is not None:
        indices["reference"] = asked_subset(train, reference_n, "--reference-n")
        _require_images(metrics, len(indices["reference"]), train.name)
    sample_classes = _sample_classes(samples, train) if by_class else None
    floor_n = 0 if test is None else min(len(test), len(samples))
    if floor_n < max(FEWEST[metric] for metric in metrics):
        test = None
        notes.append("no floor: the reference has no test split, or a very small one")

    def features(images: Images, indices: Sequence[int], label: str) -> Features:
        return extract(
            extractor,
            images,
            indices,
            device=device,
            batch_size=batch_size,
            cache=cache,
            label=label,
        )

    # The samples come first: one that is damaged should be found before an hour of reference.
    sides = {"samples": features(samples, range(len(samples)), "samples")}
    facts = sample_facts(samples, sides["samples"].content_hash)
    real, statistics, fewest = None, None, len(samples)
    if isinstance(reference, Statistics):
        statistics, facts["reference"] = reference, reference.facts
    else:
        real = features(reference, indices["reference"], "reference")
        statistics = statistics_of(real) if "fid" in metrics else None
        fewest = min(len(samples), len(real))
        facts["reference"] = data_facts(reference, indices["reference"])
    if test is not None:
        indices[FLOOR] = subset(len(test), floor_n)
        sides[FLOOR] = features(test, indices[FLOOR], "floor")
        facts["floor"] = data_facts(test, indices[FLOOR])
        if floor_n < len(samples):
            notes.append(
                f"the floor has fewer images ({floor_n:,}), which raises its FID, not its KID"
            )
    rows = [
        _row(subject, images, compute(metrics, images, real, statistics), extractor)
        for subject, images in sides.items()
    ]
    if sample_classes is not None and train is not None and real is not None:
        classes = {"samples": sample_classes, "reference": _labels(train)[indices["reference"]]}
        if test is not None:
            classes[FLOOR] = _labels(test)[indices[FLOOR]]
        rows += _class_rows(metrics, sides, real, classes, train.class_names, extractor)
    facts["extractor"] = extractor_facts(extractor)
    subsets = [row.get(score_name("kid_subset_size", extractor)) for row in rows[: len(sides)]]
    facts["metrics"] = {
        "seed": METRIC_SEED,
        "KID_subsets_of": subsets if "kid" in metrics else None,  # 100 of them
    }
    if "fid" in metrics and fewest < extractor.dimensions:
        fid, kid = (column.title for column in columns(extractor)[2:4])
        notes.append(
            f"{fid} of {fewest:,} images, fewer than its {extractor.dimensions:,} features, is "
            f"biased upwards; compare it at equal counts only, or compare {kid}, which is unbiased"
        )
    return Score(rows, facts, notes, statistics)


def _row(
    subject: str, images: Features, found: dict[str, float], extractor: Extractor
) -> dict[str, Any]:
    named = {score_name(key, extractor): value for key, value in found.items()}
    return {"subject": subject, "images": len(images), **named}


def _class_rows(
    metrics: Sequence[str],
    sides: Mapping[str, Features],
    real: Features,
    classes: Mapping[str, Tensor],
    names: Sequence[str],
    extractor: Extractor,
) -> list[dict[str, Any]]:
    """FID and KID of each class against the reference's images of that class."""
    rows = []
    for number, name in enumerate(names):
        truth = real.where(classes["reference"] == number)
        for side, features in sides.items():
            images = features.where(classes[side] == number)
            if min(len(images), len(truth)) >= FEWEST_OF_CLASS:
                asked = [metric for metric in metrics if metric in ("fid", "kid")]
                found = compute(asked, images, truth)
                rows.append(_row(f"{name}, {side}", images, found, extractor))
    return rows


def _sample_classes(samples: Samples, train: ImageDataset | None) -> Tensor:
    """The class of each sample as the reference numbers it, int64 (n,)."""
    if train is None or train.labels is None:
        raise UserError("--by-class: the reference has no classes")
    if samples.labels is None:
        raise UserError(f"--by-class: {samples.path} does not say of which class each image is")
    numbers = {str(number): number for number in range(len(train.class_names))}
    numbers |= {name: number for number, name in enumerate(train.class_names)}
    unknown = set(samples.labels) - numbers.keys()
    if unknown:
        raise UserError(
            f"--by-class: {samples.path} has class {min(unknown)}, but {train.name} has "
            f"{', '.join(train.class_names)}"
        )
    return torch.tensor([numbers[label] for label in samples.labels])


def _labels(dataset: ImageDataset) -> Tensor:
    assert dataset.labels is not None  # all splits of a data set have classes, or none
    return dataset.labels


def _require_images(metrics: Sequence[str], n: int, where: str) -> None:
    for metric in metrics:
        if n < FEWEST[metric]:
            raise UserError(f"{where}: {metric} needs {FEWEST[metric]} images or more, not {n}")


def _possible(
    metrics: Sequence[str], extractor: Extractor, *, has_images: bool
) -> tuple[tuple[str, ...], list[str]]:
    """The metrics that can be had, and a note on each that cannot."""
    reasons = {}
    if not extractor.has_logits:
        remedy = "" if extractor.suffix else f"; --weights {WEIGHTS_FILE} has it"
        reasons["isc"] = (
            f"Inception Score needs the classifier, which {extractor.weights_name} lacks{remedy}"
        )
    if not has_images:
        for metric in ("kid", "prc"):
            reasons[metric] = f"{metric} needs images of the reference, not statistics alone"
    left = tuple(metric for metric in metrics if metric not in reasons)
    if not left:
        raise UserError(f"--metrics {','.join(metrics)}: {reasons[metrics[0]]}")
    return left, [f"left out: {reasons[metric]}" for metric in metrics if metric in reasons]
