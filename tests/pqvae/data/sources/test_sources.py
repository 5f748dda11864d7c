"""The table of sources: a function and a line in it make a source, and each keeps to its own."""

import pytest
import torch
from torch import Tensor

from pqvae.data.batches import TrainingImages
from pqvae.data.config import DataConfig
from pqvae.data.dataset import open_dataset
from pqvae.data.sample import Listing, Sample, Split
from pqvae.data.sources import SOURCES
from pqvae.errors import UserError
from pqvae.images import to_uint8

SPLITS: tuple[Split, ...] = ("train", "val", "test")
SIZE = 8


def wedge(index: int) -> Tensor:
    """A picture that differs from its mirror and from every other one, uint8 (3, SIZE, SIZE)."""
    columns = torch.arange(SIZE * SIZE * 3).view(SIZE, SIZE, 3) + index % 60
    return columns.to(torch.uint8).permute(2, 0, 1)


def list_wedges(path: str) -> Listing | None:
    """``wedges:COUNT``: the even ones are called plain, the odd ones must not be mirrored."""
    if not path.startswith("wedges:"):
        return None
    count = path.removeprefix("wedges:")
    if not count.isdecimal():
        raise UserError(f"{path}: {count!r} is no number of wedges; give one, as in wedges:100")
    samples = []
    for index in range(int(count)):
        data = b"P6 8 8 255\n" + wedge(index).permute(1, 2, 0).numpy().tobytes()
        samples.append(Sample(f"{index:03d}", "odd" if index % 2 else "plain", data, 0, len(data)))
    return Listing({"train": samples}, ("plain", "odd"), ("odd",))


@pytest.fixture
def wedges(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(SOURCES, "wedges:COUNT", list_wedges)


@pytest.mark.usefixtures("wedges")
def test_a_source_is_one_function_and_one_line_of_the_table() -> None:
    config = DataConfig(path="wedges:120", image_size=SIZE, shift=0)
    parts = {split: open_dataset(config, split) for split in SPLITS}
    keys = [key for dataset in parts.values() for key in dataset.keys]
    assert sorted(keys) == [f"{index:03d}" for index in range(120)]
    for dataset in parts.values():
        assert len(dataset) > 1  # val and test are carved, as the source has none
        assert dataset.class_names == ("plain", "odd")  # the order of the source, not of the names
        numbers = [int(key) for key in dataset.keys]
        assert dataset.labels is not None
        assert dataset.labels.tolist() == [number % 2 for number in numbers]
        found = dataset.images(range(len(dataset)))
        assert torch.equal(found, torch.stack([wedge(number) for number in numbers]))


@pytest.mark.usefixtures("wedges")
@pytest.mark.parametrize("asked", [(), ("plain",)])
def test_neither_the_source_s_nor_the_config_s_classes_are_mirrored(asked: tuple[str, ...]) -> None:
    config = DataConfig(path="wedges:120", image_size=SIZE, shift=0, no_flip_classes=asked)
    dataset = open_dataset(config, "train")
    assert dataset.labels is not None
    batches = TrainingImages(dataset, config, batch_size=len(dataset), seed=0)
    mirrored = [0, 0]
    for step in range(2):  # each image comes twice
        indices = batches.order(step)
        for image, original, label in zip(
            to_uint8(batches(step)), dataset.images(indices), dataset.labels[indices], strict=True
        ):
            if torch.equal(image, original.flip(2)):
                mirrored[label] += 1
            else:
                assert torch.equal(image, original)
    # Half of about a hundred: that none is mirrored by chance has odds below 1e-20.
    assert mirrored[1] == 0
    assert (mirrored[0] > 0) == (asked == ())


@pytest.mark.usefixtures("wedges")
def test_a_source_may_refuse_what_is_its_own_and_is_named_where_none_takes_a_path() -> None:
    with pytest.raises(UserError, match=r"^wedges:many: 'many' is no number of wedges"):
        open_dataset(DataConfig(path="wedges:many"), "train")
    with pytest.raises(UserError) as caught:
        open_dataset(DataConfig(path="nowhere"), "train")
    assert str(caught.value) == (
        "nowhere: no such file or folder; give emoji, cifar10, a folder of images or of .tar "
        "shards, a glob or range of shards, or wedges:COUNT"
    )


@pytest.mark.parametrize("split", SPLITS)
def test_classes_are_of_all_images_of_a_split_or_of_none(
    split: Split, monkeypatch: pytest.MonkeyPatch
) -> None:
    labelled, bare = (Sample(key, label, b"", 0, 0) for key, label in (("a", "cat"), ("b", None)))
    listing = Listing({"train": [labelled], "val": [labelled], "test": [labelled, bare]})
    monkeypatch.setitem(SOURCES, "mixed", lambda path: listing if path == "mixed" else None)
    message = r"^mixed: 1 of 2 images have no class \(first b\); put all images in class folders"
    with pytest.raises(UserError, match=message):  # whichever split is opened
        open_dataset(DataConfig(path="mixed"), split)
