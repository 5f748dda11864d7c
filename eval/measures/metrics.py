"""FID, KID, Inception Score, precision and recall: torch-fidelity's arithmetic on our features."""

from collections.abc import Mapping, Sequence

from torch_fidelity.metric_isc import (
    KEY_METRIC_ISC_MEAN,
    KEY_METRIC_ISC_STD,
    isc_features_to_metric,
)
from torch_fidelity.metric_kid import (
    KEY_METRIC_KID_MEAN,
    KEY_METRIC_KID_STD,
    kid_features_to_metric,
)
from torch_fidelity.metric_prc import (
    KEY_METRIC_F_SCORE,
    KEY_METRIC_PRECISION,
    KEY_METRIC_RECALL,
    prc_features_to_metric,
)

from eval.measures.statistics import Statistics, frechet_distance, statistics_of
from eval.networks.features import Features

# Each metric with the fewest images for which its formula is defined.
FEWEST = {"fid": 2, "kid": 2, "isc": 10, "prc": 4}
METRIC_SEED = 2020  # torch-fidelity's default; KID's subsets and IS's splits are drawn with it
KID_SUBSET_SIZE = 1000  # or all images where there are fewer


def compute(
    metrics: Sequence[str],
    images: Features,
    reference: Features | None,
    statistics: Statistics | None = None,
) -> dict[str, float]:
    """Score images against a reference.

    Args:
        metrics: Of "fid", "kid", "isc", "prc"; "isc" needs logits and no reference.
        images: Features of the images to be scored.
        reference: Features of real images; None where "fid" and "isc" are all that is asked for.
        statistics: Of the reference, where they are known; "fid" needs no more.

    Returns:
        "fid"; "kid" over 100 subsets of "kid_subset_size" images, with "kid_std" unless a subset is
        the whole set; "isc" and "isc_std" over 10 splits; "precision" and "recall" with balls to
        the third neighbour, and "f_score", their harmonic mean. Those asked for.
    """
    scores: dict[str, float] = {}
    for metric in metrics:
        if metric == "isc":
            scores |= _isc(images)
        elif metric == "fid" and statistics is not None:
            scores["fid"] = frechet_distance(statistics_of(images), statistics)
        elif reference is None:
            raise ValueError(f"{metric} needs features of the reference")
        elif metric == "fid":
            scores["fid"] = frechet_distance(statistics_of(images), statistics_of(reference))
        elif metric == "kid":
            scores |= _kid(images, reference)
        elif metric == "prc":
            scores |= _prc(images, reference)
        else:
            raise ValueError(f"no metric {metric!r}")
    return scores


def _kid(images: Features, reference: Features) -> dict[str, float]:
    subset_size = min(KID_SUBSET_SIZE, len(images), len(reference))
    found: Mapping[str, float] = kid_features_to_metric(
        images.pool,
        reference.pool,
        kid_subset_size=subset_size,
        rng_seed=METRIC_SEED,
        verbose=False,
    )
    scores = {"kid": found[KEY_METRIC_KID_MEAN], "kid_subset_size": subset_size}
    # Where each subset is the whole set, a deviation near zero would pass for precision.
    if subset_size < min(len(images), len(reference)):
        scores["kid_std"] = found[KEY_METRIC_KID_STD]
    return scores


def _isc(images: Features) -> dict[str, float]:
    if images.logits is None:
        raise ValueError("the Inception Score needs logits")
    found = isc_features_to_metric(images.logits, rng_seed=METRIC_SEED)
    return {"isc": found[KEY_METRIC_ISC_MEAN], "isc_std": found[KEY_METRIC_ISC_STD]}


def _prc(images: Features, reference: Features) -> dict[str, float]:
    found: Mapping[str, float] = prc_features_to_metric(
        # float64: distances between near neighbours cancel in float32
        images.pool.double(),
        reference.pool.double(),
        save_cpu_ram=True,
        verbose=False,
    )
    return {
        "precision": found[KEY_METRIC_PRECISION],
        "recall": found[KEY_METRIC_RECALL],
        "f_score": found[KEY_METRIC_F_SCORE],
    }
