"""Batches: of training, a pure function of (seed, step); of a whole data set, bounded by pixels."""

import functools
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Protocol, overload

import torch
from torch import Tensor

from pqvae import distributed
from pqvae.console import Progress
from pqvae.data.config import DataConfig
from pqvae.data.dataset import ImageDataset
from pqvae.data.labels import class_name
from pqvae.errors import UserError
from pqvae.images import to_float
from pqvae.randomness import Stream, stream_generator

CHUNK_PIXELS = 1 << 18  # of the images that are in work at once: activations bound the memory


def parts_of_batch(batch_size: int, accumulate: int) -> list[slice]:
    """Where in each batch this process's share lies, one slice for each micro-batch.

    The processes' shares, and the micro-batches in them, follow one another and make the batch.

    Raises:
        UserError: There are too few images in a batch.
    """
    pieces = distributed.world_size() * accumulate
    if batch_size < pieces:
        raise UserError(
            f"trainer.batch_size is {batch_size}, but {distributed.world_size()} processes with "
            f"trainer.accumulate={accumulate} need at least {pieces}"
        )
    bounds = [batch_size * piece // pieces for piece in range(pieces + 1)]
    first = distributed.rank() * accumulate
    return [slice(*bounds[piece : piece + 2]) for piece in range(first, first + accumulate)]


class BatchOrder:
    """Indices of the batch at any step: a new permutation for each pass over the data."""

    def __init__(self, length: int, batch_size: int, seed: int) -> None:
        """Raises UserError where there are fewer samples than processes."""
        if length < distributed.world_size():
            raise UserError(
                f"{length} training images are too few for {distributed.world_size()} processes"
            )
        self.length, self.batch_size, self.seed = length, batch_size, seed
        self._permutation = functools.lru_cache(maxsize=4)(self._draw)

    def _draw(self, epoch: int) -> Tensor:
        return torch.randperm(
            self.length, generator=stream_generator(self.seed, Stream.ORDER, epoch)
        )

    def __call__(self, step: int) -> Tensor:
        """Indices int64 (batch_size,) of the batch at this step."""
        places = torch.arange(step * self.batch_size, (step + 1) * self.batch_size)
        epochs = places // self.length
        indices = torch.empty_like(places)
        for epoch in epochs.unique().tolist():
            inside = epochs == epoch
            indices[inside] = self._permutation(epoch)[places[inside] % self.length]
        return indices


class Augmentation:
    """Shifts some images by a few pixels, and mirrors half of them where that is harmless."""

    def __init__(self, dataset: ImageDataset, config: DataConfig) -> None:
        """Raises UserError where ``no_flip_classes`` names no class of the data set."""
        self.shift, self.shift_share = config.shift, config.shift_share
        self.may_flip = torch.full((len(dataset),), config.flip)
        asked = {class_name(name) for name in config.no_flip_classes}
        if unknown := sorted(asked - set(dataset.class_names)):
            known = ", ".join(dataset.class_names[:5]) or "none"
            raise UserError(
                f"data.no_flip_classes: {dataset.name} has no class {unknown[0]!r}; it has {known}"
            )
        falsified = {*dataset.no_flip_classes, *asked}
        if dataset.labels is not None:
            for index, name in enumerate(dataset.class_names):
                if name in falsified:
                    self.may_flip[dataset.labels == index] = False

    def __call__(
        self,
        images: Tensor,
        indices: Tensor,
        generator: torch.Generator,
        part: slice = slice(None),
    ) -> Tensor:
        """Change a part of a batch.

        Args:
            images: uint8 (b, 3, H, W), the images of the part.
            indices: int64 (B,), which images of the data set the whole batch is.
            generator: What it draws for an image depends on the place in the whole batch.
            part: Which of the batch the images are.
        """
        flip, offsets = self.draw(indices, generator)
        return augment(images, flip[part], offsets[:, part])

    def draw(self, indices: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """What ``augment`` is to do with a batch of images, int64 (B,): flips and offsets."""
        flip = (torch.rand(len(indices), generator=generator) < 0.5) & self.may_flip[indices]
        reach = torch.where(
            torch.rand(len(indices), generator=generator) < self.shift_share, self.shift, 0
        )
        offsets = (torch.rand(2, len(indices), generator=generator) * 2 - 1) * (reach + 0.5)
        return flip, offsets.round().long().clamp(-self.shift, self.shift)


class TrainingImages:
    """The augmented training batch of any step."""

    def __init__(
        self, dataset: ImageDataset, config: DataConfig, batch_size: int, seed: int
    ) -> None:
        self.dataset, self.seed = dataset, seed
        self.order = BatchOrder(len(dataset), batch_size, seed)
        self.augmentation = Augmentation(dataset, config)

    def __call__(self, step: int, part: slice = slice(None)) -> Tensor:
        """The images of this part of the step's batch, float32 (b, 3, H, W) in [-1, 1]."""
        indices = self.order(step)
        images = self.dataset.images(indices[part])
        generator = stream_generator(self.seed, Stream.AUGMENTATION, step)
        return to_float(self.augmentation(images, indices, generator, part))


class Prefetcher:
    """Calls a function of (step, part) before its results are asked for, in threads.

    The function must be pure: what it gives does not depend on the number of threads.
    """

    def __init__(
        self, function: Callable[[int, slice], Tensor], parts: Sequence[slice], workers: int
    ) -> None:
        """Prepare to be asked for the parts of one step after the other.

        Args:
            function: What to call.
            parts: The parts of every step.
            workers: How many calls to be ahead, each in its own thread; 0 calls when asked.
        """
        self._function, self._parts, self._workers = function, list(parts), workers
        self._pool = ThreadPoolExecutor(max(1, workers), "loader")
        self._pending: dict[tuple[int, int], Future[Tensor]] = {}

    def __call__(self, step: int, part: slice) -> Tensor:
        """What the function gives; its errors are raised here, in the order of the steps."""
        if self._workers == 0:
            return self._function(step, part)
        place = step, self._parts.index(part)
        if place not in self._pending:  # the first call, or a jump
            self._pending.clear()
        for ahead in range(self._workers + 1):
            steps, index = divmod(place[1] + ahead, len(self._parts))
            coming = step + steps, index
            if coming not in self._pending:
                call = self._pool.submit(self._function, coming[0], self._parts[index])
                self._pending[coming] = call
        return self._pending.pop(place).result()


def augment(images: Tensor, flip: Tensor, offsets: Tensor) -> Tensor:
    """Mirror the chosen images, then move each; what enters repeats the border.

    Args:
        images: uint8 (B, 3, H, W).
        flip: bool (B,), which images to mirror left to right.
        offsets: int64 (2, B), pixels by which the window moves down and to the right.
    """
    B, _, H, W = images.shape
    images = torch.where(flip[:, None, None, None], images.flip(3), images)
    rows = (torch.arange(H) + offsets[0].unsqueeze(1)).clamp_(0, H - 1)
    columns = (torch.arange(W) + offsets[1].unsqueeze(1)).clamp_(0, W - 1)
    batch = torch.arange(B)[:, None, None]
    moved = images.permute(0, 2, 3, 1)[batch, rows[:, :, None], columns[:, None, :]]
    return moved.permute(0, 3, 1, 2)


class IndexedImages(Protocol):
    """Images by number: a data set, or anything that is asked for images as one is."""

    @property
    def image_size(self) -> int: ...

    def images(self, indices: Tensor, /) -> Tensor: ...


def chunk_size(image_size: int) -> int:
    """How many images of this height and width are in work at once."""
    return max(8, CHUNK_PIXELS // image_size**2)


@overload
def map_images(
    dataset: IndexedImages,
    indices: Sequence[int] | Tensor,
    function: Callable[[Tensor], Tensor],
    label: str | None = None,
) -> Tensor: ...


@overload
def map_images(
    dataset: IndexedImages,
    indices: Sequence[int] | Tensor,
    function: Callable[[Tensor], tuple[Tensor, ...]],
    label: str | None = None,
) -> tuple[Tensor, ...]: ...


@torch.no_grad()
def map_images(
    dataset: IndexedImages,
    indices: Sequence[int] | Tensor,
    function: Callable[[Tensor], Tensor | tuple[Tensor, ...]],
    label: str | None = None,
) -> Tensor | tuple[Tensor, ...]:
    """What a function makes of images, chunk by chunk and without gradients.

    Args:
        dataset: Where the images are.
        indices: (n,), which of them, in which order.
        function: Of uint8 images (B, 3, H, W) on the CPU; what it returns has a row for each image,
            on any device. Called once, with B = 0, where there are no indices.
        label: What the progress is called; None shows none.

    Returns:
        As the function does, for all images in the order of the indices, on the CPU.
    """
    indices = torch.as_tensor(indices, dtype=torch.int64)
    progress = None if label is None else Progress(label, len(indices))
    parts: list[tuple[Tensor, ...]] = []
    single = False
    for chunk in indices.split(chunk_size(dataset.image_size)):
        result = function(dataset.images(chunk))
        single = isinstance(result, Tensor)
        parts.append(tuple(part.cpu() for part in ((result,) if single else result)))
        if progress:
            progress.advance(len(chunk))
    if progress:
        progress.close()
    columns = tuple(torch.cat(column) for column in zip(*parts, strict=True))
    return columns[0] if single else columns
