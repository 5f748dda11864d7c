"""Scores by a network that takes no time, and the real one where it is installed."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from eval.measures.generation import Scored, open_floor, score
from eval.networks import trunk
from eval.networks.extractor import FeatureExtractor
from eval.networks.features import FeatureNetwork, Features
from eval.subjects.real import open_trained_on
from eval.subjects.samples import open_samples
from eval.subjects.selection import asked_subset
from pqvae.data.config import DataConfig

TRUNK = trunk.installed_trunk()
needs_trunk = pytest.mark.skipif(TRUNK is None, reason=f"{trunk.PACKAGE} is not installed")
CPU = torch.device("cpu")


class Tiny(nn.Module):
    """A stand-in for Inception: mean colours as features, the same as logits."""

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        features = nn.functional.adaptive_avg_pool2d(images.float() / 255, 2).flatten(1)
        return features, features


def tiny_network(*, has_logits: bool = True, suffix: str = "") -> FeatureNetwork:
    network = Tiny() if has_logits else nn.Sequential(Tiny(), First())
    return FeatureNetwork(
        network, "tiny", 12, "2x2", "no weights", "0" * 64, has_logits=has_logits, suffix=suffix
    )


class First(nn.Module):
    def forward(self, outputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return outputs[:1]


def as_features(pool: Tensor, logits: Tensor | None = None) -> Features:
    return Features(pool, logits, "")


def score_with(
    network: FeatureNetwork,
    samples: Path,
    reference: DataConfig,
    metrics: list[str],
    n: int | None = None,
    reference_n: int | None = None,
) -> Scored:
    real = open_trained_on(reference)
    train, test = real.splits["train"](), open_floor(real, "train")
    opened = open_samples(samples, n)
    reference_images = asked_subset(train, reference_n, "--reference-n")
    return score(opened, reference_images, test, FeatureExtractor(network, CPU), metrics)
