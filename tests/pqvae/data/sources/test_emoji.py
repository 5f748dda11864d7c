"""The built-in emoji: all there, no design on two sides, and none mirrored that must not be."""

from collections import Counter

import pytest

from pqvae.data.batches import Augmentation
from pqvae.data.config import DataConfig
from pqvae.data.dataset import ImageDataset, open_dataset
from pqvae.data.sample import Split

SPLITS: tuple[Split, ...] = ("train", "val", "test")


@pytest.fixture(scope="module")
def emoji() -> dict[Split, ImageDataset]:
    return {split: open_dataset(DataConfig(), split) for split in SPLITS}


def test_the_built_in_emoji_are_all_there(emoji: dict[Split, ImageDataset]) -> None:
    assert {split: len(dataset) for split, dataset in emoji.items()} == {
        "train": 6119,
        "val": 328,
        "test": 686,
    }
    for dataset in emoji.values():
        assert dataset.class_names == emoji["train"].class_names
        assert len(dataset.class_names) == 9
        assert dataset.labels is not None
        names = [dataset.class_names[label] for label in dataset.labels.tolist()]
        assert names == [key.split("/")[0] for key in dataset.keys]
        assert dataset.images([0, 1]).shape == (2, 3, 32, 32)


def test_no_emoji_picture_or_base_design_is_on_two_sides(
    emoji: dict[Split, ImageDataset],
) -> None:
    tones = {"1f3fb", "1f3fc", "1f3fd", "1f3fe", "1f3ff"}

    def designs(dataset: ImageDataset) -> set[tuple[str, ...]]:
        code_points = (key.split("/")[1].split("-")[:-1] for key in dataset.keys)
        return {tuple(point for point in points if point not in tones) for points in code_points}

    def pictures(dataset: ImageDataset) -> set[bytes]:
        return {image.numpy().tobytes() for image in dataset.images(range(len(dataset)))}

    for kind in (designs, pictures):
        train, val, test = (kind(emoji[split]) for split in SPLITS)
        assert len(train) > 1000
        assert not train & val
        assert not train & test
        assert not val & test


def test_flags_and_symbols_are_never_mirrored_and_all_others_may_be(
    emoji: dict[Split, ImageDataset],
) -> None:
    dataset = emoji["train"]
    assert dataset.labels is not None
    names = [dataset.class_names[label] for label in dataset.labels.tolist()]
    may_flip = Augmentation(dataset, DataConfig()).may_flip.tolist()
    assert Counter(name for name, flip in zip(names, may_flip, strict=True) if not flip) == {
        "flags": 437,
        "symbols": 381,
    }
    assert set(names) == {
        *("activities", "animals-nature", "flags", "food-drink", "objects"),
        *("people-body", "smileys-emotion", "symbols", "travel-places"),
    }
    assert names.count("flags") == 437
    assert names.count("symbols") == 381
