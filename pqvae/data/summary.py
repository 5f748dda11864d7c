"""What a run says of its data at the start, so that a wrong reading is seen before the training."""

from collections.abc import Mapping

from pqvae.console import say
from pqvae.data.dataset import ImageDataset
from pqvae.data.sample import Split


def say_splits(splits: Mapping[Split, ImageDataset]) -> None:
    """Say how many images each split has, and how the images were read.

    Args:
        splits: Train, val and test of one data set.
    """
    sizes = [f"{len(dataset):,} {split}" for split, dataset in splits.items()]
    say(f"data: {', '.join(sizes)} images")
