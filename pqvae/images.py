"""The only place where pixels change form: files, uint8 (B, 3, H, W), float32 in [-1, 1], grids."""

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageOps
from torch import Tensor

from pqvae.files import atomic_path

# A picture above this is a decompression bomb, or at least not what anybody meant to train on.
MAX_PIXELS = 100_000_000
# Named, as Pillow would otherwise also run Ghostscript on a file that turns out to be PostScript.
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM")
CAPTION_HEIGHT = 16
EXTENSIONS = frozenset(
    [
        "jpg",
        "jpeg",
        "jfif",
        "jpe",
        "png",
        "webp",
        "avif",
        "bmp",
        "gif",
        "tif",
        "tiff",
        "ppm",
        "pgm",
        "pbm",
    ]
)
UNREAD_EXTENSIONS = frozenset(["heic", "heif", "jxl", "svg", "psd", "cr2", "nef", "dng"])
SNIFFED_BYTES = 4096


def is_image_data(head: bytes) -> bool:
    return head[:4] in (b"\x89PNG", b"\xff\xd8\xff\xe0")


class ImageError(ValueError):
    """A file that is not a usable image; the message says why, in a few words."""


def decode_image(data: bytes, size: int) -> Tensor:
    """Decode a picture to uint8 (3, size, size): EXIF-turned, over white, centre-cropped, resized.

    Args:
        data: The bytes of an image file in one of ``FORMATS``; the first frame counts.
        size: Height and width of the result, in pixels.

    Raises:
        ImageError: The bytes are not an image, are damaged, or hold more than ``MAX_PIXELS``.
    """
    if not data:
        raise ImageError("empty file")
    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)
        if image.width * image.height > MAX_PIXELS:
            raise ImageError(f"{image.width}x{image.height} is over {MAX_PIXELS:,} pixels")
        image.draft("RGB", (size, size))  # lets JPEG decode at a lower size; no-op elsewhere
        image.load()
        ImageOps.exif_transpose(image, in_place=True)
        image = _to_rgb(image)
        if image.size != (size, size):
            image = ImageOps.fit(image, (size, size), Image.Resampling.LANCZOS)
    except ImageError:
        raise
    except Exception as error:  # Pillow's plugins raise nearly anything on damaged input
        reason = "not an image" if isinstance(error, Image.UnidentifiedImageError) else str(error)
        raise ImageError(reason.splitlines()[0] if reason else type(error).__name__) from error
    return torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1)


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I") or image.mode == "F":  # 16 bits and more: Pillow would clip
        values = np.asarray(image, dtype=np.float64)
        top = 65535 if values.max(initial=0) > 255 else 255
        image = Image.fromarray((values.clip(0, top) * (255 / top)).round().astype(np.uint8))
    if "A" in image.getbands() or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


def to_float(images: Tensor) -> Tensor:
    """uint8 in [0, 255] to float32 in [-1, 1]."""
    return images.float().div_(127.5).sub_(1)


def to_uint8(images: Tensor) -> Tensor:
    """Float in [-1, 1] (clipped) to uint8 in [0, 255], rounded to nearest."""
    return images.float().add(1).mul_(127.5).round_().clamp_(0, 255).to(torch.uint8)


def psnr(images: Tensor, originals: Tensor) -> Tensor:
    """Peak signal-to-noise ratio of each image in dB, float64 (B,); both uint8 (B, 3, H, W)."""
    errors = (images.double() - originals.double()).square().flatten(1).mean(1)
    return 10 * torch.log10(255**2 / errors.clamp_min(1e-10))


def encode_png(image: Tensor) -> bytes:
    """uint8 (3, H, W) to the bytes of a PNG file; light compression, for speed."""
    buffer = io.BytesIO()
    Image.fromarray(image.permute(1, 2, 0).numpy()).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def save_grid(
    path: Path, images: Tensor, columns: int, *, captions: Sequence[str] = (), zoom: int = 2
) -> None:
    """Write images as one PNG, row by row.

    Args:
        path: The PNG file; its folder exists. Written whole or not at all.
        images: uint8 (B, 3, H, W).
        columns: Images in a row.
        captions: One short text below each column, or none.
        zoom: Each pixel becomes a square of this many.
    """
    _, _, H, W = images.shape
    gap = 2
    rows = -(-len(images) // columns)
    cell_w, cell_h = W * zoom + gap, H * zoom + gap
    canvas = Image.new(
        "RGB",
        (columns * cell_w + gap, rows * cell_h + gap + (CAPTION_HEIGHT if captions else 0)),
        (238, 238, 238),
    )
    for index, image in enumerate(images):
        row, column = divmod(index, columns)
        tile = Image.fromarray(image.permute(1, 2, 0).numpy())
        tile = tile.resize((W * zoom, H * zoom), Image.Resampling.NEAREST)
        canvas.paste(tile, (gap + column * cell_w, gap + row * cell_h))
    draw = ImageDraw.Draw(canvas)
    for column, caption in enumerate(captions):
        centre = gap + column * cell_w + W * zoom // 2
        draw.text((centre, rows * cell_h + gap + 1), caption, (60, 60, 60), anchor="ma")
    with atomic_path(path) as temporary:
        canvas.save(temporary, "PNG")
