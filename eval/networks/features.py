"""What a feature network is, what it makes of images, and files that keep the result."""

import hashlib
import importlib.metadata
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from pqvae.files import atomic_path
from pqvae.weights import tensors_digest


class Images(Protocol):
    """Images by number, as a data set or a folder of samples has them."""

    def __len__(self) -> int: ...

    def images(self, indices: Sequence[int], /) -> Tensor: ...  # uint8 (B, 3, H, W)


@dataclass(frozen=True, slots=True)
class FeatureNetwork:
    """A feature network with what a report must say about it.

    The module maps uint8 (B, 3, H, W) to a tuple: features (B, ``dimensions``), then with
    ``has_logits`` also logits (B, classes), Inception's without bias; float32. An image's features
    depend on that image alone.
    """

    module: nn.Module
    name: str  # changes whenever the features of an image would
    dimensions: int
    resize: str  # what becomes of images before they enter
    weights_name: str
    weights_digest: str  # sha256 of the weights file
    has_logits: bool
    suffix: str  # of the names of its scores: only those of the standard Inception have none

    def has_trained(self, trained_with: str) -> bool:
        """Whether it is the network that a decoder was trained with, as its trainer says."""
        return bool(trained_with) and self.name.startswith(trained_with.split(",")[0])

    @property
    def outputs(self) -> tuple[str, ...]:
        """Names of what the module returns, as ``Features`` has them."""
        return ("pool", "logits") if self.has_logits else ("pool",)

    def facts(self) -> dict[str, str]:
        """What a report must say of the network."""
        return {
            "name": self.name,
            "weights": self.weights_name,
            "sha256": self.weights_digest,
            "resize": self.resize,
            "dtype": "features float32, statistics float64",
        }


@dataclass(frozen=True, slots=True)
class Features:
    """Features of N images."""

    pool: Tensor  # float32 (N, D)
    logits: Tensor | None  # float32 (N, classes); None where the classifier is missing
    content_hash: str  # sha256 of the pixels, in order

    def __len__(self) -> int:
        return len(self.pool)

    def where(self, chosen: Tensor) -> "Features":
        """The features of some of the images, named by bool (N,)."""
        logits = None if self.logits is None else self.logits[chosen]
        return Features(self.pool[chosen], logits, "")


def cache_name(pixels: Tensor, network: FeatureNetwork) -> str:
    """The name of the cache file for images (n, 3, H, W): a hash of all that decides it."""
    version = importlib.metadata.version("torch-fidelity")
    origin = (network.name, network.weights_digest, version, *map(str, pixels.shape))
    digest = hashlib.sha256("\n".join(origin).encode())
    digest.update(pixels.numpy().data)
    return f"{digest.hexdigest()}.safetensors"


def load_chunk(path: Path, n: int, outputs: Sequence[str]) -> dict[str, Tensor] | None:
    """The outputs for n images, or None where there is no file, or a damaged one."""
    if not path.is_file():
        return None
    try:
        with safe_open(path, framework="pt") as file:
            names = file.keys()
            chunk = {name: file.get_tensor(name) for name in names}
            digest = (file.metadata() or {}).get("sha256")
    except (OSError, SafetensorError):
        return None
    whole = set(chunk) == set(outputs) and all(len(value) == n for value in chunk.values())
    return chunk if whole and tensors_digest(chunk) == digest else None


def store_chunk(path: Path, chunk: dict[str, Tensor]) -> bool:
    """Write the chunk whole or not at all; a cache that cannot be written is no reason to stop."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_path(path) as temporary:
            temporary.write_bytes(save(chunk, metadata={"sha256": tensors_digest(chunk)}))
    except OSError as error:
        print(f"features are not cached: {path.parent}: {error.strerror}", file=sys.stderr)
        return False
    return True
