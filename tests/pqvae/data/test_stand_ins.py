"""Damage that is met on demand: named once, made up for by the same image always, or refused."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

import pqvae.data.dataset
from pqvae.errors import UserError
from pqvae.images import decode_image
from tests.pqvae.data.pictures import SIZE, open_split, picture, write_folder, write_shard

INTERLEAVED = {f"{i:03d}.png": ("a", "b", "c")[i % 3] for i in range(400)}  # key -> class
DAMAGED = (7, 10, 397, 399)  # classes b, b, b, a


@pytest.fixture
def damaged_shard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A shard of 400 images in three classes, decoded on demand, four of them damaged."""
    monkeypatch.setattr(pqvae.data.dataset, "IN_MEMORY_BYTES", 0)
    members: dict[str, bytes] = {}
    for index, (name, label) in enumerate(INTERLEAVED.items()):
        members[name] = b"?" if index in DAMAGED else picture(index)
        members[name.replace("png", "cls")] = label.encode()
    for split in ("val", "test"):
        write_shard(tmp_path / f"{split}.tar", {"x.png": picture(0), "x.cls": b"a"})
    write_shard(tmp_path / "train.tar", members)
    return tmp_path


def test_the_next_readable_image_of_its_class_stands_in_for_one_damaged_on_demand(
    damaged_shard: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sources = {index: index for index in range(400)}
    sources |= {7: 13, 10: 13, 397: 1, 399: 0}  # the same class: 3 on, 6 on, and round the end
    expected = torch.stack([decode_image(picture(source), SIZE) for source in sources.values()])
    # Threads, repeats, other orders and another run make no difference.
    dataset = open_split(damaged_shard)
    batches = [torch.randperm(400, generator=torch.Generator().manual_seed(i)) for i in range(8)]
    with ThreadPoolExecutor(8) as pool:
        for batch, images in zip(batches, pool.map(dataset.images, batches), strict=True):
            assert torch.equal(images, expected[batch])
    lines = capsys.readouterr().err.splitlines()
    named = sorted(line.split("train.tar: ")[1].split(" (")[0] for line in lines)
    assert named == ["007", "010", "397", "399"]
    for count, line in enumerate(lines, 1):
        assert f"train: left out {count} of 400 images so far: train.tar: " in line
        assert line.endswith("(not an image); another of its class stands in")
    again = open_split(damaged_shard)
    assert torch.equal(again.images([10]), expected[[10]])
    assert again.content_hash == dataset.content_hash


def test_over_one_percent_of_damage_met_on_demand_is_refused(
    damaged_shard: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    dataset = open_split(damaged_shard)
    dataset.images(DAMAGED)
    assert len(capsys.readouterr().err.splitlines()) == 4
    (damaged_shard / "train.tar").write_bytes(b"")
    message = (
        r"train: 5 of 400 images cannot be read, over 1%; the first is train.tar: \d+ \(not an"
    )
    for _ in range(2):  # no retry gets past it
        with pytest.raises(UserError, match=message):
            dataset.images([0])


def test_an_image_without_a_class_is_replaced_by_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(pqvae.data.dataset, "IN_MEMORY_BYTES", 0)
    files = {f"train/{i:03d}.png": picture(i) for i in range(100)}
    write_folder(tmp_path, {**files, "val/x.png": picture(0), "test/x.png": picture(0)})
    dataset = open_split(tmp_path)
    (tmp_path / "train" / "099.png").unlink()  # long after it was listed
    assert torch.equal(dataset.images([99, -1]), dataset.images([0, 0]))
    (line,) = capsys.readouterr().err.splitlines()
    reason = "099.png (No such file or directory); another stands in"
    assert line.endswith(f"train: left out 1 of 100 images so far: {reason}")


def test_a_class_without_a_readable_image_is_refused_on_demand(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pqvae.data.dataset, "IN_MEMORY_BYTES", 0)
    files = {f"train/a/{i}.png": picture(0) for i in range(99)}
    files |= {"train/b/0.png": b"?", "val/a/0.png": picture(0), "test/a/0.png": picture(0)}
    dataset = open_split(write_folder(tmp_path, files))
    with pytest.raises(UserError, match=r"train: no image of class b can be read; mend or remove"):
        dataset.images([99])
