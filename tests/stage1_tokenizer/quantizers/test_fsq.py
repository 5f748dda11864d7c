"""Finite scalar quantization, against vector-quantize-pytorch used plainly."""

import sys

import pytest
import torch
from torch import Tensor

from pqvae.config import load_config
from pqvae.errors import UserError
from pqvae.randomness import generator_for
from stage1_tokenizer.config import Config, FSQConfig
from stage1_tokenizer.quantizers.fsq import FSQQuantizer

library = pytest.importorskip("vector_quantize_pytorch")

SHAPE = (3, 4, 4)


def encoded_of(n: int, seed: int) -> Tensor:
    """Maps whose channels are correlated."""
    mixing = torch.randn(3, 3, generator=generator_for(9))
    maps = torch.randn(n, 16, 3, generator=generator_for(1, seed)) @ mixing
    return maps.transpose(1, 2).flatten(1)


def started(levels: tuple[int, ...]) -> FSQQuantizer:
    quantizer = FSQQuantizer(FSQConfig(levels=levels), SHAPE)
    quantizer.start(encoded_of(300, 0), generator_for(0))
    return quantizer


def test_codes_and_latents_are_those_of_the_library() -> None:
    quantizer = started((5, 4))
    plain = library.FSQ(levels=[5, 4])
    latents = quantizer.normalize(encoded_of(20, 1))
    codes = quantizer.encode(latents)
    assert codes.shape == (20, 16)
    assert len(codes.unique()) > 15  # of 20
    with torch.no_grad():
        for row in range(20):
            for place in range(16):
                vector = latents[row].view(3, 16)[:, place]
                rounded, code = plain((quantizer.into.weight @ vector).view(1, 1, 2))
                assert codes[row, place] == code
                expected = quantizer.out_of.weight @ rounded.flatten()
                found = quantizer.decode(codes)[row].view(3, 16)[:, place]
                torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


def test_it_starts_near_the_principal_components_of_places() -> None:
    quantizer = started((101, 101))  # so many that rounding plays no part
    encoded = encoded_of(300, 0)
    latents = quantizer.normalize(encoded)
    left = (latents - quantizer.decode(quantizer.encode(latents))).square().mean()
    rows = latents.double().view(-1, 3, 16).transpose(1, 2).reshape(-1, 3)
    smallest = torch.linalg.svdvals(rows)[-1] ** 2 / rows.numel()  # what two components leave
    # The tanh bends far values.
    assert smallest * 0.99 < left < smallest + 0.05


def test_only_all_codes_together_decode_and_share_one_book() -> None:
    quantizer = started((5, 4))
    assert quantizer.cuts == (16,)
    assert set(quantizer.books) == {0}
    assert quantizer.sizes == (20,) * 16
    with pytest.raises(ValueError, match="a prefix has 16 codes, but got 8"):
        quantizer.decode(torch.zeros(1, 8, dtype=torch.int64))


def test_without_the_library_the_extra_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "vector_quantize_pytorch", None)  # as if it were missing
    with pytest.raises(UserError, match=r"pip install 'pqvae\[baselines\]'"):
        FSQQuantizer(FSQConfig(), SHAPE)


def test_levels_that_say_nothing_are_refused() -> None:
    with pytest.raises(UserError, match=r"'quantizer\.levels' must be .*each 2 to"):
        load_config(Config, None, ["quantizer.kind=fsq", "quantizer.levels=8,1"])
