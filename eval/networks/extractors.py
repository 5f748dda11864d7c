"""Feature networks: the standard FID Inception, and a fast substitute that says its own name."""

import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, get_args

if TYPE_CHECKING:  # --help lists the extractors, and does not wait for torch
    from torch import nn

ExtractorName = Literal["inception", "lite0"]
EXTRACTORS: tuple[str, ...] = get_args(ExtractorName)


@dataclass(frozen=True, slots=True)
class Extractor:
    """A feature network with what a report must say about it.

    The network maps uint8 (B, 3, H, W) to a tuple: features (B, ``dimensions``), then with
    ``has_logits`` also logits (B, 1008) without bias; float32. An image's features depend on that
    image alone.
    """

    network: "nn.Module"
    name: str  # changes whenever the features of an image would
    dimensions: int
    resize: str  # what becomes of images before they enter
    weights_name: str
    weights_digest: str  # sha256 of the weights file
    has_logits: bool
    suffix: str  # of the names of its scores: only those of the standard Inception have none


def load_extractor(name: ExtractorName, weights: Path | None = None) -> Extractor:
    """Build a feature network, on the CPU.

    Args:
        name: "inception", of FID, or "lite0", a tenth of the work.
        weights: Use this file; by default, the first weights found.

    Raises:
        UserError: No weights, or others than those known.
    """
    from eval.networks import inception, lite0

    return (inception if name == "inception" else lite0).load(weights)


def installed_file(package: str, *parts: str) -> Path | None:
    """A file of an installed package, found without importing the package."""
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        return None
    path = Path(spec.submodule_search_locations[0], *parts)
    return path if path.is_file() else None


def extractor_facts(extractor: Extractor) -> dict[str, str]:
    """What a report must say of the network."""
    return {
        "name": extractor.name,
        "weights": extractor.weights_name,
        "sha256": extractor.weights_digest,
        "resize": extractor.resize,
        "dtype": "features float32, statistics float64",
    }
