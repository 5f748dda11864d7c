"""The loop over positions against slow references: nearest entries, subtraction, beam search."""

from typing import Any

import pytest
import torch
from torch import Tensor

from pqvae.randomness import generator_for
from stage1_tokenizer.config import GumbelConfig, ResidualConfig
from stage1_tokenizer.quantizers import KINDS
from stage1_tokenizer.quantizers.progressive import Progressive, ProgressiveDescription

MIXED, DIM = (8, 3, 16, 2, 5), 6
# Of MIXED, the last three positions share a codebook of 16 entries.
SHARING = {"learned_codes": 2, "rank": 5, "subspace": 3}


def latents_of(n: int, seed: int = 1) -> Tensor:
    return torch.randn(n, DIM, generator=generator_for(seed))


def quantizer_of(
    kind: str, sizes: tuple[int, ...] = MIXED, revive_every: int = 100
) -> Progressive[Any]:
    """Started from latents, then taught by four batches."""
    config: ResidualConfig | GumbelConfig = GumbelConfig(num_codes=len(sizes), codebook_sizes=sizes)
    if kind != "gumbel":
        settings: dict[str, Any] = SHARING if kind == "shared" else {"learned_codes": len(sizes)}
        config = ResidualConfig(
            num_codes=len(sizes),
            codebook_sizes=sizes,
            revive_every=revive_every,
            revive_below=0.9,
            **settings,
        )
    quantizer = KINDS[type(config)](config, (DIM, 1, 1))
    assert isinstance(quantizer, Progressive)
    quantizer.start(latents_of(300, 0), generator_for(0))
    for step in range(4):
        latents = quantizer.normalize(latents_of(32, 100 + step))
        description = quantizer.describe(latents, 0.0, generator_for(2, step))
        quantizer.learn(description, step, 0.0, torch.tensor(True), generator_for(3, step))
    return quantizer


every_kind = pytest.mark.parametrize("kind", ["learned", "shared", "gumbel"])


def entries_of(quantizer: Progressive[Any], position: int) -> Tensor:
    """The K_i entries of a position, float64."""
    return quantizer.entries(position).detach().double()


@every_kind
def test_chosen_entry_is_the_nearest_and_is_subtracted(kind: str) -> None:
    quantizer, latents = quantizer_of(kind, revive_every=2), latents_of(200)
    description = quantizer.describe_greedily(latents)
    codes, left = description.codes, description.left()
    assert torch.equal(quantizer.encode(latents), codes)
    residual = latents.double()
    for position, size in enumerate(MIXED):
        entries = entries_of(quantizer, position)
        chosen = codes[:, position]
        assert (chosen < size).all()
        distances = torch.cdist(residual, entries)
        found = distances.gather(1, chosen[:, None]).squeeze(1)
        # Float32 may take either of two entries that are equally far but for rounding.
        torch.testing.assert_close(found, distances.min(1).values, rtol=0, atol=1e-5)
        residual = residual - entries[chosen]
        after = description.after(torch.full((200,), position + 1)).double()
        torch.testing.assert_close(after, residual, rtol=0, atol=1e-5)
        energies = left[position + 1].double()
        torch.testing.assert_close(energies, residual.square().sum(1), rtol=1e-4, atol=1e-5)
        prefix = quantizer.decode(codes[:, : position + 1])
        torch.testing.assert_close(latents - prefix, residual.float(), rtol=0, atol=1e-5)
    lengths = torch.arange(200) % 6
    rows = [description.after(torch.full((200,), k))[row] for row, k in enumerate(lengths.tolist())]
    torch.testing.assert_close(description.after(lengths), torch.stack(rows), rtol=0, atol=1e-6)


@every_kind
def test_padding_is_never_chosen_even_for_a_residual_of_zero(kind: str) -> None:
    # Padding rows are zero vectors: by distance alone they would be the nearest to zero.
    codes = quantizer_of(kind).encode(torch.zeros(4, DIM))
    assert (codes < torch.tensor(MIXED)).all()


def parts_of(description: ProgressiveDescription) -> list[Tensor]:
    return [part.detach() for part in description.parts]


@every_kind
@pytest.mark.parametrize("sizes", [[50], [25, 25], [1, 30, 19], [17, 16, 16, 1]])
def test_residuals_of_parts_are_recomputed_for_their_batch_to_the_bit(
    kind: str, sizes: list[int]
) -> None:
    quantizer, latents = quantizer_of(kind), latents_of(50)
    described = [quantizer.describe_greedily(part) for part in latents.split(sizes)]
    codes = torch.cat([each.codes for each in described])
    again = parts_of(quantizer.describe_by(latents, codes))
    expected = [torch.cat(parts, dim=1) for parts in zip(*map(parts_of, described), strict=True)]
    # Of the learned codebooks; the shared one's coordinates come from a matrix product.
    assert torch.equal(again[0], expected[0])
    torch.testing.assert_close(again[1:], expected[1:], rtol=0, atol=1e-6)


@every_kind
def test_search_and_description_stay_in_float32_under_autocast(kind: str) -> None:
    quantizer = quantizer_of(kind, (256,) * 5)
    latents = latents_of(64)
    description = quantizer.describe_greedily(latents)
    searched = quantizer.encode(latents, beam=3)
    with torch.autocast("cpu", torch.bfloat16):
        cast = quantizer.describe_greedily(latents)
        again = quantizer.describe_by(latents, description.codes)
        assert torch.equal(quantizer.encode(latents, beam=3), searched)
    assert torch.equal(cast.codes, description.codes)
    for each in (cast, again):
        for found, expected in zip(parts_of(each), parts_of(description), strict=True):
            assert torch.equal(found, expected)


def beam_reference(quantizer: Progressive[Any], latent: Tensor, beam: int) -> list[int]:
    """Beam search over lists, one latent in float64; the greedy beginning always stays."""
    beginnings: list[tuple[list[int], Tensor]] = [([], latent.double())]
    for position in range(quantizer.num_codes):
        entries = entries_of(quantizer, position)
        grown = [
            [([*codes, c], residual - entries[c]) for c in range(len(entries))]
            for codes, residual in beginnings
        ]
        greedy = min(grown[0], key=lambda one: float(one[1].square().sum()))
        others = [one for group in grown for one in group if one is not greedy]
        others.sort(key=lambda one: float(one[1].square().sum()))
        beginnings = [greedy, *others[: beam - 1]]
    return min(beginnings, key=lambda one: float(one[1].square().sum()))[0]


@every_kind
@pytest.mark.parametrize("beam", [1, 2, 5, 64])
def test_beam_search_finds_what_a_plain_one_finds(kind: str, beam: int) -> None:
    quantizer, latents = quantizer_of(kind), latents_of(20)
    expected = [beam_reference(quantizer, latent, beam) for latent in latents]
    assert quantizer.encode(latents, beam).tolist() == expected


@every_kind
@pytest.mark.parametrize("beam", [1, 2, 3, 8, 33])
def test_beam_search_never_leaves_more_than_greedy_choice(kind: str, beam: int) -> None:
    quantizer, latents = quantizer_of(kind, (16,) * 12), latents_of(300)
    greedy, left = (
        (latents - quantizer.decode(quantizer.encode(latents, width))).square().sum(1)
        for width in (1, beam)
    )
    assert (left <= greedy * (1 + 1e-5) + 1e-5).all()
    assert (left < 0.999 * greedy).any() == (beam > 1)


def test_beam_as_wide_as_the_tree_finds_the_nearest_sum_of_all() -> None:
    sizes = (4, 3, 5)
    quantizer, latents = quantizer_of("learned", sizes), latents_of(30)
    every = torch.cartesian_prod(*[torch.arange(size) for size in sizes])
    distances = torch.cdist(latents.double(), quantizer.decode(every).double())
    assert torch.equal(quantizer.encode(latents, 60), every[distances.argmin(1)])
