"""One picture to bytes or to text, and back, in one call: by a model that is kept loaded."""

import functools
import io
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from pqvae.errors import ImageError, UserError
from pqvae.images import decode_whole
from stage2_prior.codec.pictures import Codec, Length

Picture = str | Path | bytes | Image.Image | np.ndarray  # a file, its content, or pixels

SHIPPED = "photos"
WRITABLE = frozenset({"1", "L", "LA", "P", "RGB", "RGBA", "I;16"})  # modes of PIL that PNG holds


def compress(
    picture: Picture,
    bytes: int | None = None,  # noqa: A002 (what a user would call it)
    *,
    model: str | Path = SHIPPED,
    effort: int = 0,
) -> bytes:
    """Write a picture as a .pq file.

    Args:
        picture: A path, the bytes of a picture file, a PIL image, or uint8 (H, W, 3).
        bytes: Of the file at most, its 8 of header too; by default all codes are written.
        model: The name of a model that comes with the package, or a tokenizer's folder.
        effort: 0 to 9: how long to search for codes that describe the picture well.

    Raises:
        UserError: It is no picture, there is no such model, or so few bytes hold none.
    """
    codec = _codec(model)
    image, shape = _squeezed(picture, codec.image_size)
    return codec.compress(image, [shape], Length(bytes=bytes), effort=effort)[0]


def decompress(
    data: bytes | str,
    *,
    model: str | Path = SHIPPED,
    decoder: str | None = None,
    side: int | None = None,
) -> Image.Image:
    """Show a .pq file or a placeholder; one that was cut shows a coarser picture.

    Args:
        data: The bytes of a file, or the text of a placeholder.
        model: That which wrote it.
        decoder: "faithful" or "vivid"; by default the one for eyes.
        side: Pixels of the longest side; by default about those of the picture, 32 of text.

    Raises:
        FormatError: These bytes are no .pq file, or this text no placeholder, of this model; or
            they are damaged.
    """
    codec = _codec(model)
    if isinstance(data, str):
        pixels = codec.show(codec.read_placeholder(data), decoder, side)
    else:
        pixels = codec.decompress(codec.read(data), decoder, side)
    return Image.fromarray(pixels.permute(1, 2, 0).numpy())


def placeholder(
    picture: Picture,
    bytes: int = 16,  # noqa: A002 (what a user would call it)
    *,
    model: str | Path = SHIPPED,
    effort: int = 0,
) -> str:
    """A picture as a few letters: its first codes, as base64url.

    Args:
        picture: As ``compress`` takes it; it is squeezed into a square.
        bytes: Of the codes, before they are text: four letters are three of them.
        model: As of ``compress``.
        effort: As of ``compress``.

    Raises:
        UserError: It is no picture, there is no such model, or so few bytes hold none.
    """
    codec = _codec(model)
    return codec.placeholders(_squeezed(picture, codec.image_size)[0], bytes, effort)[0]


@functools.lru_cache(maxsize=4)
def _codec(model: str | Path) -> Codec:
    codec = Codec.from_pretrained(model)
    codec.tokenizer.images_at_once = 1
    return codec


def _squeezed(picture: Picture, size: int) -> tuple[torch.Tensor, tuple[int, int]]:
    """The square, uint8 (1, 3, size, size), and the picture's own width and height."""
    if isinstance(picture, np.ndarray):
        picture = Image.fromarray(picture)
    if isinstance(picture, Image.Image):
        buffer = io.BytesIO()
        picture = picture if picture.mode in WRITABLE else picture.convert("RGB")
        picture.save(buffer, "PNG", compress_level=0)  # as files are: profile, orientation, alpha
        picture = buffer.getvalue()
    try:
        data = picture if isinstance(picture, bytes) else Path(picture).read_bytes()
        image, shape = decode_whole(data, size)
    except (OSError, ImageError) as error:
        name = "the picture" if isinstance(picture, bytes) else picture
        raise UserError(f"{name}: {getattr(error, 'strerror', None) or error}") from None
    return image.unsqueeze(0), shape
