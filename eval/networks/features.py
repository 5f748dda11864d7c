"""Images to features of a network, in chunks that are cached by what they were computed from."""

import hashlib
import importlib.metadata
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from eval.networks.extractors import Extractor
from eval.networks.trunk import tensors_digest
from pqvae.console import Progress
from pqvae.files import atomic_path, cache_root

# Images of one cache file: what an interrupted run loses at most, and what a longer one finds.
CHUNK = 500


class Images(Protocol):
    """Images by number, as a data set or a folder of samples has them."""

    def __len__(self) -> int: ...

    def images(self, indices: Sequence[int], /) -> Tensor: ...  # uint8 (B, 3, H, W)


@dataclass(frozen=True, slots=True)
class Features:
    """Features of N images."""

    pool: Tensor  # float32 (N, D)
    logits: Tensor | None  # float32 (N, 1008), without bias; None where the classifier is missing
    content_hash: str  # sha256 of the pixels, in order

    def __len__(self) -> int:
        return len(self.pool)

    def where(self, chosen: Tensor) -> "Features":
        """The features of some of the images, named by bool (N,)."""
        logits = None if self.logits is None else self.logits[chosen]
        return Features(self.pool[chosen], logits, "")


def default_cache() -> Path:
    """Where features are kept for the next score."""
    return cache_root() / "features"


def extract(
    extractor: Extractor,
    images: Images,
    indices: Sequence[int],
    *,
    device: torch.device,
    batch_size: int | None = None,
    cache: Path | None = None,
    label: str = "images",
) -> Features:
    """Compute the features of the images named, or find them in the cache.

    Args:
        extractor: The feature network; it is moved to ``device``.
        images: Where the pixels come from.
        indices: Which images, in which order. A prefix of the same order finds its chunks again.
        device: Where the network runs. The features depend on it by rounding only.
        batch_size: Images per forward pass, by default 8 on a CPU and 64 elsewhere.
        cache: Folder of the cache, or None for no cache.
        label: What the images are, for the progress bar.
    """
    batch_size = batch_size or (8 if device.type == "cpu" else 64)
    extractor.network.to(device)
    progress = Progress(label, len(indices))
    content = hashlib.sha256()
    chunks: list[dict[str, Tensor]] = []
    for start in range(0, len(indices), CHUNK):
        pixels = images.images(indices[start : start + CHUNK]).contiguous()
        content.update(pixels.numpy().data)
        path = None if cache is None else cache / f"{_key(pixels, extractor)}.safetensors"
        chunk = None if path is None else _load(path, len(pixels), extractor.has_logits)
        if chunk is None:
            chunk = _compute(extractor, pixels, device, batch_size, progress)
            if path is not None and not _store(path, chunk):
                cache = None
        else:
            progress.skip(len(pixels))
        chunks.append(chunk)
    progress.close()
    logits = torch.cat([chunk["logits"] for chunk in chunks]) if extractor.has_logits else None
    return Features(torch.cat([chunk["pool"] for chunk in chunks]), logits, content.hexdigest())


def _compute(
    extractor: Extractor,
    pixels: Tensor,
    device: torch.device,
    batch_size: int,
    progress: Progress,
) -> dict[str, Tensor]:
    names = ("pool", "logits") if extractor.has_logits else ("pool",)

    def run(batch: Tensor) -> tuple[Tensor, ...]:
        with torch.inference_mode():
            return tuple(output.cpu() for output in extractor.network(batch.to(device)))

    # On CPUs, a batch a core is a quarter faster than one batch on all cores.
    threads = torch.get_num_threads()
    pool = ThreadPoolExecutor(
        threads if device.type == "cpu" else 1,
        initializer=torch.set_num_threads,
        initargs=(1 if device.type == "cpu" else threads,),
    )
    batches = pixels.split(batch_size)
    parts: list[tuple[Tensor, ...]] = []
    try:
        # TF32, the default of convolutions on GPUs, moves the features in the third digit.
        with pool, torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
            for batch, outputs in zip(batches, pool.map(run, batches), strict=True):
                parts.append(outputs)
                progress.advance(len(batch))
    finally:
        torch.set_num_threads(threads)
    return {
        name: torch.cat(column).float()
        for name, column in zip(names, zip(*parts, strict=True), strict=True)
    }


def _key(pixels: Tensor, extractor: Extractor) -> str:
    version = importlib.metadata.version("torch-fidelity")
    origin = (extractor.name, extractor.weights_digest, version, *map(str, pixels.shape))
    digest = hashlib.sha256("\n".join(origin).encode())
    digest.update(pixels.numpy().data)
    return digest.hexdigest()


def _load(path: Path, n: int, has_logits: bool) -> dict[str, Tensor] | None:
    """The chunk, or None where there is none, or one that is damaged."""
    if not path.is_file():
        return None
    try:
        with safe_open(path, framework="pt") as file:
            names = file.keys()
            chunk = {name: file.get_tensor(name) for name in names}
            digest = (file.metadata() or {}).get("sha256")
    except (OSError, SafetensorError):
        return None
    expected = {"pool", "logits"} if has_logits else {"pool"}
    whole = set(chunk) == expected and all(len(value) == n for value in chunk.values())
    return chunk if whole and tensors_digest(chunk) == digest else None


def _store(path: Path, chunk: dict[str, Tensor]) -> bool:
    """Write the chunk whole or not at all; a cache that cannot be written is no reason to stop."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_path(path) as temporary:
            temporary.write_bytes(save(chunk, metadata={"sha256": tensors_digest(chunk)}))
    except OSError as error:
        print(f"features are not cached: {path.parent}: {error.strerror}", file=sys.stderr)
        return False
    return True
