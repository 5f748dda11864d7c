"""Codes count by their value, whatever type keeps them."""

from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch

from stage1_tokenizer.quantizers.codes import Codes, as_codes, check_codes, code_entropy_bits

if TYPE_CHECKING:
    from tests.stage1_tokenizer.quantizers.conftest import Case

CPU = torch.device("cpu")
KINDS = (torch.uint8, torch.int8, torch.int16, torch.uint16, torch.int32, torch.uint32)
CODES = torch.tensor([[0, 1, 2], [3, 0, 1]])
WRONG: list[Codes] = [
    CODES.float(),
    CODES.half(),
    CODES.bool(),
    CODES.to(torch.complex64),
    CODES.numpy().astype(np.float32),
    CODES.numpy() > 0,
    CODES.numpy().astype(str),
]


@pytest.mark.parametrize("kind", [*KINDS, torch.uint64, torch.int64])
def test_tensors_and_arrays_of_whole_numbers_are_taken_as_they_are(kind: torch.dtype) -> None:
    codes = CODES.to(kind)
    array = codes.numpy()
    swapped, reversed_ = array.astype(array.dtype.newbyteorder()), array[::-1]
    frozen = array.copy()
    frozen.flags.writeable = False
    for given, expected in (
        (codes, CODES),
        (array, CODES),
        (swapped, CODES),
        (frozen, CODES),
        (reversed_, CODES.flip(0)),
    ):
        found = as_codes(given, CPU)
        assert found.dtype == torch.int64 and torch.equal(found, expected)


@pytest.mark.parametrize("codes", WRONG, ids=lambda codes: str(codes.dtype))
def test_other_types_are_refused_by_name(codes: Codes) -> None:
    with pytest.raises(ValueError, match=f"codes must be whole numbers.* not {codes.dtype}"):
        as_codes(codes, CPU)


def test_numbers_too_large_for_int64_lie_outside() -> None:
    codes = as_codes(np.full((1, 2), 2**64 - 1, np.uint64), CPU)
    with pytest.raises(ValueError, match=r"codes must lie in \[0, K\)"):
        check_codes(codes, (4, 4))


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_decodes_and_describes_them_alike(case: "Case", kind: torch.dtype) -> None:
    quantizer = case.started()
    latents = case.latents(quantizer, 16, 1)
    codes = quantizer.encode(latents)
    expected, described = quantizer.decode(codes), quantizer.describe_by(latents, codes)
    for given in (codes.to(kind), codes.to(kind).numpy()):
        assert torch.equal(quantizer.decode(given), expected)
        again = quantizer.describe_by(latents, given)
        assert torch.equal(again.left(), described.left())
        assert torch.equal(again.codes, codes)


def test_every_kind_refuses_other_types(case: "Case") -> None:
    quantizer = case.untrained()
    codes = torch.zeros(2, quantizer.num_codes)
    for given in (codes, codes.bool(), codes.numpy()):
        with pytest.raises(ValueError, match="whole numbers"):
            quantizer.decode(given)
        with pytest.raises(ValueError, match="whole numbers"):
            quantizer.describe_by(torch.zeros(2, 48), given)


def test_entropy_of_uniform_codes_is_log2_of_their_number_and_of_constant_ones_zero() -> None:
    uniform = torch.arange(64) % 16
    skewed = torch.tensor([0] * 32 + [1] * 16 + [2] * 16)  # 1/2, 1/4, 1/4: 1.5 bits
    codes = torch.stack([uniform, torch.full((64,), 3), skewed], dim=1)
    assert code_entropy_bits(codes, (16, 16, 5)) == pytest.approx([4, 0, 1.5], abs=1e-12)
