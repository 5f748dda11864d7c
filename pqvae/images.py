"""The only place where pixels change form: files, uint8 (B, 3, H, W), float32 in [-1, 1], grids."""

import contextlib
import io
import logging
import math
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from einops import rearrange
from PIL import Image, ImageDraw, ImageFile
from torch import Tensor

from pqvae.colours import keyed_alpha, to_rgb
from pqvae.errors import ImageError, UserError
from pqvae.files import atomic_path
from pqvae.metadata import Metadata, split_file

# A picture above this is a decompression bomb, or at least not what anybody meant to train on.
MAX_PIXELS = 100_000_000
Image.init()  # makes all formats known
# Named, as Pillow would otherwise also run Ghostscript on a file that turns out to be PostScript.
# Those whose library this Pillow has. TGA comes last: any file may be one.
FORMATS = tuple(
    name
    for name in (
        *("JPEG", "PNG", "WEBP", "AVIF", "GIF", "BMP", "TIFF", "JPEG2000", "PPM"),
        *("QOI", "DDS", "ICO", "ICNS", "SGI", "PCX", "TGA"),
    )
    if name in Image.OPEN
)
# Lower case, without a dot; Pillow opens the MPO of phones as JPEG.
EXTENSIONS = frozenset(
    extension.removeprefix(".")
    for extension, name in Image.EXTENSION.items()
    if name in (*FORMATS, "MPO")
)
# Pictures by their name, which are not read.
UNREAD_EXTENSIONS = (
    frozenset("heic heif hif jxl jxr wdp svg svgz psd psb xcf kra eps ps ai pdf wmf emf".split())
    | frozenset("exr hdr dng cr2 cr3 crw nef nrw arw sr2 srf orf rw2 raf pef srw x3f 3fr".split())
    | frozenset("iiq kdc dcr mrw erf rwl fits djvu cur xbm xpm webp avif avifs jp2 j2k".split())
) - EXTENSIONS
SNIFFED_BYTES = 4096  # of a file, by which ``is_image_data`` knows it
# Formats of which the first bytes say too little: their whole header is to be right.
_WEAK = ("BMP", "PPM", "SGI", "PCX", "TGA")
CAPTION_HEIGHT = 16
LOSSLESS_SIDE = 64  # pixels, of the images on a sheet
# Times its size in the end, that a JPEG is decoded at: then resized, it is right to 50 dB and more.
DRAFTED = 3  # also how far Lanczos reaches, in pixels of the end

# What Pillow warns of concerns no user of a data set: it is mended here, or an ImageError.
warnings.filterwarnings("ignore", module=r"PIL\.")
logging.getLogger("PIL").addHandler(logging.NullHandler())


def is_image_data(head: bytes) -> bool:
    """Whether a file that begins with these bytes is in one of ``FORMATS``, by its header.

    Args:
        head: The first ``SNIFFED_BYTES``, or the whole file where it is shorter.
    """
    for name in FORMATS:
        factory, accept = Image.OPEN[name]
        if accept is not None and accept(head[:16]) is not True:
            continue
        if name == "AVIF" and b"avi" not in head[8:64]:  # HEIC and others have the same container
            continue
        if name not in _WEAK:
            return True
        try:
            factory(io.BytesIO(head), "")
            return True
        except Exception:  # Pillow's plugins raise nearly anything on what is not theirs
            continue
    return False


def decode_image(data: bytes, size: int) -> Tensor:
    """Decode a picture to uint8 (3, size, size): sRGB, over white, cropped, resized, upright.

    Args:
        data: The bytes of an image file in one of ``FORMATS``; the first frame counts, and of it
            the central square.
        size: Height and width of the result, in pixels.

    Raises:
        ImageError: The bytes are not an image, are damaged, hold more than ``MAX_PIXELS``, or
            values of which it is not known which is white.
    """
    with _as_image_error(data):
        return _to_tensor(_decode(data, size)[0])


def decode_whole(data: bytes, size: int) -> tuple[Tensor, tuple[int, int]]:
    """The same of all of the frame, squeezed into the square.

    Returns:
        uint8 (3, size, size); and the picture's own width and height in pixels, upright.
    """
    with _as_image_error(data):
        image, shape = _decode(data, size, whole=True)
        return _to_tensor(image), shape


def image_size(data: bytes) -> tuple[int, int]:
    """Width and height of a picture in pixels, before it is turned; raises as decoding does."""
    with _as_image_error(data):
        return _open(split_file(data)[0]).size


def read_picture(path: Path, size: int) -> Tensor:
    """Decode a picture file of a user's as training images are: uint8 (3, size, size).

    Raises:
        UserError: There is no such file, or it is no usable picture.
    """
    try:
        return decode_image(path.read_bytes(), size)
    except (FileNotFoundError, IsADirectoryError):
        raise UserError(f"{path}: no such picture file") from None
    except ImageError as error:
        raise UserError(f"{path}: {error}; a picture file is needed") from None


@contextlib.contextmanager
def _as_image_error(data: bytes) -> Iterator[None]:
    if not data:
        raise ImageError("empty file")
    try:
        yield
    except ImageError:
        raise
    except Exception as error:  # Pillow's plugins raise nearly anything on damaged input
        reason = "not an image" if isinstance(error, Image.UnidentifiedImageError) else str(error)
        raise ImageError(reason.splitlines()[0] if reason else type(error).__name__) from error


# What EXIF calls the orientation of a picture, and what makes it upright.
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def _to_tensor(image: Image.Image) -> Tensor:
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


# Of these, the ones that swap width and height.
_QUARTERS = frozenset(_TURNS[orientation] for orientation in (5, 6, 7, 8))


def _decode(data: bytes, size: int, whole: bool = False) -> tuple[Image.Image, tuple[int, int]]:
    """The picture squeezed into a square, or its central square; and how large it is, upright."""
    bare, metadata = split_file(data)
    image = _open(bare)
    scale = _draft_scale(image, size, whole)
    shape = image.size
    width, height = image.width / scale, image.height / scale
    if scale > 1:  # JPEG decodes at a lower size then
        image.draft(None, (int(width), int(height)))
    rawmode = str(image.tile[0].args) if image.format == "PNG" else ""
    image.decodermaxblock = len(bare)  # in one piece, of which nothing is decoded twice
    image.load()
    if scale == 1:  # ICO knows its size only now
        width, height = shape = image.size
        _check_size(image)
    if bare is data and image.format != "TIFF":  # which Pillow turns by itself
        kept = (image.info.get(key) or b"" for key in ("exif", "xmp"))
        metadata = Metadata(*kept)
    low = _low_bytes(bare) if rawmode == "RGB;16B" and "transparency" in image.info else None
    alpha = keyed_alpha(image, rawmode, low) if rawmode else None
    image = to_rgb(image, metadata.profile or image.info.get("icc_profile") or b"", alpha)
    across, down = (width, height) if whole else (min(width, height),) * 2
    left, top = (width - across) / 2, (height - down) / 2
    box = (left, top, left + across, top + down)
    image = image.resize((size, size), Image.Resampling.LANCZOS, box)
    turn = _TURNS.get(metadata.orientation)
    if turn is None:
        return image, shape
    return image.transpose(turn), shape[::-1] if turn in _QUARTERS else shape


def _open(data: bytes) -> ImageFile.ImageFile:
    image = Image.open(io.BytesIO(data), formats=FORMATS)
    _check_size(image)
    return image


def _check_size(image: Image.Image) -> None:
    if image.width * image.height > MAX_PIXELS:
        raise ImageError(f"{image.width}x{image.height} is over {MAX_PIXELS:,} pixels")


def _draft_scale(image: Image.Image, size: int, whole: bool) -> int:
    """By how much a JPEG may be decoded smaller: pixels come out as if it had not been.

    Its blocks reach beyond borders, where anything may be; so only by what divides a side whose
    borders count, and leaves Lanczos enough to do.
    """
    short, long = sorted(image.size)
    reach = DRAFTED * short / size + 8  # pixels beyond the square that it is cut to
    inside = not whole and (long - short) / 2 > reach
    borders = short if inside else math.gcd(short, long)
    fit = (scale for scale in (8, 4, 2) if borders % scale == 0 and short >= DRAFTED * size * scale)
    return next(fit, 1) if image.format == "JPEG" else 1


def _low_bytes(data: bytes) -> Image.Image:
    """The low bytes of a PNG of three times 16 bits, of which Pillow keeps the high ones."""
    image = _open(data)
    image.tile = [image.tile[0]._replace(args="RGB;16L")]  # as if the bytes were in this order
    image.load()
    return image


def to_float(images: Tensor) -> Tensor:
    """uint8 in [0, 255] to float32 in [-1, 1]."""
    return images.float().div_(127.5).sub_(1)


def to_levels(images: Tensor) -> Tensor:
    """Float in [-1, 1] to float in [0, 255], neither rounded nor clipped."""
    return (images + 1) * 127.5


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


def encode_sheet(images: Tensor, columns: int) -> bytes:
    """uint8 (B, 3, H, W), row by row and edge to edge, to the bytes of one WebP file.

    Nothing is lost of images up to ``LOSSLESS_SIDE`` pixels; larger ones would take too much room.
    """
    rows = -(-len(images) // columns)
    missing = images.new_full((rows * columns - len(images), *images.shape[1:]), 255)
    pattern = "(r c) d h w -> (r h) (c w) d"
    sheet = rearrange(torch.cat([images, missing]), pattern, c=columns).contiguous()
    buffer, lossless = io.BytesIO(), images.shape[-1] <= LOSSLESS_SIDE
    Image.fromarray(sheet.numpy()).save(buffer, "WEBP", lossless=lossless, quality=90, method=6)
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
