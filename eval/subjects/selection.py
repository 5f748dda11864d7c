"""Which images of a split are used: all of them, or a fixed random subset."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pqvae.data.dataset import ImageDataset
from pqvae.errors import UserError
from pqvae.randomness import generator_for

SUBSET_SEED = 0  # fixed, so that every run draws the same images and finds what is cached of them


@dataclass(frozen=True, slots=True)
class Selection:
    """Images of a data set, in an order of our own."""

    dataset: ImageDataset
    indices: Sequence[int]

    def __len__(self) -> int:
        return len(self.indices)

    @property
    def image_size(self) -> int:
        return self.dataset.image_size

    @property
    def labels(self) -> Tensor | None:
        """Classes, int64 (n,); None where the data set has none."""
        return None if self.dataset.labels is None else self.dataset.labels[list(self.indices)]

    @property
    def keys(self) -> list[str]:
        """The names of the images."""
        return [self.dataset.keys[index] for index in self.indices]

    def images(self, places: Sequence[int] | Tensor, /) -> Tensor:
        """Images by their places in the selection, uint8 (B, 3, H, W)."""
        indices = torch.as_tensor(self.indices, dtype=torch.int64)
        return self.dataset.images(indices[torch.as_tensor(places, dtype=torch.int64)])

    def first(self, n: int) -> "Selection":
        """The first n of them, or all where there are fewer."""
        return Selection(self.dataset, self.indices[:n])

    def facts(self) -> dict[str, Any]:
        """What a report must say of the images that were used."""
        total, n = len(self.dataset), len(self)
        return {
            "data": self.dataset.name,
            "images": n,
            "of": total if n < total else None,
            "subset_seed": SUBSET_SEED if n < total else None,
            "content": self.dataset.content_hash,
        }


def subset(dataset: ImageDataset, n: int | None = None) -> Selection:
    """The first n of a fixed random order (None: all): a larger subset begins with the smaller."""
    order = torch.randperm(len(dataset), generator=generator_for(SUBSET_SEED))
    return Selection(dataset, order[:n].tolist())


def asked_subset(dataset: ImageDataset, n: int | None, option: str) -> Selection:
    """A subset of the size that an option of the command asks for.

    Raises:
        UserError: The data set is smaller.
    """
    if n is not None and n > len(dataset):
        raise UserError(f"{option} {n}: {dataset.name} holds {len(dataset)} images")
    return subset(dataset, n)
