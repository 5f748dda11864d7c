"""Real images to compare with: whole where nothing was trained on them, split as training did."""

import itertools
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch

from eval.subjects.real import open_named, open_reference, open_trained_on, same_place
from eval.subjects.samples import Samples
from eval.subjects.tokenized import real_images
from pqvae.data.config import DataConfig
from pqvae.data.dataset import open_dataset
from pqvae.errors import UserError
from pqvae.images import encode_png
from stage1_tokenizer import Tokenizer

SIZE = 8


def write_images(folder: Path, n: int) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for index in range(n):
        image = torch.full((3, SIZE, SIZE), index, dtype=torch.uint8)
        (folder / f"{index:03d}.png").write_bytes(encode_png(image))
    return folder


def config_of(path: Path) -> DataConfig:
    return DataConfig(path=str(path), image_size=SIZE)


def samples_of(data: dict[str, Any]) -> Samples:
    image, record = torch.zeros(3, SIZE, SIZE, dtype=torch.uint8), {"data": data}
    return Samples(Path("s"), lambda _: image, 4, 4, SIZE, record, None)


def test_a_folder_without_splits_counts_whole(tmp_path: Path) -> None:
    path = write_images(tmp_path / "plain", 60)
    real = open_named(config_of(path), None)
    split = real.choose(None, "test")
    images = real.splits[split]()
    assert len(images) == 60
    assert images.name == str(path)
    assert (real.called(split), real.held_out(split)) == ("all images", None)
    with pytest.raises(UserError, match=r"--split test: .*plain has no splits.*leave --split out"):
        real.choose("test", "train")


def test_images_that_were_trained_on_are_split_as_training_did(tmp_path: Path) -> None:
    config = config_of(write_images(tmp_path / "plain", 60))
    real = open_trained_on(config)
    keys = {split: real.splits[split]().keys for split in ("train", "val", "test")}
    assert keys["test"] == open_dataset(config, "test").keys
    assert all(set(a).isdisjoint(b) for a, b in itertools.combinations(keys.values(), 2))
    assert sum(map(len, keys.values())) == 60
    assert real.held_out(real.choose(None, "train")) == "test"
    assert real.called("train") == "train split"


def test_images_that_were_trained_on_are_known_where_they_have_moved(tmp_path: Path) -> None:
    before = write_images(tmp_path / "before", 60)
    known = open_dataset(config_of(before), "train").content_hash
    after = before.rename(tmp_path / "after")
    assert not open_named(config_of(after), known).whole
    assert open_named(config_of(after), "of others").whole


def test_splits_of_its_own_lose_nothing_to_those_that_are_missing(tmp_path: Path) -> None:
    for split, n in (("train", 60), ("test", 7)):
        write_images(tmp_path / "two" / split, n)
    real = open_named(config_of(tmp_path / "two"), None)
    assert {split: len(images()) for split, images in real.splits.items()} == {
        "train": 60,
        "test": 7,
    }
    assert real.splits["train"]().name == f"{tmp_path / 'two'} train"
    assert (real.held_out("train"), real.held_out("test")) == ("test", "train")
    with pytest.raises(UserError, match=r"--split val: .*two has no val images, only train and te"):
        real.choose("val", "train")


def test_a_reference_is_the_samples_own_data_however_it_is_spelled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_images(Path("plain"), 60)
    write_images(Path("other"), 60)
    own = samples_of({"path": "plain", "image_size": SIZE})
    for spelled in (None, "plain", "plain/", "./plain", str(tmp_path / "plain")):
        assert not open_reference(own, spelled).whole
    assert open_reference(own, "other").whole
    assert same_place("emoji", "emoji")
    assert not same_place("./emoji", "emoji")
    assert not same_place("plain", None)


@pytest.fixture
def moved(tmp_path: Path) -> tuple[Tokenizer, Path]:
    """A tokenizer of a folder without splits, and where that folder is now."""
    before = write_images(tmp_path / "before", 60)
    provenance = {
        "data": {"path": str(before), "image_size": SIZE},
        "data_hash": open_dataset(config_of(before), "train").content_hash,
    }
    shutil.move(before, tmp_path / "after")
    stub = SimpleNamespace(config=SimpleNamespace(image_size=SIZE), provenance=provenance)
    return cast(Tokenizer, stub), tmp_path / "after"


def test_the_tokenizers_own_images_stay_split_where_they_are_now(
    moved: tuple[Tokenizer, Path], tmp_path: Path
) -> None:
    tokenizer, after = moved
    assert not real_images(tokenizer, Path("t"), str(after)).whole
    others = write_images(tmp_path / "others", 61)
    assert real_images(tokenizer, Path("t"), str(others)).whole
    lone = write_images(tmp_path / "lone", 1)
    assert len(real_images(tokenizer, Path("t"), str(lone)).splits["train"]()) == 1
