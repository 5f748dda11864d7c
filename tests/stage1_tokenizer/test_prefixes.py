"""What prefixes keep: the lengths that are shown, PSNR, shares of the latent, the strip."""

import math
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch
from PIL import Image

from pqvae.data.config import DataConfig
from pqvae.data.dataset import ImageDataset, open_dataset
from pqvae.images import to_float
from stage1_tokenizer.prefixes import (
    evenly_spaced,
    measure_psnr,
    prefix_grid,
    reconstruct,
    residual_shares,
    save_prefix_grid,
)
from stage1_tokenizer.tokenizer import Tokenizer

if TYPE_CHECKING:
    from tests.conftest import TinyRun

SIZE = 16


@pytest.fixture(scope="module")
def val_images(tiny_run: "TinyRun") -> ImageDataset:
    return open_dataset(DataConfig(path=str(tiny_run.data), image_size=SIZE), "val")


@pytest.mark.parametrize(
    ("cuts", "lengths"),
    [
        (range(1, 33), [1, 2, 4, 8, 16, 32]),
        (range(1, 7), [1, 2, 4, 6]),
        (range(1, 2), [1]),
        ((16, 32, 48, 64), [16, 32, 48, 64]),  # only whole levels decode
        ((64,), [64]),
    ],
)
def test_lengths_shown_are_powers_of_two_or_all_where_few_decode(
    cuts: range | tuple[int, ...], lengths: list[int]
) -> None:
    assert prefix_grid(cuts) == lengths


def test_psnr_is_the_mean_over_images_in_decibels(
    tiny_run: "TinyRun", val_images: ImageDataset
) -> None:
    tokenizer = Tokenizer.from_pretrained(tiny_run.tokenizer)
    images = val_images.images(range(len(val_images)))
    for limit in (5, 1000):
        chosen = torch.linspace(0, len(images) - 1, min(limit, len(images))).long()
        codes = tokenizer.encode(to_float(images[chosen]))
        expected = []
        for k in (1, 3, 6):
            decoded = ((tokenizer.decode(codes[:, :k]) + 1) * 127.5).round()
            values = [
                10 * math.log10(255**2 / float((a.double() - b.double()).square().mean()))
                for a, b in zip(decoded, images[chosen], strict=True)
            ]
            expected.append(sum(values) / len(values))
        found = measure_psnr(tokenizer, val_images, [1, 3, 6], limit)
        assert found == pytest.approx(expected, abs=1e-3)


def test_residual_shares_are_what_prefix_sums_leave(
    tiny_run: "TinyRun", val_images: ImageDataset
) -> None:
    tokenizer = Tokenizer.from_pretrained(tiny_run.tokenizer)
    with torch.inference_mode():
        images = to_float(val_images.images(range(len(val_images))))
        latents = tokenizer.latents(images)
        codes = tokenizer.encode(images)
        left = [
            (latents - tokenizer.quantizer.decode(codes[:, :k])).square().sum()
            for k in range(1, tokenizer.num_codes + 1)
        ]
        expected = torch.stack(left) / latents.square().sum()
    found = residual_shares(tokenizer, val_images, 1000)
    assert found == pytest.approx(expected.tolist(), rel=1e-4)


def test_strip_has_a_row_for_each_image_and_the_original_last(
    tiny_run: "TinyRun", val_images: ImageDataset, tmp_path: Path
) -> None:
    tokenizer = Tokenizer.from_pretrained(tiny_run.tokenizer)
    images = evenly_spaced(val_images, 3)
    decoded = reconstruct(tokenizer, images, [1, 6])
    save_prefix_grid(tmp_path / "strip.png", tokenizer, images, [1, 6], decoded)
    codes = tokenizer.encode(to_float(images))
    for k, row in zip((1, 6), decoded, strict=True):
        assert row.dtype == torch.uint8 and row.shape == images.shape
        expected = ((tokenizer.decode(codes[:, :k]) + 1) * 127.5).round()
        assert (row.float() - expected).abs().max() <= 1
    with Image.open(tmp_path / "strip.png") as picture:
        zoom = 96 // SIZE
        assert picture.width >= 3 * SIZE * zoom and picture.height >= 3 * SIZE * zoom
