"""Picture files as prefixes of their codes, drawn as a strip each."""

from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image

from pqvae.errors import UserError
from pqvae.images import ImageError, decode_image, psnr
from pqvae.runtime import select_device
from stage1_tokenizer.prefixes import prefix_grid, save_prefix_grid
from stage1_tokenizer.tokenizer import Tokenizer


def draw_strips(
    files: Sequence[Path], model: Path, out: Path, device: str, beam: int, refine: int
) -> None:
    """Draw pictures at every prefix length to a PNG, and print their PSNR.

    Args:
        files: The pictures, a row each.
        model: Folder of the tokenizer.
        out: The PNG.
        device: Name of the device.
        beam: As in ``Tokenizer.encode``.
        refine: As in ``Tokenizer.encode``.

    Raises:
        UserError: A file is no picture, or there is no tokenizer.
    """
    tokenizer = Tokenizer.from_pretrained(model).to(select_device(device))
    size = tokenizer.config.image_size
    originals = []
    for path in files:
        try:
            originals.append(decode_image(path.read_bytes(), size))
        except (FileNotFoundError, IsADirectoryError):
            raise UserError(f"{path}: no such picture file") from None
        except ImageError as error:
            raise UserError(f"{path}: {error}; a picture file is needed") from None
        with Image.open(path) as image:
            if image.size != (size, size):
                print(
                    f"{path}: {image.width}x{image.height} pixels, cut and resized to {size}x{size}"
                )
    images = torch.stack(originals)
    lengths = prefix_grid(tokenizer.quantizer.cuts)
    rows = save_prefix_grid(out, tokenizer, images, lengths, beam, refine)
    values = torch.stack([psnr(row, images) for row in rows], dim=1)
    for path, row in zip(files, values, strict=True):
        text = "  ".join(f"{k}:{value:.2f}" for k, value in zip(lengths, row, strict=True))
        print(f"{path}: PSNR in dB by prefix length  {text}")
    print(f"made {out}: a row for each picture, original last")
