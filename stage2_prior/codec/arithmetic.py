"""Arithmetic coding in whole numbers without an end: exact, and as short as whole bytes allow.

The codes of an image divide [0, 1) again and again: each takes a share of the interval that those
before it have left, count / 2^16 of it. The payload is the shortest row of bytes all of whose
continuations lie inside (Rissanen and Langdon, "Arithmetic coding", 1979).

Coders of long streams keep 32 or 64 bits of the interval, round, and end in whole words, which are
a sixth of a file of 24 bytes. Here the interval is kept as it is: no bit is lost, and a payload
that was cut says exactly which codes are certain, whatever followed.
"""

import bisect
from collections.abc import Sequence

import torch
from torch import Tensor

BITS = 16
TOTAL = 1 << BITS  # of all counts of a position
MOST_CODES = TOTAL // 2  # K: more would hardly leave each a count


class Interval:
    """[low, low + width) / 2^scale, which codes make narrower."""

    def __init__(self) -> None:
        self.low, self.width, self.scale = 0, 1, 0

    def write(self, sums: Sequence[int], code: int) -> None:
        """Take the share of a code: [sums[code], sums[code + 1]) / 2^16."""
        self.low = (self.low << BITS) + self.width * sums[code]
        self.width *= sums[code + 1] - sums[code]
        self.scale += BITS

    def read(self, sums: Sequence[int], payload: bytes) -> int | None:
        """The code whose share all continuations of a payload lie in, taken; None if in several."""
        value, bits = int.from_bytes(payload, "big"), 8 * len(payload)
        unit = self.width << bits
        first, end = ((v << self.scale) - (self.low << bits) << BITS for v in (value, value + 1))
        code = bisect.bisect_right(sums, first // unit) - 1
        if code < 0 or end > sums[code + 1] * unit:
            return None
        self.write(sums, code)
        return code

    def payload(self) -> bytes:
        """The fewest bytes, at least one, all of whose continuations lie inside; the first such."""
        size = max(8, self.scale - self.width.bit_length()) // 8
        while True:
            down = max(0, self.scale - 8 * size)
            value = -(-self.low >> down)  # rounded up
            if value + 1 << down <= self.low + self.width:
                return (value << max(0, 8 * size - self.scale)).to_bytes(size, "big")
            size += 1


def cumulated_counts(weights: Tensor) -> list[int]:
    """0, and the sums of the first 1, 2 ... counts, which sum to 2^16.

    Args:
        weights: Of each code, float64 (K,), 0 or more and not all 0; counts are in proportion,
            rounded down, and at least 1. What is left over goes to the first of the largest.
    """
    counts = (weights / weights.sum() * (TOTAL - len(weights))).long() + 1
    counts[counts.argmax()] += TOTAL - int(counts.sum())
    return [0, *torch.cumsum(counts, 0).tolist()]
