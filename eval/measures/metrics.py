"""The table of what samples are scored by; ``--help`` reads it, so it needs no torch.

A new metric is one function in one file, and one entry here:

    def compute(images: Features, reference: Reference) -> dict[str, float]: ...
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

# Of the reference mean and covariance only, or its images; of the network the classifier.
Needs = Literal["statistics", "images", "classifier"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Score:
    """A number of a metric, and how the table shows it."""

    key: str
    title: str
    digits: int  # after the point
    deviation: str | None = None  # key of its standard deviation


@dataclass(frozen=True, kw_only=True, slots=True)
class Metric:
    """What is asked for by one name: where it is computed, and what it gives and takes."""

    title: str  # in sentences
    compute: str  # "module:function", called with the images' features and the reference
    scores: tuple[Score, ...]
    fewest: int  # images for which its formula is defined
    needs: Needs
    of_classes: bool = False  # tells something of the few images of one class
    # What it is called, and all keys that begin with its name, where another network stands in for
    # Inception; by default only the network's name is put behind.
    substitute: str = ""
    when_few: str = ""  # what to say of fewer images than features
    facts: Mapping[str, str] = field(default_factory=dict)  # for the report: name -> computed key


METRICS: dict[str, Metric] = {
    "fid": Metric(
        title="FID",
        compute="eval.measures.fidelity:fid",
        scores=(Score(key="fid", title="FID", digits=2),),
        fewest=2,
        needs="statistics",
        of_classes=True,
        substitute="fd",
        when_few="is biased upwards; compare it at equal counts only, or compare {kid}, which is "
        "unbiased",
    ),
    "kid": Metric(
        title="kid",
        compute="eval.measures.fidelity:kid",
        scores=(Score(key="kid", title="KID", digits=5, deviation="kid_std"),),
        fewest=2,
        needs="images",
        of_classes=True,
        substitute="kd",
        facts={"KID_subsets_of": "kid_subset_size"},  # 100 of them
    ),
    "isc": Metric(
        title="Inception Score",
        compute="eval.measures.fidelity:inception_score",
        scores=(Score(key="isc", title="IS", digits=2, deviation="isc_std"),),
        fewest=10,
        needs="classifier",
        substitute="is",
    ),
    "prc": Metric(
        title="prc",
        compute="eval.measures.fidelity:precision_recall",
        scores=(
            Score(key="precision", title="precision", digits=3),
            Score(key="recall", title="recall", digits=3),
            Score(key="f_score", title="F", digits=3),
        ),
        fewest=4,
        needs="images",
    ),
}


def score_name(key: str, suffix: str) -> str:
    """The name that a score bears: "fid" is "fd_lite0" where "lite0" stands in for Inception.

    Args:
        key: As a metric computes it.
        suffix: Of the network; that of the standard Inception is empty.
    """
    if not suffix:
        return key
    for name, metric in METRICS.items():
        if metric.substitute and key.startswith(name):  # also kid_std
            return metric.substitute + suffix + key.removeprefix(name)
    return key + suffix


def named(score: Score, suffix: str) -> Score:
    """A score by the name and the title that it bears in the reports of a network."""
    key = score_name(score.key, suffix)
    deviation = score_name(score.deviation, suffix) if score.deviation else None
    title = key if suffix else score.title
    return Score(key=key, title=title, digits=score.digits, deviation=deviation)
