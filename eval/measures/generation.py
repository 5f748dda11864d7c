"""The score of samples: against real images, with the score of others of these as the floor."""

import pkgutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from eval.measures.fidelity import METRIC_SEED
from eval.measures.metrics import METRICS, Needs, named, score_name
from eval.measures.statistics import Reference, Statistics
from eval.networks.extractor import FeatureExtractor
from eval.networks.features import FeatureNetwork, Features
from eval.networks.inception import WEIGHTS_FILE
from eval.subjects.labels import class_numbers
from eval.subjects.real import RealImages
from eval.subjects.samples import Samples, sample_facts
from eval.subjects.selection import Selection, subset
from pqvae.data.dataset import ImageDataset
from pqvae.data.sample import Split
from pqvae.errors import UserError

FEWEST_OF_CLASS = 10  # images, on both sides; fewer say nothing of a class


@dataclass(frozen=True, slots=True)
class Scored:
    """Scores with all that decided them."""

    rows: list[dict[str, Any]]  # the samples', the floor's, then each class's
    facts: dict[str, dict[str, Any]]
    notes: list[str]
    reference: Reference

    def beside(self, other: "Scored") -> "Scored":
        """These scores, and in the same rows others that another network gave the same images."""
        more = {row["subject"]: row for row in other.rows}
        rows = [{**row, **more.pop(row["subject"], {})} for row in self.rows]
        notes = list(dict.fromkeys([*self.notes, *other.notes]))
        facts = {**self.facts, "stand-in": other.facts["extractor"]}
        return Scored([*rows, *more.values()], facts, notes, self.reference)


@dataclass(frozen=True, slots=True)
class Floor:
    """Real images that are scored as the samples are."""

    name: str  # of its rows
    images: ImageDataset


def open_floor(real: RealImages, split: Split) -> Floor | None:
    """Images held out of this split; None, with a line on stderr where they cannot be had."""
    other = real.held_out(split)
    if other is None:
        return None
    try:
        return Floor(f"floor: {real.called(other)}", real.splits[other]())
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
    floor: Floor | None,
    extractor: FeatureExtractor,
    metrics: Sequence[str],
    by_class: bool = False,
) -> Scored:
    """Score samples against real images, and held-out real images likewise.

    Args:
        samples: The images to be scored.
        reference: Real images; or statistics, which not every metric is content with.
        floor: Other real images, or None for no floor.
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
    held_out = _held_out(floor, len(samples), metrics, notes)
    classes = _classes(samples, reference, held_out, notes) if by_class else {}

    # The samples come first: one that is damaged should be found before an hour of reference.
    sides = {"samples": extractor(samples, label="samples")}
    facts = sample_facts(samples, sides["samples"].content_hash)
    if isinstance(reference, Statistics):
        real, facts["reference"] = Reference(reference), reference.facts
    else:
        features = extractor(reference, label="reference")
        real, facts["reference"] = Reference(features), reference.facts()
    if held_out is not None:
        side, images = held_out
        sides[side], facts["floor"] = extractor(images, label="floor"), images.facts()
    rows = [
        _row(subject, images, compute(metrics, images, real, network.suffix))
        for subject, images in sides.items()
    ]
    facts["metrics"] = _metric_facts(metrics, rows, network.suffix)
    alone = of_classifier(metrics)
    if alone and train is not None:  # they know no reference: it is scored as samples are
        rows.append(
            _row("reference", real.features, compute(alone, real.features, real, network.suffix))
        )
    if classes and train is not None:
        asked = [metric for metric in metrics if METRICS[metric].of_classes]
        names = train.dataset.class_names
        rows += _class_rows(asked, sides, real.features, classes, names, network.suffix)
    facts["extractor"] = network.facts()
    notes += _cautions(metrics, network, samples.record.get("decoder_trained_with") or "")
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
    floor: Floor | None, n: int, metrics: Sequence[str], notes: list[str]
) -> tuple[str, Selection] | None:
    """As many images of the floor as there are samples, or all; a note where they are fewer."""
    chosen = None if floor is None else subset(floor.images, n)
    fewest = max(METRICS[metric].fewest for metric in metrics)
    if floor is None or chosen is None or len(chosen) < fewest:
        notes.append("no floor: the reference has no held-out split, or a very small one")
        return None
    if len(chosen) < n:
        notes.append(
            f"the floor has fewer images ({len(chosen):,}): that raises its FID and lowers its IS, "
            "and leaves KID as it is"
        )
    return floor.name, chosen


def of_classifier(metrics: Sequence[str]) -> list[str]:
    """Those that are computed by a network's classifier, and know no reference."""
    return [metric for metric in metrics if METRICS[metric].needs == "classifier"]


def _cautions(metrics: Sequence[str], network: FeatureNetwork, trained_with: str) -> list[str]:
    """What is to be said of scores by another network than Inception, or by the decoder's own."""
    notes, suffix = [], network.suffix
    if suffix:
        notes = [
            f"{score_name(metric, suffix)}: the arithmetic of the {METRICS[metric].title} on the "
            f"classes of {network.name}; compare it with the reference of as many images, no other"
            for metric in of_classifier(metrics)
        ]
    if network.has_trained(trained_with):
        judged = ", ".join(named(METRICS[metric].scores[0], suffix).key for metric in metrics)
        notes.append(
            f"the decoder of these samples was trained with {trained_with}: no independent judge "
            f"of them ({judged}); take another --extractor"
        )
    return notes


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
            if side not in classes:
                continue
            images = features.where(classes[side] == number)
            if min(len(images), len(truth)) >= FEWEST_OF_CLASS:
                scores = compute(metrics, images, Reference(truth), suffix)
                rows.append(_row(f"{name}, {side}", images, scores))
    return rows


def _classes(
    samples: Samples,
    reference: Selection | Statistics,
    floor: tuple[str, Selection] | None,
    notes: list[str],
) -> dict[str, Tensor]:
    """The classes of every side that has some, as the reference numbers them, int64 (n,)."""
    if not isinstance(reference, Selection):
        raise UserError("--by-class: statistics alone have no classes; give images (--reference)")
    name, names = reference.dataset.name, reference.dataset.class_names
    if reference.labels is None:
        raise UserError(f"--by-class: the reference has no classes; put {name} into class folders")
    if samples.labels is None:
        remedy = ""
        if samples.record.get("class_counts"):
            again = samples.record.get("command", "python -m sampling.generate")
            remedy = f"; `{again}` adds them"
        raise UserError(
            f"--by-class: {samples.path} does not record the classes of its samples{remedy}"
        )
    classes = {"samples": class_numbers(samples, names, name), "reference": reference.labels}
    if floor is not None:
        side, held_out = floor
        if held_out.labels is None:
            notes.append(f"no floor of each class: {held_out.dataset.name} has no classes")
        else:
            classes[side] = held_out.labels
    return classes
