"""The colours of a loaded picture of any mode: 8 bits of sRGB, over white.

Whole numbers of 16 bits reach from 0 to 65535, also in a picture that is dark. Of floats the range
is not known, but seen: all in [0, 1], else all in [0, 255], else the picture is refused.
"""

import functools
import io

import numpy as np
from PIL import Image, ImageCms

from pqvae.errors import ImageError

ALIKE = 2  # levels; a profile that changes no colour by more is sRGB by another name
_SPACES = {"RGB": "RGB", "L": "GRAY", "CMYK": "CMYK"}  # the profiles that belong to a mode
_GREYS = {"L;2": 85, "L;4": 17}  # levels between two neighbours of PNGs of few bits
_BITS, _INTERPRETATION, _WHITE_IS_ZERO = 258, 262, 0  # of TIFF


def to_rgb(image: Image.Image, profile: bytes, alpha: Image.Image | None = None) -> Image.Image:
    """Convert a loaded picture to mode RGB.

    Args:
        image: In any mode.
        profile: ICC, of its colours; ignored where it is empty, damaged or of another mode.
        alpha: Mode L, where it is opaque; None leaves it to the picture.

    Raises:
        ImageError: It is not known which of its values is white.
    """
    if image.mode.startswith("I") or image.mode == "F":
        image = _deep_to_grey(image)
    elif alpha is None and image.has_transparency_data:
        image = image.convert("RGBA")
        alpha = image.getchannel("A")
    if image.mode not in _SPACES:
        image = image.convert("L" if image.mode == "1" else "RGB")
    transform = _transform_to_srgb(profile, image.mode) if profile else None
    image = transform.apply(image) if transform else image
    image = image if image.mode == "RGB" else image.convert("RGB")
    if alpha is None:
        return image
    image.putalpha(alpha)
    white = Image.new("RGBA", image.size, "white")
    return Image.alpha_composite(white, image).convert("RGB")


def keyed_alpha(image: Image.Image, rawmode: str, low: Image.Image | None) -> Image.Image | None:
    """Where a PNG is opaque that names one colour as transparent; None if it does not.

    Args:
        image: Loaded.
        rawmode: How Pillow has unpacked its pixels.
        low: Of a picture of three times 16 bits the low bytes, which Pillow has cut off.
    """
    if "transparency" not in image.info or image.mode not in ("1", "L", "I;16", "RGB"):
        return None
    key = image.info.pop("transparency")
    wanted = np.array(key) * _GREYS.get(rawmode, 1)
    if low is not None:
        opaque = (np.asarray(image) != wanted >> 8) | (np.asarray(low) != wanted & 255)
    elif image.mode == "I;16":
        opaque = np.asarray(image) != wanted
    else:
        opaque = np.asarray(image.convert("L") if image.mode == "1" else image) != wanted & 255
    opaque = opaque.any(2) if opaque.ndim == 3 else opaque
    return Image.fromarray(opaque.astype(np.uint8) * 255)


def _deep_to_grey(image: Image.Image) -> Image.Image:
    tags = getattr(image, "tag_v2", {})  # of a TIFF
    values = np.asarray(image)
    if image.mode == "F":
        grey = _floats_to_grey(values)
    elif image.mode == "I" and tags:
        raise ImageError("mode I (32 bits): which value is white is not known; use 8 or 16 bits")
    else:
        bits = tags.get(_BITS, (16,))[0]
        grey = _levels(bits)[values.clip(0, 65535)]
    inverted = tags.get(_INTERPRETATION) == _WHITE_IS_ZERO
    return Image.fromarray(255 - grey if inverted else grey)


def _floats_to_grey(values: np.ndarray) -> np.ndarray:
    low, high = float(values.min(initial=np.inf)), float(values.max(initial=-np.inf))
    if not 0 <= low <= high <= 255:  # also where one is not a number
        raise ImageError(
            f"mode F with values from {low:g} to {high:g}; known are 0 to 1 and 0 to 255"
        )
    return (values * np.float32(255 if high <= 1 else 1)).round().astype(np.uint8)


@functools.cache
def _levels(bits: int) -> np.ndarray:
    """8 bits for each value of so many bits, as far as 16 of them reach."""
    return (np.arange(1 << 16) * (255 / ((1 << bits) - 1))).round().clip(0, 255).astype(np.uint8)


@functools.lru_cache(maxsize=16)  # most sets know one or two; transforms are made for threads
def _transform_to_srgb(profile: bytes, mode: str) -> ImageCms.ImageCmsTransform | None:
    """From the colours of a profile to RGB; None where these are sRGB, or not to be understood."""
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        if source.profile.xcolor_space.strip() != _SPACES[mode]:
            return None
        transform = ImageCms.buildTransform(source, ImageCms.createProfile("sRGB"), mode, "RGB")
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError):  # damaged, or of a kind unknown
        return None
    if mode == "RGB":
        steps = np.linspace(0, 255, 9).astype(np.uint8)
        colours = np.stack(np.meshgrid(steps, steps, steps), -1).reshape(27, 27, 3)
        changed = np.asarray(transform.apply(Image.fromarray(colours)))
        if np.abs(changed.astype(int) - colours).max() <= ALIKE:
            return None
    return transform
