"""What decoding JPEGs right costs beside decoding them at the lowest size, in one run.

    python benchmarks/reading.py
    python benchmarks/reading.py --n 1000 --pixels 640 --size 64

Makes N JPEGs with texture at every scale, and reads them in threads, as a data set does: by
``decode_image``, and as it did once, where JPEG decodes to the next size above the one wanted. The
two take turns, a part of the files at a time. The median ratio of the turns is what counts, as
seconds differ between machines; above it, how near either comes to the same pixels in a PNG.
"""

import io
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from pqvae.cli import Parser, command, positive_int
from pqvae.images import decode_image, encode_png, psnr
from pqvae.runtime import machine

PART = 250  # files that one way reads before the other has its turn
COMPARED = 100  # files whose pixels are compared


def decode_at_lowest_size(data: bytes, size: int) -> Tensor:
    """The earlier way: JPEG itself decodes to the next size above the one that is wanted."""
    image = Image.open(io.BytesIO(data))
    image.draft("RGB", (size, size))
    image.load()
    ImageOps.exif_transpose(image, in_place=True)
    image = ImageOps.fit(image.convert("RGB"), (size, size), Image.Resampling.LANCZOS)
    return torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1)


def decode_whole(data: bytes, size: int) -> Tensor:
    """The same pixels as a PNG."""
    pixels = np.array(Image.open(io.BytesIO(data)).convert("RGB"))
    return decode_image(encode_png(torch.from_numpy(pixels).permute(2, 0, 1)), size)


WAYS = {"decode_image": decode_image, "at the lowest size": decode_at_lowest_size}


def draw_texture(side: int) -> Image.Image:
    """A spectrum that falls with frequency as in photographs, and other in each colour."""
    spectrum = np.fft.rfft2(np.random.default_rng(0).standard_normal((3, side, side)))
    across, along = np.fft.fftfreq(side)[:, None], np.fft.rfftfreq(side)[None]
    waves = np.fft.irfft2(spectrum / np.hypot(across, along).clip(1 / side), (side, side))
    pixels = (waves - waves.mean()) / waves.std() * 50 + 128
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8).transpose(1, 2, 0).copy())


def write_jpegs(folder: Path, n: int, pixels: int) -> list[Path]:
    """Sections of one texture, at places of which no two are alike."""
    texture, generator = draw_texture(3 * pixels), np.random.default_rng(1)
    corners = generator.integers(0, 2 * pixels, (n, 2)).tolist()

    def write(number: int) -> Path:
        x, y = corners[number]
        path = folder / f"{number:05d}.jpg"
        texture.crop((x, y, x + pixels, y + pixels)).save(path, quality=90)
        return path

    with ThreadPoolExecutor() as pool:
        return list(pool.map(write, range(n)))


def read(decode: Callable[[bytes, int], Tensor], files: Sequence[Path], size: int) -> float:
    """Seconds to decode these files in threads."""
    started = time.perf_counter()
    with ThreadPoolExecutor() as pool:
        for _ in pool.map(lambda path: decode(path.read_bytes(), size), files):
            pass
    return time.perf_counter() - started


@command
def main(argv: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = Parser("benchmarks.reading", __doc__ or "", "  python benchmarks/reading.py --n 1000")
    parser.add_argument("--n", type=positive_int, default=10_000, help="(default: %(default)s)")
    parser.add_argument("--pixels", type=positive_int, default=500, help="a side of the JPEGs")
    parser.add_argument("--size", type=positive_int, default=32, help="a side of what is read")
    args = parser.parse_args(argv)
    seconds: dict[str, list[float]] = {name: [] for name in WAYS}
    with tempfile.TemporaryDirectory() as folder:
        files = write_jpegs(Path(folder), args.n, args.pixels)
        for start in range(0, len(files), PART):
            for name, decode in WAYS.items():
                seconds[name].append(read(decode, files[start : start + PART], args.size))
        compared = [path.read_bytes() for path in files[:COMPARED]]
    whole = torch.stack([decode_whole(data, args.size) for data in compared])
    print(f"{args.n} JPEGs of {args.pixels} pixels to {args.size}, {machine()}")
    for name, decode in WAYS.items():
        found = torch.stack([decode(data, args.size) for data in compared])
        least = float(psnr(found, whole).min())
        print(f"{name:<20} {sum(seconds[name]):7.1f} s   at least {least:.1f} dB to the same PNG")
    ratios = [now / once for now, once in zip(*seconds.values(), strict=True)]
    print(f"ratio {statistics.median(ratios):.3f}")


if __name__ == "__main__":
    sys.exit(main())
