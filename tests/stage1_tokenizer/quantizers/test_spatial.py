"""A code for each place, against vector-quantize-pytorch used plainly."""

import sys
from typing import Any

import pytest
import torch
from torch import Tensor

from pqvae.errors import UserError
from pqvae.randomness import generator_for
from stage1_tokenizer.config import SpatialConfig
from stage1_tokenizer.quantizers.spatial import CLUSTERED, DECAY, SpatialQuantizer

library = pytest.importorskip("vector_quantize_pytorch")

SHAPE = (3, 4, 4)
FINITE = torch.tensor(True)


def encoded_of(n: int, seed: int) -> Tensor:
    mixing = torch.randn(48, 48, generator=generator_for(9))
    return torch.randn(n, 48, generator=generator_for(1, seed)) @ mixing


def places_of(latents: Tensor, fold: int) -> Tensor:
    """The vectors of all places, one after the other: (B, places, C fold fold)."""
    maps = latents.view(-1, *SHAPE)
    return torch.stack(
        [
            maps[:, :, top : top + fold, left : left + fold].flatten(1)
            for top in range(0, 4, fold)
            for left in range(0, 4, fold)
        ],
        dim=1,
    )


def plain_levels(config: SpatialConfig) -> list[Any]:
    return [
        library.VectorQuantize(
            dim=3 * config.fold**2,
            codebook_size=config.codebook_size,
            decay=DECAY,
            kmeans_init=True,
            threshold_ema_dead_code=config.least_uses,
            commitment_weight=0.0,
            rotation_trick=False,
        )
        for _ in range(config.levels)
    ]


@pytest.mark.parametrize(
    "config",
    [
        SpatialConfig(codebook_size=8),
        SpatialConfig(codebook_size=8, levels=3),
        SpatialConfig(codebook_size=64, levels=2, fold=2, least_uses=2.5),  # revives entries
    ],
)
def test_codes_and_codebooks_are_those_of_the_library_after_training(config: SpatialConfig) -> None:
    quantizer, levels = SpatialQuantizer(config, SHAPE), plain_levels(config)
    quantizer.start(encoded_of(CLUSTERED, 0), generator_for(0))
    torch.manual_seed(generator_for(0).initial_seed())
    for level in levels:
        level.eval()
    residual = places_of(encoded_of(CLUSTERED, 0) / encoded_of(CLUSTERED, 0).std(), config.fold)
    for level in levels:
        residual = residual - level(residual)[0]
    for step in range(30):
        latents = quantizer.normalize(encoded_of(32, 100 + step))
        description = quantizer.describe(latents, 0.5, generator_for(0))
        quantizer.learn(description, step, 0.5, FINITE, generator_for(3, step))
        torch.manual_seed(generator_for(3, step).initial_seed())
        residual, codes = places_of(latents, config.fold), []
        for level in levels:
            quantized, chosen, _ = level.train()(residual)
            residual = residual - quantized
            codes.append(chosen)
        assert torch.equal(description.codes, torch.cat(codes, dim=1))
    for book, level in enumerate(levels):
        torch.testing.assert_close(quantizer.meaning(book), level.codebook, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("levels", "fold"), [(1, 1), (3, 1), (2, 2), (1, 4)])
def test_codes_are_places_level_by_level(levels: int, fold: int) -> None:
    config = SpatialConfig(codebook_size=8, levels=levels, fold=fold)
    quantizer = SpatialQuantizer(config, SHAPE)
    quantizer.start(encoded_of(300, 0), generator_for(0))
    latents = quantizer.normalize(encoded_of(20, 1))
    places = (4 // fold) ** 2
    assert quantizer.num_codes == levels * places
    assert list(quantizer.cuts) == [places * level for level in range(1, levels + 1)]
    assert quantizer.books == tuple(book for book in range(levels) for _ in range(places))
    codes, residual = quantizer.encode(latents), places_of(latents, fold)
    for level in range(levels):
        entries = quantizer.meaning(level)
        chosen = codes[:, level * places : (level + 1) * places]
        assert torch.equal(chosen, torch.cdist(residual, entries).argmin(2))
        residual = residual - entries[chosen]
        f_k = quantizer.decode(codes[:, : (level + 1) * places])
        torch.testing.assert_close(places_of(latents - f_k, fold), residual, rtol=0, atol=1e-5)


def test_a_code_of_a_place_changes_that_place_alone() -> None:
    quantizer = SpatialQuantizer(SpatialConfig(codebook_size=8), SHAPE)
    quantizer.start(encoded_of(300, 0), generator_for(0))
    codes = quantizer.encode(quantizer.normalize(encoded_of(1, 1)))
    for place in range(16):
        other = codes.clone()
        other[0, place] = (other[0, place] + 1) % 8
        changed = (quantizer.decode(other) - quantizer.decode(codes)).view(3, 16).any(0)
        assert changed.nonzero().flatten().tolist() == [place]


def test_learning_leaves_the_global_generator_alone() -> None:
    config = SpatialConfig(codebook_size=64, least_uses=100)  # revives in every step
    quantizer = SpatialQuantizer(config, SHAPE)
    torch.manual_seed(1)
    before = torch.get_rng_state()
    quantizer.start(encoded_of(300, 0), generator_for(0))
    description = quantizer.describe(quantizer.normalize(encoded_of(8, 1)), 0, generator_for(0))
    quantizer.learn(description, 0, 0.0, FINITE, generator_for(0))
    assert torch.equal(torch.get_rng_state(), before)


def test_a_fold_that_does_not_divide_the_map_is_refused() -> None:
    with pytest.raises(UserError, match=r"quantizer.fold=3 does not divide a map of 4x4"):
        SpatialQuantizer(SpatialConfig(fold=3), SHAPE)


def test_without_the_library_the_extra_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "vector_quantize_pytorch", None)  # as if it were missing
    with pytest.raises(UserError, match=r"pip install 'pqvae\[baselines\]'"):
        SpatialQuantizer(SpatialConfig(), SHAPE)
