"""EfficientNet-Lite0 as a network to score with: a fast one, for a first look."""

from pathlib import Path

from eval.networks.features import FeatureNetwork
from pqvae.lite0 import (
    FEATURES,
    PACKAGE,
    PACKAGE_VERSION,
    SIDE,
    WEIGHTS_SHA256,
    load_network,
)


def load(weights: Path | None = None) -> FeatureNetwork:
    """Build the network from the weights file named, or from the installed package's."""
    return FeatureNetwork(
        load_network(weights),
        f"efficientnet-lite0-{SIDE}",
        FEATURES,
        f"{SIDE}x{SIDE} by bilinear, antialiased where that is smaller, in the network",
        f"{PACKAGE} {PACKAGE_VERSION}",
        WEIGHTS_SHA256,
        has_logits=False,
        suffix="_lite0",
    )
