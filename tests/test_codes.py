"""A data set as codes: right, kept, and never mistaken for the codes of something else."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from pqvae.datasets import DataConfig, ImageDataset, open_dataset
from pqvae.images import to_float
from pqvae.loader import Augmentation
from stage1_tokenizer.tokenizer import Tokenizer
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
        tokenizer: Tokenizer = tokenizer, views: int = VIEWS, seed: int = 0, **changes: Any
    ) -> EncodedDataset:
        augmentation = Augmentation(dataset, replace(config, **changes))
        return encode_dataset(tokenizer, dataset, augmentation, views, seed, tmp_path / "codes")

    return encode


def files(folder: Path) -> dict[Path, tuple[int, int]]:
    """Path -> what changes whenever the file is written anew."""
    stats = {path: path.stat() for path in (folder / "codes").iterdir()}
    return {path: (stat.st_ino, stat.st_mtime_ns) for path, stat in stats.items()}


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
    assert encoded.codes.dtype == torch.int64
    assert encoded.codes.shape == (VIEWS, len(dataset), tokenizer.num_codes)
    assert torch.equal(encoded.codes[0], expected_codes(tokenizer, dataset))
    assert encoded.labels is not None
    assert dataset.labels is not None
    assert torch.equal(encoded.labels, dataset.labels)
    for view in (1, 2):  # every image is shifted, so most codes of most images change
        assert (encoded.codes[view] != encoded.codes[0]).float().mean() > 0.2
    assert not torch.equal(encoded.codes[1], encoded.codes[2])
    plain = encode_dataset(tokenizer, dataset, None, 1, 0, tmp_path / "plain")
    assert torch.equal(plain.codes[0], encoded.codes[0])


def test_equal_arguments_find_the_file_again(encode: Encode, tmp_path: Path) -> None:
    first = encode()
    before = files(tmp_path)
    assert len(before) == 1
    assert torch.equal(encode().codes, first.codes)
    assert files(tmp_path) == before


def test_other_arguments_do_not(
    encode: Encode, tokenizer: Tokenizer, tiny_run: Any, tmp_path: Path
) -> None:
    first = encode()
    other = Tokenizer.from_pretrained(tiny_run.tokenizer)
    with torch.no_grad():
        other.quantizer.vectors[0] = other.quantizer.vectors[0].flip(0)
    other.save_pretrained(tmp_path / "other")
    assert other.content_hash != tokenizer.content_hash
    variants: list[dict[str, Any]] = [
        {"tokenizer": other},
        {"seed": 1},
        {"views": VIEWS + 1},
        {"shift": 1},
        {"shift_share": 0.5},
        {"flip": False},
    ]
    for count, variant in enumerate(variants, start=2):
        codes = encode(**variant).codes
        assert len(files(tmp_path)) == count, variant
        assert codes.shape != first.codes.shape or not torch.equal(codes, first.codes), variant


@pytest.mark.parametrize("damage", ["empty", "cut", "bit", "tampered", "renamed", "no codes"])
def test_a_file_that_is_damaged_or_of_something_else_is_written_anew(
    encode: Encode, tmp_path: Path, damage: str
) -> None:
    first = encode()
    (path,) = files(tmp_path)
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
        encode(seed=1)
        (other,) = set(files(tmp_path)) - {path}
        other.replace(path)
    else:
        save_file({"other": codes}, path, metadata)
    before = files(tmp_path)
    assert torch.equal(encode().codes, first.codes)
    assert files(tmp_path)[path] != before[path]
    assert torch.equal(content(path)[0], codes)
    assert content(path)[1] == metadata
