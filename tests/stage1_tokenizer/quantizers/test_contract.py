"""What every kind of quantizer promises to its users: prefixes, rows, entries."""

import itertools
import math
from typing import TYPE_CHECKING

import pytest
import torch

from pqvae.randomness import generator_for
from stage1_tokenizer.config import GumbelConfig, QuantizerConfig
from stage1_tokenizer.quantizers import KINDS

if TYPE_CHECKING:
    from tests.stage1_tokenizer.quantizers.conftest import Case

B, DIM = 64, 48


def test_every_kind_is_tested(configs: dict[str, QuantizerConfig]) -> None:
    assert {type(config) for config in configs.values()} == set(KINDS)


def test_sizes_books_and_cuts_fit_together(case: "Case") -> None:
    quantizer = case.started()
    N, sizes, books, cuts = quantizer.num_codes, quantizer.sizes, quantizer.books, quantizer.cuts
    assert len(sizes) == len(books) == N
    assert list(cuts) == sorted(set(cuts)) and cuts[0] >= 1 and cuts[-1] == N
    assert list(dict.fromkeys(books)) == list(range(max(books) + 1))  # in order of first use
    assert quantizer.bits == pytest.approx([math.log2(size) for size in sizes])
    for book in range(max(books) + 1):
        readers = [size for size, read in zip(sizes, books, strict=True) if read == book]
        assert len(quantizer.meaning(book)) >= max(readers)


def test_codes_lie_in_their_codebooks_and_depend_on_their_row_alone(case: "Case") -> None:
    quantizer = case.started()
    latents = case.latents(quantizer, B, 1)
    codes = quantizer.encode(latents)
    assert codes.dtype == torch.int64 and codes.shape == (B, quantizer.num_codes)
    assert (codes >= 0).all() and (codes < torch.tensor(quantizer.sizes)).all()
    assert len(codes.unique(dim=0)) > B / 2
    order = torch.randperm(B, generator=generator_for(3))
    assert torch.equal(quantizer.encode(latents[order]), codes[order])
    assert torch.equal(torch.cat([quantizer.encode(row[None]) for row in latents]), codes)


def test_a_prefix_means_the_sum_of_its_entries(case: "Case") -> None:
    quantizer = case.started()
    codes = quantizer.encode(case.latents(quantizer, B, 1))
    total, rows = torch.zeros(B, DIM), []
    for position, size in enumerate(quantizer.sizes):
        entries = quantizer.entries(position)
        assert entries.shape == (size, DIM)
        meaning = quantizer.meaning(quantizer.books[position])[:size]
        placement = quantizer.placement(position)
        placed = meaning if placement is None else meaning @ placement
        torch.testing.assert_close(entries, placed, rtol=1e-5, atol=1e-6)
        total = total + entries[codes[:, position]]
        if position + 1 in quantizer.cuts:
            found = quantizer.decode(codes[:, : position + 1])
            torch.testing.assert_close(found, total, rtol=1e-4, atol=1e-5)
            rows.append(found)
    # And every cut says something more.
    assert all(not torch.allclose(a, b, atol=1e-2) for a, b in itertools.pairwise(rows))


def test_equal_prefixes_mean_the_same_to_the_bit_whatever_follows(case: "Case") -> None:
    quantizer = case.started()
    latents = case.latents(quantizer, B, 1)
    codes, others = quantizer.encode(latents), quantizer.encode(latents.flip(0))
    for k in quantizer.cuts:
        mixed = torch.cat([codes[:, :k], others[:, k:]], dim=1)
        assert torch.equal(quantizer.decode(mixed[:, :k]), quantizer.decode(codes[:, :k].clone()))
        lengths = torch.full((B,), k)
        plain, other = (quantizer.describe_by(latents, each) for each in (codes, mixed))
        assert torch.equal(plain.prefix(lengths), other.prefix(lengths))
        upto = list(quantizer.cuts).index(k) + 2
        assert torch.equal(plain.left()[:upto], other.left()[:upto])


def test_prefixes_that_do_not_decode_are_refused(case: "Case") -> None:
    quantizer = case.untrained()
    N = quantizer.num_codes
    for k in set(range(N + 2)) - set(quantizer.cuts):
        with pytest.raises(ValueError, match=rf"a prefix has .*{N} codes, but got {k}"):
            quantizer.decode(torch.zeros(2, k, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"codes must be \(B, k\)"):
        quantizer.decode(torch.zeros(N, dtype=torch.int64))


def test_codes_outside_their_own_codebook_are_refused(case: "Case") -> None:
    quantizer = case.untrained()
    for position, size in enumerate(quantizer.sizes):
        codes = torch.zeros(2, quantizer.num_codes, dtype=torch.int64)
        codes[1, position] = size - 1
        quantizer.decode(codes)
        for bad in (-1, size):
            codes[1, position] = bad
            with pytest.raises(ValueError, match="codes must lie in"):
                quantizer.decode(codes)


def test_description_says_what_decode_says_and_what_is_left(case: "Case") -> None:
    quantizer = case.started()
    latents = case.latents(quantizer, B, 1)
    description = quantizer.describe(latents, 0.5, generator_for(4))
    codes = description.codes
    assert torch.equal(description.latents, latents)
    if not isinstance(case.config, GumbelConfig):  # whose codes are drawn at random in training
        assert torch.equal(codes, quantizer.encode(latents))
    left, again = description.left(), quantizer.describe_by(latents, codes)
    assert left.shape == (len(quantizer.cuts) + 1, B)
    torch.testing.assert_close(left[0], latents.square().sum(1))
    torch.testing.assert_close(again.left(), left, rtol=1e-4, atol=1e-4)
    assert torch.equal(again.codes, codes)
    decoded = torch.stack([quantizer.decode(codes[:, :k]) for k in quantizer.cuts])
    for index, k in enumerate(quantizer.cuts):
        f_k, lengths = decoded[index], torch.full((B,), k)
        for each in (description, again):
            torch.testing.assert_close(each.prefix(lengths), f_k, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(
            left[index + 1], (latents - f_k).square().sum(1), rtol=1e-4, atol=1e-4
        )
    drawn = torch.arange(B) % len(quantizer.cuts)  # of each row another length
    found = description.prefix(torch.tensor(list(quantizer.cuts))[drawn])
    torch.testing.assert_close(found, decoded[drawn, torch.arange(B)], rtol=1e-4, atol=1e-5)


def test_gradients_of_every_prefix_reach_the_latents_and_what_is_trained(case: "Case") -> None:
    quantizer = case.started()
    latents = case.latents(quantizer, B, 1).requires_grad_()
    description = quantizer.describe(latents, 0.5, generator_for(4))
    for k in quantizer.cuts:
        weights = torch.randn(B, DIM, generator=generator_for(5))
        value = (description.prefix(torch.full((B,), k)) * weights).sum()
        (gradient,) = torch.autograd.grad(value, latents, retain_graph=True)
        assert gradient.flatten(1).any(1).all()
    assert not description.left().requires_grad
    value = description.prefix(torch.full((B,), quantizer.num_codes)).square().sum()
    value = value if description.loss is None else value + description.loss
    value.backward()
    for key, parameter in quantizer.named_parameters():
        assert parameter.grad is not None and parameter.grad.any(), key
