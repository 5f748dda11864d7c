"""Images to features: a network where it runs, with its batch size and its cache."""

import hashlib
import pkgutil
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from torch import Tensor

from eval.networks import NETWORKS
from eval.networks.features import (
    FeatureNetwork,
    Features,
    Images,
    cache_name,
    load_chunk,
    store_chunk,
)
from pqvae.console import Progress
from pqvae.files import cache_root

# Images of one cache file: what an interrupted run loses at most, and what a longer one finds.
CHUNK = 500


class FeatureExtractor:
    """Computes the features of images, or finds them in the cache."""

    def __init__(
        self,
        network: FeatureNetwork,
        device: torch.device,
        batch_size: int | None = None,
        cache: Path | None = None,
    ) -> None:
        """Move the network to where it is to run.

        Args:
            network: The feature network.
            device: Where it runs. The features depend on it by rounding only.
            batch_size: Images per forward pass, by default 8 on a CPU and 64 elsewhere.
            cache: Folder of the cache, or None for no cache.
        """
        network.module.to(device)
        self.network, self.device, self.cache = network, device, cache
        self.batch_size = batch_size or (8 if device.type == "cpu" else 64)

    def __call__(
        self, images: Images, indices: Sequence[int] | None = None, label: str = "images"
    ) -> Features:
        """The features of the images named.

        Args:
            images: Where the pixels come from.
            indices: Which images, in which order; None for all of them. A prefix of the same order
                finds its chunks again.
            label: What the images are, for the progress bar.
        """
        indices = range(len(images)) if indices is None else indices
        outputs, cache = self.network.outputs, self.cache
        progress = Progress(label, len(indices))
        content = hashlib.sha256()
        chunks: list[dict[str, Tensor]] = []
        for start in range(0, len(indices), CHUNK):
            pixels = images.images(indices[start : start + CHUNK]).contiguous()
            content.update(pixels.numpy().data)
            path = None if cache is None else cache / cache_name(pixels, self.network)
            chunk = None if path is None else load_chunk(path, len(pixels), outputs)
            if chunk is None:
                chunk = self._compute(pixels, progress)
                if path is not None and not store_chunk(path, chunk):
                    cache = None  # once is enough to say that it cannot be written
            else:
                progress.skip(len(pixels))
            chunks.append(chunk)
        progress.close()
        whole = {name: torch.cat([chunk[name] for chunk in chunks]) for name in outputs}
        return Features(whole["pool"], whole.get("logits"), content.hexdigest())

    def _compute(self, pixels: Tensor, progress: Progress) -> dict[str, Tensor]:
        def run(batch: Tensor) -> tuple[Tensor, ...]:
            with torch.inference_mode():
                outputs = self.network.module(batch.to(self.device))
            return tuple(output.cpu() for output in outputs)

        # On CPUs, a batch a core is a quarter faster than one batch on all cores.
        on_cpu, threads = self.device.type == "cpu", torch.get_num_threads()
        pool = ThreadPoolExecutor(
            threads if on_cpu else 1,
            initializer=torch.set_num_threads,
            initargs=(1 if on_cpu else threads,),
        )
        batches = pixels.split(self.batch_size)
        parts: list[tuple[Tensor, ...]] = []
        try:
            # TF32, the default of convolutions on GPUs, moves the features in the third digit.
            with pool, torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
                for batch, outputs in zip(batches, pool.map(run, batches), strict=True):
                    parts.append(outputs)
                    progress.advance(len(batch))
        finally:
            torch.set_num_threads(threads)
        columns = (torch.cat(column).float() for column in zip(*parts, strict=True))
        return dict(zip(self.network.outputs, columns, strict=True))


def load_network(name: str, weights: Path | None = None) -> FeatureNetwork:
    """Load one of ``NETWORKS``, on the CPU.

    Args:
        name: Its name in the table.
        weights: Use this file; by default, the first weights found.

    Raises:
        UserError: No weights, or others than those known.
    """
    return pkgutil.resolve_name(NETWORKS[name])(weights)


def open_extractor(
    name: str, weights: Path | None, device: torch.device, batch_size: int | None = None
) -> FeatureExtractor:
    """Load one of ``NETWORKS``, with the cache that all scores share.

    Raises:
        UserError: As ``load_network``.
    """
    cache = cache_root() / "features"
    return FeatureExtractor(load_network(name, weights), device, batch_size, cache)
