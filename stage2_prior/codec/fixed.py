"""Codes of fixed length: log2 K_i bits each, rounded up, first codes first, high bits first.

So the payload of k codes begins that of more, and its size is known without a look at them.
"""

from collections.abc import Iterator, Sequence

from stage1_tokenizer.quantizers.codes import codes_of_bytes
from stage2_prior.codec.container import FormatError


class FixedCoder:
    """Codes <-> bytes, by the number of codes of each position alone."""

    content_hash = ""

    def __init__(self, sizes: Sequence[int]) -> None:
        """Take K_i of all N positions."""
        self.sizes = tuple(sizes)
        self.bits = [(size - 1).bit_length() for size in sizes]

    def bytes_of(self, k: int) -> int:
        """How many bytes k codes take."""
        return -(-sum(self.bits[:k]) // 8)

    def codes_in(self, size: int) -> int:
        """How many codes so many bytes hold, N at most."""
        return codes_of_bytes(self.sizes, size)

    def payloads(self, codes: Sequence[int]) -> Iterator[bytes]:
        """The payload of the first code, of the first two, and so on.

        Raises:
            ValueError: There are more codes than positions, or one is outside [0, K_i).
        """
        number = total = 0
        places = zip(self.sizes[: len(codes)], self.bits[: len(codes)], strict=True)
        for code, (size, bits) in zip(codes, places, strict=True):
            if not 0 <= code < size:
                raise ValueError(f"code {code} is not in [0, {size})")
            number, total = number << bits | code, total + bits
            padding = -total % 8
            yield (number << padding).to_bytes((total + padding) // 8, "big")

    def read(self, payload: bytes) -> list[int]:
        """As many codes as the payload holds, N at most.

        Raises:
            FormatError: There is no such code.
        """
        number, left, codes = int.from_bytes(payload, "big"), 8 * len(payload), []
        for size, bits in zip(self.sizes, self.bits, strict=True):
            left -= bits
            if left < 0:
                break
            codes.append(number >> left & (1 << bits) - 1)
            if codes[-1] >= size:
                raise FormatError(f"damaged: code {codes[-1]}, where there are {size}")
        return codes
