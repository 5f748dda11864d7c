"""The score of samples: against the train split, with the test split's own score as the floor."""

import pkgutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from eval.measures.fidelity import METRIC_SEED
from eval.measures.metrics import METRICS, Needs, named, score_name
from eval.measures.statistics import Reference, Statistics
from eval.networks.extractor import FeatureExtractor
from eval.networks.features import FeatureNetwork, Features
from eval.networks.inception import WEIGHTS_FILE
from eval.subjects.samples import Samples, sample_facts
from eval.subjects.selection import Selection, subset
from pqvae.data.config import DataConfig
from pqvae.data.dataset import ImageDataset, open_dataset
from pqvae.errors import UserError

FLOOR = "floor: test split"
FEWEST_OF_CLASS = 10  # images, on both sides; fewer say nothing of a class


@dataclass(frozen=True, slots=True)
class Scored:
    """Scores with all that decided them."""

    rows: list[dict[str, Any]]  # the samples', the floor's, then each class's
    facts: dict[str, dict[str, Any]]
    notes: list[str]
    reference: Reference


def open_floor(reference: DataConfig) -> ImageDataset | None:
    """The test split, or None, with a line on stderr, where there is none."""
    try:
        return open_dataset(reference, "test")
    except UserError as error:
        print(f"no floor: {error}", file=sys.stderr)
        return None


def compute(
    metrics: Sequence[str], images: Features, reference: Reference, suffix: str = ""
) -> dict[str, float]:
    """Score images against a reference, by some of ``METRICS``.

    Args:
        metrics: Their names.
        images: Features of the images to be scored.
        reference: What they are compared with.
        suffix: Of the network, as in ``score_name``.
    """
    scores: dict[str, float] = {}
    for metric in metrics:
        found = pkgutil.resolve_name(METRICS[metric].compute)(images, reference)
        scores |= {score_name(key, suffix): value for key, value in found.items()}
    return scores


def score(
    samples: Samples,
    reference: Selection | Statistics,
    test: ImageDataset | None,
    extractor: FeatureExtractor,
    metrics: Sequence[str],
    by_class: bool = False,
) -> Scored:
    """Score samples against real images, and held-out real images likewise.

    Args:
        samples: The images to be scored.
        reference: Of the train split; or statistics, which not every metric is content with.
        test: Held-out images for the floor, or None for no floor.
        extractor: Computes the features.
        metrics: Of ``METRICS``; one that cannot be had is skipped with a note.
        by_class: Also those that tell something of each class.

    Raises:
        UserError: Too few images, no classes to tell apart, or none of the metrics is possible.
    """
    network = extractor.network
    train = reference if isinstance(reference, Selection) else None
    metrics, notes = _possible(metrics, network, has_images=train is not None)
    _require_images(metrics, len(samples), str(samples.path))
    if train is not None:
        _require_images(metrics, len(train), train.dataset.name)
    sample_classes = _sample_classes(samples, train) if by_class else None
    held_out = _held_out(test, len(samples), metrics, notes)

    # The samples come first: one that is damaged should be found before an hour of reference.
    sides = {"samples": extractor(samples, label="samples")}
    facts = sample_facts(samples, sides["samples"].content_hash)
    if isinstance(reference, Statistics):
        real, facts["reference"] = Reference(reference), reference.facts
    else:
        features = extractor(reference, label="reference")
        real, facts["reference"] = Reference(features), reference.facts()
    if held_out is not None:
        sides[FLOOR], facts["floor"] = extractor(held_out, label="floor"), held_out.facts()
    rows = [
        _row(subject, images, compute(metrics, images, real, network.suffix))
        for subject, images in sides.items()
    ]
    facts["metrics"] = _metric_facts(metrics, rows, network.suffix)
    if sample_classes is not None and train is not None:
        known = {"reference": train.labels, FLOOR: None if held_out is None else held_out.labels}
        classes = {side: labels for side, labels in known.items() if labels is not None}
        classes["samples"] = sample_classes
        asked = [metric for metric in metrics if METRICS[metric].of_classes]
        names = train.dataset.class_names
        rows += _class_rows(asked, sides, real.features, classes, names, network.suffix)
    facts["extractor"] = network.facts()
    notes += _few(metrics, network, min(len(samples), len(samples if train is None else train)))
    return Scored(rows, facts, notes, real)


def _possible(
    metrics: Sequence[str], network: FeatureNetwork, *, has_images: bool
) -> tuple[list[str], list[str]]:
    """The metrics that can be had, and a note on each that cannot."""
    lacks: dict[Needs, str] = {}
    if not network.has_logits:
        remedy = "" if network.suffix else f"; --weights {WEIGHTS_FILE} has it"
        lacks["classifier"] = f"the classifier, which {network.weights_name} lacks{remedy}"
    if not has_images:
        lacks["images"] = "images of the reference, not statistics alone"
    reasons = {
        metric: f"{METRICS[metric].title} needs {lacks[METRICS[metric].needs]}"
        for metric in metrics
        if METRICS[metric].needs in lacks
    }
    left = [metric for metric in metrics if metric not in reasons]
    if not left:
        raise UserError(f"--metrics {','.join(metrics)}: {reasons[metrics[0]]}")
    return left, [f"left out: {reason}" for reason in reasons.values()]


def _require_images(metrics: Sequence[str], n: int, where: str) -> None:
    for metric in metrics:
        fewest = METRICS[metric].fewest
        if n < fewest:
            raise UserError(f"{where}: {metric} needs {fewest} images or more, not {n}")


def _held_out(
    test: ImageDataset | None, n: int, metrics: Sequence[str], notes: list[str]
) -> Selection | None:
    """As many test images as there are samples, or all; a note is added where they are fewer."""
    floor = None if test is None else subset(test, n)
    if floor is None or len(floor) < max(METRICS[metric].fewest for metric in metrics):
        notes.append("no floor: the reference has no test split, or a very small one")
        return None
    if len(floor) < n:
        notes.append(
            f"the floor has fewer images ({len(floor):,}), which raises its FID, not its KID"
        )
    return floor


def _few(metrics: Sequence[str], network: FeatureNetwork, n: int) -> list[str]:
    """What is to be said of fewer images than features."""
    if n >= network.dimensions:
        return []
    suffix = network.suffix
    titles = {name: named(about.scores[0], suffix).title for name, about in METRICS.items()}
    return [
        f"{titles[metric]} of {n:,} images, fewer than its {network.dimensions:,} features, "
        + METRICS[metric].when_few.format_map(titles)
        for metric in metrics
        if METRICS[metric].when_few
    ]


def _metric_facts(
    metrics: Sequence[str], rows: Sequence[Mapping[str, Any]], suffix: str
) -> dict[str, Any]:
    facts: dict[str, Any] = {"seed": METRIC_SEED}
    for metric in metrics:
        for name, key in METRICS[metric].facts.items():
            facts[name] = [row.get(score_name(key, suffix)) for row in rows]
    return facts


def _row(subject: str, images: Features, scores: Mapping[str, float]) -> dict[str, Any]:
    return {"subject": subject, "images": len(images), **scores}


def _class_rows(
    metrics: Sequence[str],
    sides: Mapping[str, Features],
    real: Features,
    classes: Mapping[str, Tensor],
    names: Sequence[str],
    suffix: str,
) -> list[dict[str, Any]]:
    """Scores of each class against the reference's images of that class."""
    rows = []
    for number, name in enumerate(names):
        truth = real.where(classes["reference"] == number)
        for side, features in sides.items():
            images = features.where(classes[side] == number)
            if min(len(images), len(truth)) >= FEWEST_OF_CLASS:
                scores = compute(metrics, images, Reference(truth), suffix)
                rows.append(_row(f"{name}, {side}", images, scores))
    return rows


def _sample_classes(samples: Samples, train: Selection | None) -> Tensor:
    """The class of each sample as the reference numbers it, int64 (n,)."""
    if train is None or train.dataset.labels is None:
        raise UserError("--by-class: the reference has no classes")
    if samples.labels is None:
        remedy = ""
        if samples.record.get("class_counts"):
            again = samples.record.get("command", "python -m sampling.generate")
            remedy = f"; `{again}` adds them"
        raise UserError(
            f"--by-class: {samples.path} does not record the classes of its samples{remedy}"
        )
    names = train.dataset.class_names
    numbers = {str(number): number for number in range(len(names))}
    numbers |= {name: number for number, name in enumerate(names)}
    unknown = set(samples.labels) - numbers.keys()
    if unknown:
        raise UserError(
            f"--by-class: {samples.path} has class {min(unknown)}, but {train.dataset.name} has "
            f"{', '.join(names)}"
        )
    return torch.tensor([numbers[label] for label in samples.labels])
