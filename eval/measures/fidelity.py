"""FID, KID, Inception Score, precision and recall: torch-fidelity's arithmetic on our features."""

from collections.abc import Mapping

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

from eval.measures.statistics import Reference, frechet_distance, statistics_of
from eval.networks.features import Features

METRIC_SEED = 2020  # torch-fidelity's default; KID's subsets and IS's splits are drawn with it
KID_SUBSET_SIZE = 1000  # or all images where there are fewer


def fid(images: Features, reference: Reference) -> dict[str, float]:
    """The Frechet distance: "fid"."""
    return {"fid": frechet_distance(statistics_of(images), reference.statistics)}


def kid(images: Features, reference: Reference) -> dict[str, float]:
    """The kernel distance over 100 subsets of "kid_subset_size" images: "kid" and "kid_std"."""
    real = reference.features
    subset_size = min(KID_SUBSET_SIZE, len(images), len(real))
    found: Mapping[str, float] = kid_features_to_metric(
        images.pool,
        real.pool,
        kid_subset_size=subset_size,
        rng_seed=METRIC_SEED,
        verbose=False,
    )
    scores = {"kid": found[KEY_METRIC_KID_MEAN], "kid_subset_size": subset_size}
    # Where each subset is the whole set, a deviation near zero would pass for precision.
    if subset_size < min(len(images), len(real)):
        scores["kid_std"] = found[KEY_METRIC_KID_STD]
    return scores


def inception_score(images: Features, reference: Reference) -> dict[str, float]:
    """The score over 10 splits, of logits alone: "isc" and "isc_std"."""
    if images.logits is None:
        raise ValueError("the Inception Score needs logits")
    found = isc_features_to_metric(images.logits, rng_seed=METRIC_SEED)
    return {"isc": found[KEY_METRIC_ISC_MEAN], "isc_std": found[KEY_METRIC_ISC_STD]}


def precision_recall(images: Features, reference: Reference) -> dict[str, float]:
    """With balls to the third neighbour: "precision", "recall", "f_score", their harmonic mean."""
    found: Mapping[str, float] = prc_features_to_metric(
        # float64: distances between near neighbours cancel in float32
        images.pool.double(),
        reference.features.pool.double(),
        save_cpu_ram=True,
        verbose=False,
    )
    return {
        "precision": found[KEY_METRIC_PRECISION],
        "recall": found[KEY_METRIC_RECALL],
        "f_score": found[KEY_METRIC_F_SCORE],
    }
