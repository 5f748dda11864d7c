"""Layouts of folders: what is a split, what a class, what is only looked through."""

from pathlib import Path

import pytest

from pqvae.data.arrange import arrange
from pqvae.data.sample import Listing, Sample, Split
from pqvae.errors import UserError

KNOWN: tuple[Split | None, ...] = ("train", "val", "test")


def listing(paths: str, split: Split | None = None) -> Listing:
    samples = [Sample(path, None, b"", 0, 0) for path in paths.split()]
    return arrange("data", {split: samples})


def told(paths: str) -> str:
    """Each image as split:class:key, sorted; the class of an image without one is empty."""
    parts = listing(paths).samples.items()
    return " ".join(
        sorted(f"{split}:{s.label or ''}:{s.key}" for split, samples in parts for s in samples)
    )


@pytest.mark.parametrize(
    ("paths", "expected"),
    [
        ("a b", "train::a train::b"),
        ("cat/a dog/b", "train:cat:cat/a train:dog:dog/b"),
        ("cat/old/a dog/b", "train:cat:cat/old/a train:dog:dog/b"),
        # A lone folder above the classes, as unpacked archives have it, or several.
        ("pets/cat/a pets/dog/b", "train:cat:pets/cat/a train:dog:pets/dog/b"),
        ("x/y/cat/a x/y/dog/b", "train:cat:x/y/cat/a train:dog:x/y/dog/b"),
        ("images/a images/b", "train::images/a train::images/b"),
        ("train/cat/a train/dog/b val/Images/c", "train:cat:cat/a train:dog:dog/b val::Images/c"),
        (
            "cat/test/a cat/more/b dog/c",
            "train:cat:cat/more/b train:cat:cat/test/a train:dog:dog/c",
        ),
        # Only side by side are they pictures and targets.
        ("images/a cat/b", "train:cat:cat/b train:images:images/a"),
        ("masks/a cat/b", "train:cat:cat/b train:masks:masks/a"),
        # Splits, above classes or not, below a lone folder or not.
        ("train/a test/b", "test::b train::a"),
        ("Training/cat/a Testing/cat/b", "test::cat/b train::cat/a"),
        (
            "train/cat/a train/dog/a test/cat/b",
            "test:cat:cat/b train:cat:cat/a train:dog:dog/a",
        ),
        ("data/train2017/a data/val2017/b", "train::a val::b"),
        (
            "train/images/a valid/images/b test/images/c",
            "test::images/c train::images/a val::images/b",
        ),
        (
            "seg_train/seg_train/sea/a seg_train/seg_train/ice/a seg_test/seg_test/sea/b",
            "test:sea:seg_test/sea/b train:ice:seg_train/ice/a train:sea:seg_train/sea/a",
        ),
        # Classes in train alone, as ImageNet comes: val is flat.
        ("train/cat/a train/dog/b val/c", "train:cat:cat/a train:dog:dog/b val::c"),
        # As Tiny ImageNet: a folder of pictures in each class, and one in val for all.
        (
            "train/cat/images/a train/dog/images/b val/images/c",
            "train:cat:cat/images/a train:dog:dog/images/b val::images/c",
        ),
        ("train/cat/a train/dog/b test/cat/c", "test:cat:cat/c train:cat:cat/a train:dog:dog/b"),
        # What puts a class called train right: one folder named train around all.
        (
            "train/bus/a train/car/b train/train/c",
            "train:bus:bus/a train:car:car/b train:train:train/c",
        ),
        ("up/train/bus/a up/train/train/c", "train:bus:bus/a train:train:train/c"),
        # All inside of a lone train are splits: it is a name for the whole.
        ("training_data/train/a training_data/test/b", "test::b train::a"),
        ("images/train/a images/val/b", "train::a val::b"),
    ],
)
def test_a_layout_is_read_as_its_owner_means_it(paths: str, expected: str) -> None:
    assert told(paths) == expected


@pytest.mark.parametrize(
    ("paths", "message"),
    [
        (
            "bus/a car/b train/c",
            r"data: train stands beside bus; if all are classes, put them into",
        ),
        ("up/bus/a up/train/c", r"data/up: train stands beside bus"),
        ("x/images/a x/Masks/b", r"data/x: images and Masks look like pictures"),
        (
            "cat/big/train/a cat/big/test/b dog/c",
            r"splits \(test, train\) lie in cat/big",
        ),
        ("train/a b", r"data: images lie beside train, which is a split; move them into one"),
        ("images/a masks/b", r"data: images and masks look like pictures and what is to be found"),
        (
            "train/JPEGImages/a train/SegmentationClass/a val/JPEGImages/b",
            r"data: JPEGImages and Seg",
        ),
        (
            "cat/train/a cat/test/b dog/train/c",
            r"splits \(test, train\) lie in cat; put them above",
        ),
    ],
)
def test_a_layout_with_two_readings_is_refused(paths: str, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        listing(paths)
    assert len(str(caught.value)) < 200


def test_one_name_of_a_class_in_two_forms_is_one_class() -> None:
    composed, decomposed = "pens\u00e9e", "pense\u0301e"
    assert told(f"{decomposed}/a b/c") == f"train:b:b/c train:{composed}:{decomposed}/a"


def test_shards_that_cannot_be_told_apart_are_refused() -> None:
    samples = [Sample("0", None, Path(f"{folder}/x.tar"), 512, 1) for folder in "ab"]
    with pytest.raises(UserError, match=r"data: two shards of one name hold the same keys"):
        arrange("data", {"train": samples})
    samples[1] = Sample("0", None, Path("b/y.tar"), 512, 1)
    assert [s.key for s in arrange("data", {"train": samples}).samples["train"]] == ["x/0", "y/0"]


def test_what_the_names_of_shards_say_comes_first() -> None:
    found: dict[Split | None, list[Sample]] = {
        split: [Sample(f"{split}/{name}/0", None, b"", 0, 0) for name in ("cat", "train")]
        for split in KNOWN
    }
    parts = arrange("data", found).samples
    assert {split: [sample.label for sample in part] for split, part in parts.items()} == {
        split: ["cat", "train"] for split in KNOWN
    }
