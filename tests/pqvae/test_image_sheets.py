"""Sheets: many images in one file, each in its place."""

import io

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from pqvae.images import LOSSLESS_SIDE, encode_sheet, psnr


def sheet_of(images: Tensor, columns: int) -> Tensor:
    """The pixels of a sheet, uint8 (3, height, width)."""
    picture = Image.open(io.BytesIO(encode_sheet(images, columns)))
    assert picture.format == "WEBP"
    return torch.from_numpy(np.array(picture.convert("RGB"))).permute(2, 0, 1)


@pytest.mark.parametrize("size", [5, LOSSLESS_SIDE])
def test_small_images_lie_row_by_row_without_loss_and_white_follows(size: int) -> None:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (5, 3, size, size), generator=generator).to(torch.uint8)
    sheet = sheet_of(images, 3)
    assert sheet.shape == (3, 2 * size, 3 * size)
    for number, image in enumerate(images):
        top, left = number // 3 * size, number % 3 * size
        assert torch.equal(sheet[:, top : top + size, left : left + size], image)
    assert (sheet[:, size:, 2 * size :] == 255).all()


def test_large_images_lose_little_and_take_less_room() -> None:
    size = 2 * LOSSLESS_SIDE
    line = torch.linspace(0, 1, size)
    waves = torch.sin(9 * line[:, None] + torch.tensor([3, 5, 7])[:, None, None] * line)
    image = (127.5 + 127.5 * waves).round().to(torch.uint8).unsqueeze(0)
    assert psnr(sheet_of(image, 1).unsqueeze(0), image).item() > 35
    parts = image.unfold(2, LOSSLESS_SIDE, LOSSLESS_SIDE).unfold(3, LOSSLESS_SIDE, LOSSLESS_SIDE)
    same_in_parts = parts.permute(0, 2, 3, 1, 4, 5).flatten(0, 2)
    assert len(encode_sheet(image, 1)) < len(encode_sheet(same_in_parts, 2))
