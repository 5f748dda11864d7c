"""A data set as codes: right, kept, and never mistaken for the codes of something else."""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from pqvae.data.batches import Augmentation
from pqvae.data.config import DataConfig
from pqvae.data.dataset import ImageDataset, open_dataset
from pqvae.images import to_float
from stage1_tokenizer.tokenizer import Tokenizer
from stage2_prior import codes as codes_module
from stage2_prior.codes import EncodedDataset, encode_dataset

VIEWS = 3


@pytest.fixture(scope="module")
def config(tiny_run: Any) -> DataConfig:
    return DataConfig(path=str(tiny_run.data), image_size=16, shift=2, shift_share=1.0)


@pytest.fixture(scope="module")
def dataset(config: DataConfig) -> ImageDataset:
    return open_dataset(config, "test")


@pytest.fixture
def tokenizer(tiny_run: Any) -> Tokenizer:
    return Tokenizer.from_pretrained(tiny_run.tokenizer)


Encode = Callable[..., EncodedDataset]


@pytest.fixture
def encode(
    tokenizer: Tokenizer, dataset: ImageDataset, config: DataConfig, tmp_path: Path
) -> Encode:
    """The call under test, with usual arguments unless told."""

    def encode(
        tokenizer: Tokenizer = tokenizer,
        views: int = VIEWS,
        seed: int = 0,
        folder: str = "codes",
        **changes: Any,
    ) -> EncodedDataset:
        augmentation = Augmentation(dataset, replace(config, **changes))
        return encode_dataset(tokenizer, dataset, augmentation, views, seed, tmp_path / folder)

    return encode


def files(folder: Path) -> dict[Path, tuple[int, int]]:
    """Path -> what changes whenever the file is written anew."""
    stats = {path: path.stat() for path in (folder / "codes").iterdir()}
    return {path: (stat.st_ino, stat.st_mtime_ns) for path, stat in stats.items()}


@contextlib.contextmanager
def counted(tokenizer: Tokenizer, fail_at: int = -1) -> Iterator[list[int]]:
    """How many images each call of ``encode`` gets; the call of this number fails."""
    sizes: list[int] = []
    encode = tokenizer.encode

    def count(images: Tensor) -> Tensor:
        if len(sizes) == fail_at:
            raise RuntimeError("the power is gone")
        sizes.append(len(images))
        return encode(images)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tokenizer, "encode", count)
        yield sizes


def content(path: Path) -> tuple[Tensor, dict[str, str]]:
    with safe_open(path, "pt") as file:
        # A copy: the tensor would go on looking into the file, which is about to be spoiled.
        return file.get_tensor("codes").clone(), file.metadata()


def expected_codes(tokenizer: Tokenizer, dataset: ImageDataset) -> Tensor:
    return tokenizer.encode(to_float(dataset.images(range(len(dataset)))))


def test_the_first_view_is_the_images_as_they_are(
    encode: Encode, tokenizer: Tokenizer, dataset: ImageDataset, tmp_path: Path
) -> None:
    encoded = encode()
    assert encoded.codes.dtype == torch.int32
    assert encoded.codes.shape == (VIEWS, len(dataset), tokenizer.num_codes)
    assert torch.equal(encoded.codes[0].long(), expected_codes(tokenizer, dataset))
    assert encoded.labels is not None
    assert dataset.labels is not None
    assert torch.equal(encoded.labels, dataset.labels)
    for view in (1, 2):  # every image is shifted, so most codes of most images change
        assert (encoded.codes[view] != encoded.codes[0]).float().mean() > 0.2
    assert not torch.equal(encoded.codes[1], encoded.codes[2])
    plain = encode_dataset(tokenizer, dataset, None, 1, 0, tmp_path / "plain")
    assert torch.equal(plain.codes[0], encoded.codes[0])


def test_equal_arguments_find_the_files_again(
    encode: Encode, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    first = encode()
    before = files(tmp_path)
    assert len(before) == VIEWS
    with counted(tokenizer) as sizes:
        assert torch.equal(encode().codes, first.codes)
    assert sizes == []
    assert files(tmp_path) == before


def test_more_views_take_the_kept_ones_over_and_fewer_do_too(
    encode: Encode, tokenizer: Tokenizer, dataset: ImageDataset, tmp_path: Path
) -> None:
    expected = encode(views=4, folder="at once").codes
    for views, kept in ((2, 0), (4, 2), (3, 4)):
        before = files(tmp_path) if kept else {}
        assert len(before) == kept
        with counted(tokenizer) as sizes:
            assert torch.equal(encode(views=views).codes, expected[:views])
        assert sum(sizes) == max(views - kept, 0) * len(dataset)
        assert files(tmp_path).items() >= before.items()
    assert len(files(tmp_path)) == 4


def test_unaugmented_images_have_one_file_with_and_without_augmentation(
    encode: Encode, tokenizer: Tokenizer, dataset: ImageDataset, tmp_path: Path
) -> None:
    encoded = encode()
    before = files(tmp_path)
    with counted(tokenizer) as sizes:
        plain = encode_dataset(tokenizer, dataset, None, 1, 7, tmp_path / "codes")
    assert sizes == []
    assert torch.equal(plain.codes, encoded.codes[:1])
    assert files(tmp_path) == before


def test_what_is_encoded_at_once_changes_no_code(
    encode: Encode, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = encode(folder="at once").codes
    monkeypatch.setattr(codes_module, "chunk_size", lambda image_size: 5)  # as of large images
    with counted(tokenizer) as sizes:
        assert torch.equal(encode(folder="in parts").codes, expected)
    assert sizes == [5, 5, 2] * VIEWS


def test_an_interrupted_encoding_keeps_the_views_that_are_done(
    encode: Encode, tokenizer: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(codes_module, "BLOCK", 5)  # 12 images in three blocks
    expected = encode(folder="uninterrupted").codes
    with counted(tokenizer, fail_at=3 + 1) as sizes, pytest.raises(RuntimeError, match="power"):
        encode()
    assert sizes == [5, 5, 2, 5]
    before = files(tmp_path)
    (path,) = before
    assert torch.equal(content(path)[0], expected[0])
    with counted(tokenizer) as sizes:
        assert torch.equal(encode().codes, expected)
    assert sizes == [5, 5, 2] * (VIEWS - 1)
    assert files(tmp_path)[path] == before[path]
    assert len(files(tmp_path)) == VIEWS


def test_another_decoder_finds_the_codes_again(
    encode: Encode, tiny_run: Any, tmp_path: Path
) -> None:
    first, before = encode(), files(tmp_path)
    other = Tokenizer.from_pretrained(tiny_run.tokenizer)
    with torch.no_grad():
        for parameter in other.decoder().parameters():
            parameter.zero_()
    with counted(other) as sizes:
        assert torch.equal(encode(tokenizer=other).codes, first.codes)
    assert sizes == []
    assert files(tmp_path) == before


def test_other_arguments_do_not(
    encode: Encode, tokenizer: Tokenizer, tiny_run: Any, tmp_path: Path
) -> None:
    first = encode()
    other = Tokenizer.from_pretrained(tiny_run.tokenizer)
    with torch.no_grad():
        other.encoder.shortcut.weight.neg_()
    assert other.codes_hash != tokenizer.codes_hash
    variants: list[tuple[dict[str, Any], int]] = [  # and how many views are other ones
        ({"tokenizer": other}, VIEWS),
        ({"seed": 1}, VIEWS - 1),
        ({"shift": 1}, VIEWS - 1),
        ({"shift_share": 0.5}, VIEWS - 1),
        ({"flip": False}, VIEWS - 1),
    ]
    count = VIEWS
    for variant, different in variants:
        codes = encode(**variant).codes
        count += different
        assert len(files(tmp_path)) == count, variant
        for view in range(VIEWS):
            same = torch.equal(codes[view], first.codes[view])
            assert same == (view < VIEWS - different), variant


@pytest.mark.parametrize("damage", ["empty", "cut", "bit", "tampered", "renamed", "no codes"])
def test_a_file_that_is_damaged_or_of_something_else_is_written_anew(
    encode: Encode, tmp_path: Path, damage: str
) -> None:
    first = encode(views=2)
    by_view = {tuple(content(path)[0].flatten().tolist()): path for path in files(tmp_path)}
    path, intact = (by_view[tuple(codes.flatten().tolist())] for codes in first.codes.flip(0))
    whole = path.read_bytes()
    codes, metadata = content(path)
    if damage == "empty":
        path.write_bytes(b"")
    elif damage == "cut":
        path.write_bytes(whole[:-7])
    elif damage == "bit":
        path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    elif damage == "tampered":
        save_file({"codes": codes.flip(0).contiguous()}, path, metadata)
    elif damage == "renamed":  # whole, but of another key
        encode(views=2, seed=1)
        (other,) = set(files(tmp_path)) - {path, intact}
        other.replace(path)
    else:
        save_file({"other": codes}, path, metadata)
    before = files(tmp_path)
    assert torch.equal(encode(views=2).codes, first.codes)
    assert files(tmp_path)[path] != before[path]
    assert files(tmp_path)[intact] == before[intact]
    assert torch.equal(content(path)[0], codes)
    assert content(path)[1] == metadata
