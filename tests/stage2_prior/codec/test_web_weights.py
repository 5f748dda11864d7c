"""The file for browsers: it holds the small decoder to a level or two, and in few bytes."""

import copy
from typing import TYPE_CHECKING

import pytest
import torch
from torch import Tensor

from pqvae.errors import UserError
from stage1_tokenizer import Tokenizer
from stage1_tokenizer.decoder_config import SmallConfig
from stage1_tokenizer.directions import as_residual, first_directions
from stage1_tokenizer.tokenizer import SMALL
from stage2_prior.codec.web_weights import WebWeights
from tests.web.small_tokenizer import CODES, add_small, random_tokenizer, tokenizer_of_photos

if TYPE_CHECKING:
    from tests.conftest import BlobImages


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return random_tokenizer()


@pytest.fixture(scope="module")
def codes(tokenizer: Tokenizer) -> Tensor:
    generator = torch.Generator().manual_seed(3)
    sizes = tokenizer.quantizer.sizes
    return torch.stack([torch.randint(0, K, (32,), generator=generator) for K in sizes], dim=1)


@pytest.mark.parametrize("k", range(1, CODES + 1))
def test_the_file_decodes_as_the_small_decoder_but_for_rounding(
    tokenizer: Tokenizer, codes: Tensor, k: int
) -> None:
    expected = tokenizer.decode(codes[:, :k], SMALL)
    assert expected.std() > 0.1 and (expected.abs() < 1).float().mean() > 0.9
    decoded = WebWeights.of_tokenizer(tokenizer).decode(codes[:, :k])
    # int8 of every kernel and entry: each rounds to half a 127th of the largest, about 1% in all.
    error = (decoded - expected).square().mean().sqrt()
    assert error < 0.03 * expected.std()


def test_codes_that_the_file_does_not_know_change_nothing(
    tokenizer: Tokenizer, codes: Tensor
) -> None:
    weights = WebWeights.of_tokenizer(tokenizer)
    assert torch.equal(weights.decode(codes), weights.decode(codes[:, :CODES]))
    assert not torch.equal(weights.decode(codes), weights.decode(codes[:, : CODES - 1]))


def test_a_file_reads_as_it_was_written(tokenizer: Tokenizer) -> None:
    weights = WebWeights.of_tokenizer(tokenizer)
    data = weights.to_bytes()
    again = WebWeights.from_bytes(data)
    assert again.to_bytes() == data
    assert again.model.model == tokenizer.codes_hash[:4]
    assert list(again.model.sizes) == list(tokenizer.quantizer.sizes)
    assert again.tensors.keys() == weights.tensors.keys()
    for name, tensor in weights.tensors.items():
        assert torch.equal(again.tensors[name], tensor), name


@pytest.mark.parametrize("cut", [0, 4, 400, -1])
def test_a_damaged_file_is_refused(tokenizer: Tokenizer, cut: int) -> None:
    data = WebWeights.of_tokenizer(tokenizer).to_bytes()
    with pytest.raises(UserError, match="not a file of weights for browsers, or damaged"):
        WebWeights.from_bytes(data[:cut])


def test_a_tokenizer_without_a_small_decoder_is_refused(tiny_tokenizer: Tokenizer) -> None:
    with pytest.raises(UserError, match="train_small gives it one"):
        WebWeights.of_tokenizer(tiny_tokenizer)


def test_codes_that_all_have_entries_of_their_own_are_fine(
    tiny_tokenizer: Tokenizer, blob_images: "BlobImages"
) -> None:
    tokenizer = copy.deepcopy(tiny_tokenizer)
    assert len(as_residual(tokenizer.quantizer).learned.sizes) == tokenizer.num_codes
    decoder = add_small(tokenizer, SmallConfig(width=16, codes=6))
    decoder.init_from_faithful(tokenizer.decoder())
    images = blob_images(32, 16, 1)
    codes = tokenizer.encode(images)
    decoded = WebWeights.of_tokenizer(tokenizer).decode(codes)
    torch.testing.assert_close(decoded, tokenizer.decode(codes, SMALL), atol=0.05, rtol=0)
    assert (decoded - images).square().mean() < 0.4 * images.square().mean()


def test_that_of_photos_takes_at_most_250_kb() -> None:
    assert len(WebWeights.of_tokenizer(tokenizer_of_photos()).to_bytes()) <= 250_000


def test_directions_hold_all_that_the_first_codes_say(tokenizer: Tokenizer) -> None:
    quantizer = as_residual(tokenizer.quantizer)
    entries = torch.cat([quantizer.meaning(0), quantizer.meaning(1)])
    placed = [quantizer.placement(position) for position in range(2, CODES)]
    late = torch.cat([quantizer.meaning(2) @ each for each in placed if each is not None])
    for count, left in ((64, 1e-5), (40, 0.3), (20, 0.8)):
        U = first_directions(quantizer, CODES, count)
        assert U.shape == (64, count)
        torch.testing.assert_close(U.T @ U, torch.eye(count), atol=1e-5, rtol=0)
        beyond = entries - (entries @ U) @ U.T
        assert beyond.square().sum() < left * entries.square().sum()
        if count >= 40:  # more than the shared columns
            torch.testing.assert_close((late @ U) @ U.T, late, atol=1e-4, rtol=0)
