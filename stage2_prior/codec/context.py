"""Codes by their probabilities under a prior, each after those before it.

Both sides must come to the same counts. So there is one way to compute them: image by image, on
the CPU, in float64. Processors round float32 sums in orders of their own, and of 100,000 counts of
an image some would then be others; in float64 none is, but once in a million images. Where it
happens all the same, or where the prior is another one, the checksum of the codes does not fit.
"""

import contextlib
import copy
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from pqvae.errors import UserError
from stage2_prior.codec.arithmetic import MOST_CODES, Interval, cumulated_counts
from stage2_prior.prior import Prior
from stage2_prior.unroll import unroll

Code = Callable[[Sequence[int]], int]  # cumulated counts of the next code -> that code


class _EndOfCodes(Exception):  # noqa: N818
    """The payload says no more codes."""


class ContextCoder:
    """Codes <-> bytes, by the probabilities of a prior for no class."""

    def __init__(self, prior: Prior) -> None:
        """Take a prior.

        Raises:
            UserError: It orders codes in another way, so that a beginning would be no prefix; or
                a codebook is too large.
        """
        if list(prior.sequence.order) != list(range(len(prior.sizes))):
            raise UserError("a file holds codes coarse to fine, but this prior has another order")
        if max(prior.sizes) > MOST_CODES:
            raise UserError(f"at most {MOST_CODES} codes a position, not {max(prior.sizes)}")
        self.prior = copy.deepcopy(prior).to("cpu", torch.float64)
        self.sizes = prior.sizes[: prior.known_codes]
        self.content_hash = prior.content_hash

    def payloads(self, codes: Sequence[int]) -> Iterator[bytes]:
        """The payload of the first code, of the first two, and so on, as far as it knows codes."""
        interval, payloads = Interval(), []
        known = iter(codes[: len(self.sizes)])

        def write(sums: Sequence[int]) -> int:
            code = next(known, None)
            if code is None:
                raise _EndOfCodes
            interval.write(sums, code)
            payloads.append(interval.payload())
            return code

        self._unroll(write, min(len(codes), len(self.sizes)))
        return iter(payloads)

    def read(self, payload: bytes) -> list[int]:
        """As many codes as are certain, whatever would follow; N at most."""
        interval, codes = Interval(), []

        def read(sums: Sequence[int]) -> int:
            code = interval.read(sums, payload)
            if code is None:
                raise _EndOfCodes
            codes.append(code)
            return code

        self._unroll(read, len(self.sizes))
        return codes

    def _unroll(self, choose: Code, k: int) -> None:
        """Ask for one code after the other, until k are there or there are no more."""

        def choose_all(step: int, logits: Tensor) -> Tensor:
            positions = self.prior.sequence.steps[step]
            weights = logits[0].softmax(1)
            chosen = [
                choose(cumulated_counts(row[: self.sizes[position]]))
                for position, row in zip(positions, weights, strict=True)
            ]
            return torch.tensor([chosen])

        bounds = self.prior.sequence.bounds
        steps = next(step for step in range(1, len(bounds)) if bounds[step] >= k)
        with contextlib.suppress(_EndOfCodes):
            unroll(self.prior, torch.tensor([self.prior.no_class]), steps, choose_all)
