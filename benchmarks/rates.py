"""Bytes against how near pictures come: points and curves of them."""

import bisect
import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from eval.measures.distortion import ssim
from pqvae.images import psnr
from pqvae.lite0 import DISTANCE_BLOCKS, layers_distance, load_network, unit_layers


@dataclass(frozen=True, slots=True)
class Point:
    """One setting, over all pictures.

    Attributes:
        setting: How it is set.
        bytes: Of a whole file, the mean.
        bare_bytes: The same without the header: of ours, 8 bytes; of others, what is constant.
        psnr: In dB, the mean of the pictures'.
        ssim: The mean, at most 1.
        lite0_distance: The mean, in [0, 4]; no LPIPS.
        encode_ms: The median of pictures that are written one at a time.
        decode_ms: The same of reading.
    """

    setting: str
    bytes: float
    bare_bytes: float
    psnr: float
    ssim: float
    lite0_distance: float
    encode_ms: float
    decode_ms: float


@dataclass(frozen=True, slots=True)
class Curve:
    """A method at all its settings.

    Attributes:
        method: Its name.
        pictures: How many they are, the first ones of the set.
        points: In the order of the settings.
    """

    method: str
    pictures: int
    points: list[Point]


@dataclass(frozen=True, slots=True)
class Ladder:
    """Our prefixes in mode fixed, all of them: without a header, decoded faithfully.

    Attributes:
        effort: Of encoding.
        sizes: Bytes of each prefix, growing.
        psnrs: In dB, the mean of the pictures'.
    """

    effort: int
    sizes: list[int]
    psnrs: list[float]

    def at(self, size: float) -> tuple[int, float] | None:
        """Bytes and PSNR of the longest prefix of at most so many bytes; None where none is."""
        place = bisect.bisect_right(self.sizes, size) - 1
        return None if place < 0 else (self.sizes[place], self.psnrs[place])

    def first_reaching(self, least: float) -> int | None:
        """Bytes of the shortest prefix of at least this PSNR; None where none is."""
        return next((s for s, p in zip(self.sizes, self.psnrs, strict=True) if p >= least), None)

    def bytes_at(self, wanted: float) -> float | None:
        """Bytes where the curve crosses this PSNR, which grows with the logarithm of bytes.

        None where the curve begins above it, or ends below.
        """
        size = self.first_reaching(wanted)
        if size is None or wanted < self.psnrs[0]:
            return None
        place = self.sizes.index(size)
        if not place:
            return float(size)
        low, high = self.psnrs[place - 1 : place + 1]
        share = (wanted - low) / (high - low)
        return self.sizes[place - 1] ** (1 - share) * size**share


class Judge:
    """Compares what was made of pictures with them."""

    def __init__(self, originals: Tensor) -> None:
        """Take the pictures, uint8 (n, 3, S, S).

        Raises:
            UserError: The weights of lite0 are not installed.
        """
        self.originals = originals
        self.network = load_network()
        self.layers = unit_layers(self.network, originals, DISTANCE_BLOCKS)

    def __call__(self, made: Tensor) -> tuple[float, float, float]:
        """Mean PSNR in dB, SSIM and lite0 distance; uint8 (m, 3, S, S), of the first m pictures."""
        originals, layers = self.originals[: len(made)], [each[: len(made)] for each in self.layers]
        distance = layers_distance(unit_layers(self.network, made, DISTANCE_BLOCKS), layers)
        values = psnr(made, originals), ssim(made, originals), distance
        return float(values[0].mean()), float(values[1].mean()), float(values[2].mean())


def constant_bytes(files: Sequence[bytes]) -> int:
    """How many bytes of each file tell nothing, as they are the same in all files.

    Of bytes at the end, those that no file differs in. Of the others, all places from the
    beginning on where no file differs, though others before them may; also where a byte grows as
    the file does, as formats write their length. Of few files some bytes are equal by chance.
    """
    ends = zip(*map(reversed, files), strict=False)
    tail = sum(1 for _ in itertools.takewhile(lambda column: len(set(column)) == 1, ends))
    shortest = min(map(len, files)) - tail
    heads = np.array([list(data[:shortest]) for data in files])
    lengths = np.array([[len(data)] for data in files])
    constant = (heads == heads[0]).all(0)
    growing = (heads - lengths) % 256
    return tail + int((constant | (growing == growing[0]).all(0)).sum())
