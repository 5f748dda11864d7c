"""ThumbHash of square pictures, by matrix products.

After Evan Wallace, "ThumbHash", 2023 (npm thumbhash 0.1.1, MIT licence): the same bytes, and the
same pixels. The package of that name for Python decodes all pixels as the first one. A hash is the
luminance L = (R + G + B) / 3 by 28 cosines, (R + G) / 2 - B and R - G by 6 each: 5 bytes of means
and scales, then 4 bits a cosine. Without transparency, which takes more bytes.
"""

import math
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

COUNTS = (7, 3, 3)  # cosines along a side, of each channel
BOOST = 1.25  # of saturation when decoded, against what rounding takes


def encode(image: Tensor) -> bytes:
    """The 24 bytes of a picture, uint8 (3, S, S)."""
    red, green, blue = image.numpy() / 255
    channels = ((red + green + blue) / 3, (red + green) / 2 - blue, red - green)
    means, scales, steps = [], [], []
    for channel, n in zip(channels, COUNTS, strict=True):
        cosines = _cosines(n, len(channel))
        found = cosines @ channel @ cosines.T / channel.size
        first, *others = (float(found[cy, cx]) for cy, cx in _triangle(n))
        scale = max(map(abs, others))
        means.append(first)
        scales.append(scale)
        steps += [_round(15 * (0.5 + 0.5 / scale * other if scale else other)) for other in others]
    l_mean, *tints = means
    tinted = [(31.5 + 31.5 * mean, 6) for mean in tints]
    start = _packed((63 * l_mean, 6), *tinted, (31 * scales[0], 5))
    more = _packed((COUNTS[0], 3), (63 * scales[1], 6), (63 * scales[2], 6))
    pairs = zip(steps[::2], [*steps[1::2], 0], strict=False)
    content = bytes(low | high << 4 for low, high in pairs)
    return start.to_bytes(3, "little") + more.to_bytes(2, "little") + content


def decode(data: bytes, side: int) -> Tensor:
    """The picture of a hash, uint8 (3, side, side)."""
    start, more = int.from_bytes(data[:3], "little"), int.from_bytes(data[3:5], "little")
    means = (start & 63) / 63, (start >> 6 & 63) / 31.5 - 1, (start >> 12 & 63) / 31.5 - 1
    scales = (start >> 18 & 31) / 31, BOOST * (more >> 3 & 63) / 63, BOOST * (more >> 9 & 63) / 63
    steps = iter([half for byte in data[5:] for half in (byte & 15, byte >> 4)])
    channels = []
    for mean, scale, n in zip(means, scales, COUNTS, strict=True):
        weights = np.zeros((n, n))
        for cy, cx in list(_triangle(n))[1:]:
            weights[cy, cx] = 2 * scale * (next(steps) / 7.5 - 1)
        cosines = _cosines(n, side)
        channels.append(mean + cosines.T @ weights @ cosines)
    luminance, yellow, reddish = channels
    blue = luminance - 2 / 3 * yellow
    red = (3 * luminance - blue + reddish) / 2
    levels = 255 * np.stack([red, red - reddish, blue]).clip(0, 1)
    return torch.from_numpy(levels.astype(np.uint8))  # cut off, not rounded: as the original does


def _cosines(n: int, side: int) -> np.ndarray:
    """(n, side)."""
    return np.cos(math.pi / side * np.arange(n)[:, None] * (np.arange(side) + 0.5))


def _triangle(n: int) -> Iterator[tuple[int, int]]:
    """Which cosines count, down and across: the fewer of one, the more of the other."""
    return ((cy, cx) for cy in range(n) for cx in range(n - cy))


def _packed(*fields: tuple[float, int]) -> int:
    """Numbers of so many bits, the first one lowest."""
    number = place = 0
    for value, bits in fields:
        number, place = number | _round(value) << place, place + bits
    return number


def _round(value: float) -> int:
    """To the nearest; halves go up, as in JavaScript."""
    return math.floor(value + 0.5)
