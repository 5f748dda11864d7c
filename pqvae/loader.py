"""Training batches as a pure function of (seed, step): nothing to save, nothing to resume."""

import torch
from torch import Tensor

from pqvae.datasets import DataConfig, ImageDataset
from pqvae.images import to_float


def generator_for(seed: int, *indices: int) -> torch.Generator:
    """A generator that depends on all of the numbers and on nothing else."""
    state = seed
    for index in indices:  # a linear congruential step between, so that (1, 2) is not (2, 1)
        state = (state * 6364136223846793005 + index + 1442695040888963407) % 2**63
    return torch.Generator().manual_seed(state)


class BatchOrder:
    """Indices of the batch at any step: a new permutation for each pass over the data."""

    def __init__(self, length: int, batch_size: int, seed: int) -> None:
        self.length, self.batch_size, self.seed = length, batch_size, seed
        self._epoch, self._permutation = -1, torch.empty(0, dtype=torch.int64)

    def __call__(self, step: int) -> Tensor:
        """Indices int64 (batch_size,) of the batch at this step."""
        places = torch.arange(step * self.batch_size, (step + 1) * self.batch_size)
        epochs = places // self.length
        indices = torch.empty_like(places)
        for epoch in epochs.unique().tolist():
            if epoch != self._epoch:
                generator = generator_for(self.seed, epoch)
                self._permutation = torch.randperm(self.length, generator=generator)
                self._epoch = epoch
            inside = epochs == epoch
            indices[inside] = self._permutation[places[inside] % self.length]
        return indices


class Augmentation:
    """Shifts some images by a few pixels, and mirrors half of them where that is harmless."""

    def __init__(self, dataset: ImageDataset, config: DataConfig) -> None:
        self.shift, self.shift_share = config.shift, config.shift_share
        self.may_flip = torch.full((len(dataset),), config.flip)
        if dataset.labels is not None:
            for index, name in enumerate(dataset.class_names):
                if name in config.no_flip_classes:
                    self.may_flip[dataset.labels == index] = False

    def __call__(self, images: Tensor, indices: Tensor, generator: torch.Generator) -> Tensor:
        """Change uint8 images (B, 3, H, W), which are those at the indices (B,) of the data set."""
        flip = (torch.rand(len(indices), generator=generator) < 0.5) & self.may_flip[indices]
        reach = torch.where(
            torch.rand(len(indices), generator=generator) < self.shift_share, self.shift, 0
        )
        offsets = (torch.rand(2, len(indices), generator=generator) * 2 - 1) * (reach + 0.5)
        return augment(images, flip, offsets.round().long().clamp(-self.shift, self.shift))


class TrainingImages:
    """The augmented training batch of any step."""

    def __init__(
        self, dataset: ImageDataset, config: DataConfig, batch_size: int, seed: int
    ) -> None:
        self.dataset, self.seed = dataset, seed
        self.order = BatchOrder(len(dataset), batch_size, seed)
        self.augmentation = Augmentation(dataset, config)

    def __call__(self, step: int) -> Tensor:
        """The images of this step, float32 (B, 3, H, W) in [-1, 1]."""
        indices = self.order(step)
        images = self.dataset.images(indices)
        return to_float(self.augmentation(images, indices, generator_for(self.seed, step, 1)))


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
