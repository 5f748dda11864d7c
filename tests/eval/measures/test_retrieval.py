"""Rankings against slow references, changes against known pictures, the picture against both."""

import io
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch
from PIL import Image
from torch import Tensor

from eval.measures import retrieval
from eval.measures.representations import (
    CHANCE,
    LATENT,
    PARTIAL,
    PIXELS,
    Described,
    describe,
    labels_of,
)
from eval.measures.retrieval import (
    PREFIX,
    brighten,
    draw_hits,
    jpeg,
    retrieve,
    shift,
)
from eval.subjects.selection import Selection
from pqvae.data.config import DataConfig
from pqvae.data.dataset import open_dataset
from pqvae.images import psnr
from pqvae.randomness import generator_for
from stage1_tokenizer import Tokenizer

if TYPE_CHECKING:
    from tests.conftest import TinyRun

LENGTHS = [1, 2, 4, 6]


@pytest.fixture(scope="module")
def tokenizer(tiny_run: "TinyRun") -> Tokenizer:
    return Tokenizer.from_pretrained(tiny_run.tokenizer)


@pytest.fixture(scope="module")
def images(tiny_run: "TinyRun") -> Selection:
    """The train images in an order of our own."""
    dataset = open_dataset(DataConfig(path=str(tiny_run.data), image_size=16), "train")
    indices = torch.randperm(len(dataset), generator=generator_for(0)).tolist()
    return Selection(dataset, indices)


@pytest.fixture(scope="module")
def described(tokenizer: Tokenizer, images: Selection) -> Described:
    return describe(tokenizer, images, "encoding")


def pixels(images: Selection) -> Tensor:
    return images.images(range(len(images)))


def test_images_are_described_as_the_tokenizer_encodes_them(
    tokenizer: Tokenizer, images: Selection, described: Described
) -> None:
    originals = pixels(images)
    assert torch.equal(described.pixels, originals.flatten(1))
    floats = originals.float() / 127.5 - 1
    assert torch.equal(described.codes, tokenizer.encode(floats))
    with torch.no_grad():
        expected = tokenizer.encoder(floats) / tokenizer.quantizer.scale
    torch.testing.assert_close(described.latents, expected, rtol=1e-4, atol=1e-4)


def test_precision_is_the_share_of_hits_of_the_same_class(
    tokenizer: Tokenizer, images: Selection, described: Described
) -> None:
    scores, tree = retrieve(tokenizer, images, described, LENGTHS)
    labels, n = labels_of(images), len(images)
    floats = described.pixels.double()
    distances = torch.cdist(floats, floats).fill_diagonal_(torch.inf)
    hits = distances.argsort(dim=1, stable=True)[:, :10]
    expected = 100 * (labels[hits] == labels[:, None]).double().mean().item()
    assert scores[PIXELS, None]["precision"] == pytest.approx(expected)
    # 22 images of each of 3 classes.
    assert scores[CHANCE, None]["precision"] == pytest.approx(100 * 21 / 65)
    by_tree = 100 * (labels[tree] == labels[:, None]).double().mean().item()
    assert scores[PREFIX, 6]["precision"] == pytest.approx(by_tree)
    assert not (tree == torch.arange(n)[:, None]).any()
    assert all(0 <= row[key] <= 100 for row in scores.values() for key in ("shift", "jpeg"))


def test_images_find_themselves_and_nothing_else(
    tokenizer: Tokenizer, images: Selection, described: Described, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        retrieval, "CHANGES", {"same": lambda batch: batch, "next": lambda batch: batch.roll(1, 0)}
    )
    scores, _ = retrieve(tokenizer, images, described, LENGTHS)
    assert len(described.pixels.unique(dim=0)) == len(images)
    for name in (PIXELS, LATENT):
        assert scores[name, None]["same"] == 100
        assert scores[name, None]["next"] == 0
    # Images that share their codes cannot be told apart: of each such group the first one is found.
    for k in LENGTHS:
        found = 100 * len(described.codes[:, :k].unique(dim=0)) / len(images)
        assert scores[PARTIAL, k]["same"] == pytest.approx(found)
    assert scores[CHANCE, None]["same"] == pytest.approx(100 / len(images))


def test_changes_are_small_and_what_they_are_said_to_be() -> None:
    generator = generator_for(0)
    originals = torch.randint(256, (3, 3, 8, 8), dtype=torch.uint8, generator=generator)
    shifted = shift(originals)
    assert torch.equal(shifted[..., :-1], originals[..., 1:])
    assert torch.equal(shifted[..., -1], originals[..., -1])
    greys = torch.tensor([0, 4, 5, 100, 231, 232, 255], dtype=torch.uint8)
    assert brighten(greys).tolist() == [0, 4, 6, 110, 254, 255, 255]
    smooth = (torch.arange(64.0).view(8, 8) * 3).to(torch.uint8).expand(2, 3, 8, 8)
    values = psnr(jpeg(smooth), smooth)
    assert (values > 30).all()
    buffer = io.BytesIO()
    Image.fromarray(smooth[0].permute(1, 2, 0).numpy()).save(buffer, "JPEG", quality=75)
    read = torch.frombuffer(bytearray(Image.open(buffer).tobytes()), dtype=torch.uint8)
    assert torch.equal(jpeg(smooth)[1].permute(1, 2, 0).flatten(), read)


def test_the_picture_has_a_query_of_each_class_above_its_hits(
    images: Selection, tmp_path: Path
) -> None:
    hits = torch.randint(len(images), (len(images), 10), generator=generator_for(0))
    draw_hits(tmp_path / "hits.png", images, hits)
    zoom, gap = 96 // 16, 2
    with Image.open(tmp_path / "hits.png") as picture:
        assert picture.width == 3 * (96 + gap) + gap
        drawn = torch.frombuffer(bytearray(picture.tobytes()), dtype=torch.uint8)
        drawn = drawn.view(picture.height, picture.width, 3).permute(2, 0, 1)
    originals = pixels(images)
    for label in range(3):
        query = labels_of(images).tolist().index(label)
        for row, expected in enumerate([query, *hits[query, :6].tolist()]):
            top, left = gap + row * (96 + gap), gap + label * (96 + gap)
            tile = drawn[:, top : top + 96 : zoom, left : left + 96 : zoom]
            assert torch.equal(tile, originals[expected])
