"""Codes <-> payloads, in all modes: what they hold, how long they are, what a cut leaves."""

import itertools
import math
from collections.abc import Callable, Sequence
from fractions import Fraction

import pytest
import torch

from pqvae.randomness import generator_for
from stage2_prior.codec.arithmetic import Interval, cumulated_counts
from stage2_prior.codec.container import FormatError
from stage2_prior.codec.context import ContextCoder
from stage2_prior.codec.fixed import FixedCoder
from stage2_prior.codec.pictures import Coder
from stage2_prior.codec.static import StaticCoder
from stage2_prior.sequence import Sequence as Order
from tests.stage2_prior.random_prior import SIZES, make_prior, random_codes

N = len(SIZES)
ROWS = random_codes().tolist()


def static_coder() -> StaticCoder:
    """Of codes of which low ones are more frequent."""
    columns = [
        (torch.rand(500, generator=generator_for(1, i)) ** 3 * size).long()
        for i, size in enumerate(SIZES)
    ]
    return StaticCoder.of_codes(torch.stack(columns, dim=1), SIZES)


CODERS: dict[str, Callable[[], Coder]] = {
    "fixed": lambda: FixedCoder(SIZES),
    "static": static_coder,
    "context": lambda: ContextCoder(make_prior()),
}


@pytest.fixture(params=CODERS, scope="module")
def coder(request: pytest.FixtureRequest) -> Coder:
    return CODERS[request.param]()


def test_every_prefix_is_read_back(coder: Coder) -> None:
    for row in ROWS:
        payloads = list(coder.payloads(row))
        assert len(payloads) == N
        for k, payload in enumerate(payloads, start=1):
            assert coder.read(payload)[:k] == row[:k]


def test_a_payload_that_was_cut_says_what_it_began_with(coder: Coder) -> None:
    for row in ROWS:
        *_, payload = coder.payloads(row)
        held = [coder.read(payload[:size]) for size in range(len(payload) + 1)]
        assert held[-1] == row
        for codes in held:
            assert codes == row[: len(codes)]
        assert [len(codes) for codes in held] == sorted(len(codes) for codes in held)


def test_no_tail_changes_the_codes_that_a_cut_payload_gives(coder: Coder) -> None:
    *_, payload = coder.payloads(ROWS[0])
    certain = coder.read(payload[:-1])
    for byte in range(0, 256, 7):
        try:
            found = coder.read(payload[:-1] + bytes([byte]))
        except FormatError:  # there is no such code
            continue
        assert found[: len(certain)] == certain


def test_codes_of_fixed_length_are_bits_in_a_row() -> None:
    coder = FixedCoder((7, 4, 16, 2, 9))
    # 101 11 1110 1 1000, and three bits of padding.
    assert list(coder.payloads([5, 3, 14, 1, 8]))[-1] == bytes([0b10111111, 0b01100000])
    assert [coder.bytes_of(k) for k in range(6)] == [0, 1, 1, 2, 2, 2]
    assert [coder.codes_in(size) for size in range(4)] == [0, 2, 5, 5]


def test_codes_that_there_are_not_are_neither_written_nor_read() -> None:
    coder = FixedCoder((7, 4))
    with pytest.raises(ValueError, match=r"code 7 is not in \[0, 7\)"):
        list(coder.payloads([7]))
    with pytest.raises(FormatError, match="code 7, where there are 7"):
        coder.read(bytes([0b11100000]))


def narrowed(shares: Sequence[tuple[Fraction, Fraction]]) -> tuple[Fraction, Fraction]:
    """Low and width of [0, 1) after shares (start, width), in fractions: the slow reference."""
    low, width = Fraction(0), Fraction(1)
    for start, part in shares:
        low, width = low + width * start, width * part
    return low, width


def shortest(low: Fraction, width: Fraction) -> bytes:
    """The fewest bytes whose interval lies in [low, low + width), by trying."""
    size = 1
    while True:
        first = math.ceil(low * 256**size)
        if Fraction(first + 1, 256**size) <= low + width:
            return first.to_bytes(size, "big")
        size += 1


def test_the_interval_is_that_of_fractions() -> None:
    coder = static_coder()
    for row in ROWS:
        pairs = [(sums[c], sums[c + 1]) for sums, c in zip(coder.sums, row, strict=True)]
        shares = [(Fraction(a, 1 << 16), Fraction(b - a, 1 << 16)) for a, b in pairs]
        for k, payload in enumerate(coder.payloads(row), start=1):
            assert payload == shortest(*narrowed(shares[:k]))


def test_written_out_payloads() -> None:
    # A quarter, a half, a quarter: 1 2 0 1 is [0.25 + 0.5 (0.75 + 0.25 (0.25 ...)) ...).
    sums = [0, 1 << 14, 3 << 14, 1 << 16]
    interval = Interval()
    expected = [b"\x40", b"\xa0", b"\xa0", b"\xa2"]
    for code, payload in zip([1, 2, 0, 1], expected, strict=True):
        interval.write(sums, code)
        assert interval.payload() == payload


def test_a_payload_has_a_byte_even_where_none_is_needed() -> None:
    assert Interval().payload() == b"\0"


def test_counts_sum_to_the_total_and_leave_no_code_out() -> None:
    weights = torch.tensor([0.0, 1.0, 2.0, 0.0, 1e-12], dtype=torch.float64)
    sums = cumulated_counts(weights)
    counts = [after - before for before, after in itertools.pairwise(sums)]
    assert sum(counts) == 1 << 16
    assert counts[0] == counts[3] == counts[4] == 1
    assert counts[2] / counts[1] == pytest.approx(2, rel=1e-3)


def test_frequent_codes_take_less_room_than_by_fixed_lengths() -> None:
    coder, fixed = static_coder(), FixedCoder(SIZES)
    *_, cheap = coder.payloads([0] * N)
    assert len(cheap) < fixed.bytes_of(N)


def test_a_context_payload_is_as_long_as_the_prior_says() -> None:
    prior = make_prior()
    coder = ContextCoder(prior)
    codes = random_codes()
    bits = prior.bits(codes).sum(1).tolist()
    for row, ideal in zip(codes.tolist(), bits, strict=True):
        *_, payload = coder.payloads(row)
        # One bit for the interval's place, and whole bytes; counts of 2^16 cost hardly anything.
        assert ideal - 0.1 <= 8 * len(payload) <= ideal + 1.1 + 7


def test_a_prior_of_another_order_is_refused() -> None:
    reverse = Order(tuple((i,) for i in reversed(range(N))))
    with pytest.raises(ValueError, match="another order"):
        ContextCoder(make_prior(sequence=reverse))


def test_steps_of_several_codes_are_written_one_by_one() -> None:
    coder = ContextCoder(make_prior(sequence=Order(((0, 1), (2, 3), (4,)))))
    for row in ROWS:
        for k, payload in enumerate(coder.payloads(row), start=1):
            assert coder.read(payload)[:k] == row[:k]
