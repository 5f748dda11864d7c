"""Mean and covariance of features: what FID needs of a set, in the ``.npz`` that papers publish."""

import hashlib
import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch_fidelity.metric_fid import (
    KEY_METRIC_FID,
    fid_features_to_statistics,
    fid_statistics_to_metric,
)

from eval.networks.features import FeatureNetwork, Features
from pqvae.errors import UserError, is_out_of_memory
from pqvae.files import atomic_path


@dataclass(frozen=True, slots=True)
class Statistics:
    """The Gaussian that FID fits to features."""

    mean: Tensor  # float64 (D,)
    covariance: Tensor  # float64 (D, D), of the sample (divided by N - 1)
    facts: dict[str, Any]  # where they come from, for reports


class Reference:
    """Real images: their features, or nothing but the statistics of those."""

    def __init__(self, found: Features | Statistics) -> None:
        self._features = found if isinstance(found, Features) else None
        self._statistics = found if isinstance(found, Statistics) else None

    @property
    def features(self) -> Features:
        """Raises ValueError where there are statistics only."""
        if self._features is None:
            raise ValueError("the features of the reference are not known")
        return self._features

    @property
    def statistics(self) -> Statistics:
        """Those given, or those of the features, which are computed once."""
        if self._statistics is None:
            self._statistics = statistics_of(self.features)
        return self._statistics


def statistics_of(features: Features) -> Statistics:
    """Mean and covariance of features, in float64."""
    found = fid_features_to_statistics(features.pool.double())
    return Statistics(torch.from_numpy(found["mu"]), torch.from_numpy(found["sigma"]), {})


def frechet_distance(first: Statistics, second: Statistics) -> float:
    """FID, the squared Frechet distance of two Gaussians (Heusel et al. 2017), at least 0."""
    sides = [{"mu": one.mean.numpy(), "sigma": one.covariance.numpy()} for one in (first, second)]
    distance = float(fid_statistics_to_metric(*sides, verbose=False)[KEY_METRIC_FID])
    return 0.0 if distance <= 0 else distance  # below by rounding alone


def write_statistics(path: Path, statistics: Statistics, network: FeatureNetwork) -> None:
    """Write ``mu`` and ``sigma``, and beside them what they were computed with."""
    buffer = io.BytesIO()
    np.savez(
        buffer,
        mu=statistics.mean.numpy(),
        sigma=statistics.covariance.numpy(),
        extractor=np.array(network.name),
        weights_sha256=np.array(network.weights_digest),
    )
    with atomic_path(path) as temporary:
        temporary.write_bytes(buffer.getvalue())


def read_statistics(path: Path, network: FeatureNetwork) -> Statistics:
    """Read ``mu`` and ``sigma``, ours or published ones.

    Raises:
        UserError: No such file, or not the statistics of this network's features.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}; no statistics there") from error
    try:
        with np.load(io.BytesIO(data), allow_pickle=False) as file:
            mean, covariance = (torch.from_numpy(file[key]).double() for key in ("mu", "sigma"))
            made_with = str(file["extractor"]) if "extractor" in file else network.name
    except Exception as error:  # numpy and zipfile raise nearly anything on damaged input
        if is_out_of_memory(error):
            raise
        raise UserError(f"{path}: not an .npz file with the arrays mu and sigma") from error
    D = network.dimensions
    if made_with != network.name:
        raise UserError(f"{path}: statistics of {made_with}, but {network.name} is in use")
    if mean.shape != (D,) or covariance.shape != (D, D):
        raise UserError(
            f"{path}: mu is {tuple(mean.shape)} and sigma {tuple(covariance.shape)}, but "
            f"{network.name} has {D} features"
        )
    if not (mean.isfinite().all() and torch.allclose(covariance, covariance.T)):
        raise UserError(f"{path}: mu must be finite and sigma symmetric; the file is damaged")
    facts = {"statistics": str(path), "sha256": hashlib.sha256(data).hexdigest()}
    return Statistics(mean, covariance, facts)
