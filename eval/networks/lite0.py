"""EfficientNet-Lite0 as a network to score with: a fast one, for a first look."""

from pathlib import Path

from torch import Tensor, nn

from eval.networks.features import FeatureNetwork
from pqvae.lite0 import (
    FEATURES,
    NAME,
    PACKAGE,
    PACKAGE_VERSION,
    SIDE,
    WEIGHTS_SHA256,
    Lite0,
    load_network,
)


def load(weights: Path | None = None) -> FeatureNetwork:
    """Build the network from the weights file named, or from the installed package's."""
    return FeatureNetwork(
        _Classified(load_network(weights)),
        f"{NAME}-{SIDE}",
        FEATURES,
        f"{SIDE}x{SIDE} by bilinear, antialiased where that is smaller, in the network",
        f"{PACKAGE} {PACKAGE_VERSION}",
        WEIGHTS_SHA256,
        has_logits=True,
        suffix="_lite0",
    )


class _Classified(nn.Module):
    """Features and logits of a network."""

    def __init__(self, network: Lite0) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        (features,) = self.network(images)
        return features, self.network.classify(features)
