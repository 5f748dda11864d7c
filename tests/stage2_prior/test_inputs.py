"""What users hand to a prior: codes of other types, and its own type."""

import copy
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from torch import Tensor

from stage1_tokenizer.tokenizer import Tokenizer
from stage2_prior.books import Codebooks
from stage2_prior.config import PriorConfig
from stage2_prior.prior import Prior

if TYPE_CHECKING:
    from tests.conftest import BlobImages

CONFIG = PriorConfig(width=32, depth=1, heads=1, code_features=8)


@pytest.fixture(scope="module")
def prior(tiny_tokenizer: Tokenizer, blob_images: "BlobImages") -> Prior:
    torch.manual_seed(0)
    prior = Prior(CONFIG, Codebooks.of(tiny_tokenizer.quantizer), (), ())
    prior.set_code_features(tiny_tokenizer.quantizer)
    prior.init_from_codes(tiny_tokenizer.encode(blob_images(64, 16, 0)))
    for book in prior.books:
        torch.nn.init.normal_(book.head, std=0.1)
    return prior.eval()


@pytest.fixture(scope="module")
def codes(tiny_tokenizer: Tokenizer, blob_images: "BlobImages") -> Tensor:
    return tiny_tokenizer.encode(blob_images(8, 16, 1))


@torch.inference_mode()
@pytest.mark.parametrize("kind", [torch.uint8, torch.int8, torch.int16, torch.uint16, torch.int32])
def test_codes_of_any_whole_number_type_cost_alike(
    prior: Prior, codes: Tensor, kind: torch.dtype
) -> None:
    for given in (codes.to(kind), codes.to(kind).numpy()):
        assert torch.equal(prior.bits(given), prior.bits(codes))
        assert torch.equal(prior(given[:, :3]), prior(codes[:, :3]))


@pytest.mark.parametrize(
    ("codes", "message"),
    [
        (torch.zeros(2, 6), "whole numbers, .* not torch.float32"),
        (np.zeros((2, 6), bool), "whole numbers, .* not bool"),
        (torch.full((2, 6), 99), r"codes must lie in \[0, K\)"),
        (torch.tensor([[0, 0, 8, 0, 0, 0]]), r"codes must lie in \[0, K\)"),  # of 8, beside 32
        (torch.zeros(2, 7, dtype=torch.int64), r"codes must be \(B, 6\) or a prefix, not \(2, 7\)"),
    ],
)
def test_other_codes_are_refused_in_one_line(
    prior: Prior, codes: Tensor | np.ndarray, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        prior.bits(codes)


@torch.inference_mode()
@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16, torch.float64])
def test_a_prior_of_another_type_gives_nearly_the_same_bits(
    prior: Prior, codes: Tensor, kind: torch.dtype
) -> None:
    bits = copy.deepcopy(prior).to(kind).bits(codes)
    torch.testing.assert_close(bits.float(), prior.bits(codes), atol=0.1, rtol=0)
