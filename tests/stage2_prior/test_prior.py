"""The prior: causal, the same whatever stands beside an image, and honest about bits."""

import math

import pytest
import torch
from torch import Tensor

from pqvae.randomness import generator_for
from stage1_tokenizer.config import ResidualConfig
from stage1_tokenizer.quantizers.residual import ResidualQuantizer
from stage2_prior.books import Codebooks
from stage2_prior.config import PriorConfig
from stage2_prior.prior import Prior
from stage2_prior.sequence import Sequence
from tests.stage2_prior.random_prior import (
    BATCH,
    CLASSES,
    CODEBOOKS,
    LABELS,
    SIZES,
    N,
    make_prior,
    random_codes,
)

# Logits are of order 1; float32 products of other shapes are summed in another order.
TOLERANCE = 1e-4


@torch.inference_mode()
def test_a_code_changes_the_logits_after_it_and_no_others(prior: Prior) -> None:
    codes = random_codes()
    before = prior(codes, LABELS)
    for position, size in enumerate(SIZES):
        changed = codes.clone()
        changed[:, position] = (changed[:, position] + 1) % size
        difference = (prior(changed, LABELS) - before).nan_to_num(0)  # inf - inf where illegal
        per_position = difference.abs().amax((0, 2))
        assert per_position[: position + 1].max() == 0
        if position + 1 < N:
            assert per_position[position + 1 :].min() > 100 * TOLERANCE


@torch.inference_mode()
def test_a_prefix_has_the_logits_of_the_whole(prior: Prior) -> None:
    codes = random_codes()
    whole = prior(codes, LABELS)
    for length in range(N + 1):
        logits = prior(codes[:, :length], LABELS)
        assert logits.shape == (BATCH, min(length + 1, N), max(SIZES))
        torch.testing.assert_close(logits, whole[:, : length + 1], atol=TOLERANCE, rtol=0)


@torch.inference_mode()
def test_a_prefix_costs_what_it_costs_in_the_whole(prior: Prior) -> None:
    codes = random_codes()
    whole = prior.bits(codes, LABELS)
    for k in range(1, N + 1):
        found = prior.bits(codes[:, :k], LABELS)
        torch.testing.assert_close(found, whole[:, :k], atol=TOLERANCE, rtol=0)
    pairs = make_prior(sequence=Sequence(((1, 0), (4,), (2, 3))))
    found = pairs.bits(codes[:, :2])
    torch.testing.assert_close(found, pairs.bits(codes)[:, :2], atol=TOLERANCE, rtol=0)
    for k in (1, 3, 4):
        with pytest.raises(ValueError, match="or a prefix"):
            pairs.bits(codes[:, :k])


@torch.inference_mode()
def test_only_the_codes_of_a_position_are_possible(prior: Prior) -> None:
    codes = random_codes()
    logits, bits = prior(codes, LABELS), prior.bits(codes, LABELS)
    assert bits.shape == (BATCH, N)
    for position, size in enumerate(SIZES):
        assert (logits[:, position, size:] == -torch.inf).all()
        legal = logits[:, position, :size].double()
        assert legal.isfinite().all()
        probabilities = legal.exp() / legal.exp().sum(1, keepdim=True)
        chosen = probabilities[torch.arange(BATCH), codes[:, position]]
        expected = -chosen.log2().float()
        torch.testing.assert_close(bits[:, position], expected, atol=TOLERANCE, rtol=0)


@torch.inference_mode()
def test_a_uniform_prior_costs_log2_of_the_codebook_size() -> None:
    prior = make_prior()
    prior.head_projection.weight.zero_()
    for book in prior.books:
        book.head.zero_()
        book.bias.zero_()
    expected = torch.tensor([math.log2(size) for size in SIZES]).expand(BATCH, N)
    torch.testing.assert_close(prior.bits(random_codes(), LABELS), expected, atol=1e-6, rtol=0)


@torch.inference_mode()
def test_the_class_matters_and_its_last_row_is_no_class(prior: Prior) -> None:
    codes = random_codes()
    of_class = [prior.bits(codes, torch.full((BATCH,), label)) for label in range(CLASSES + 1)]
    for label in range(CLASSES):
        assert (of_class[label] - of_class[CLASSES]).abs().min() > 0
    assert torch.equal(prior.bits(codes), of_class[CLASSES])
    assert torch.equal(prior.bits(codes, LABELS)[1], of_class[LABELS[1]][1])
    unconditional = make_prior(classes=0)
    assert torch.equal(unconditional(codes, torch.zeros(BATCH).long()), unconditional(codes))


@torch.inference_mode()
def test_an_image_costs_the_same_whatever_stands_beside_it(prior: Prior) -> None:
    codes = random_codes()
    bits = prior.bits(codes, LABELS)
    order = torch.randperm(BATCH, generator=generator_for(0))
    shuffled = prior.bits(codes[order], LABELS[order])
    torch.testing.assert_close(shuffled, bits[order], atol=TOLERANCE, rtol=0)
    alone = prior.bits(codes[2:3], LABELS[2:3])
    torch.testing.assert_close(alone, bits[2:3], atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize(("dim", "rank"), [(40, 8), (5, 5)], ids=["low rank", "small"])
@pytest.mark.parametrize("learned", [N, 2], ids=["all learned", "three share"])
def test_entries_mean_to_the_prior_what_they_are_to_the_quantizer(
    dim: int, rank: int, learned: int
) -> None:
    config = ResidualConfig(
        num_codes=N, codebook_sizes=SIZES, learned_codes=learned, rank=rank, subspace=3
    )
    quantizer = ResidualQuantizer(config, (dim, 1, 1))
    generator = generator_for(0)
    basis = torch.linalg.qr(torch.randn(dim, rank, generator=generator)).Q
    quantizer.start(torch.randn(500, rank, generator=generator) @ basis.T, generator)
    prior = make_prior(codebooks=Codebooks.of(quantizer))
    state = torch.get_rng_state()
    prior.set_code_features(quantizer)
    assert torch.equal(torch.get_rng_state(), state)  # it draws no number of the training's

    entries = torch.cat([quantizer.entries(position) for position in range(N)]).double()
    features = torch.cat([features_of(prior, position) for position in range(N)]).double()
    expected, found = entries @ entries.T, features @ features.T
    scale = expected.norm() / found.norm()
    # 1e-4: a randomized decomposition in float32 finds so few directions to about 1e-6.
    torch.testing.assert_close(found * scale, expected, atol=1e-4 * float(expected.max()), rtol=0)
    # The longest entry has unit size, so that no code drowns the free embeddings.
    assert float(features.norm(dim=1).max()) == pytest.approx(1, abs=1e-5)


def features_of(prior: Prior, position: int) -> Tensor:
    """What each entry of a position adds to the latent that the prior sees: (K_i, F)."""
    codes = torch.zeros(SIZES[position], position + 1, dtype=torch.int64)
    codes[:, position] = torch.arange(SIZES[position])
    described = prior.books.read(codes, 0)[1]
    return described[:, position]


@torch.inference_mode()
def test_positions_share_a_codebook_as_if_each_had_a_copy_of_it(prior: Prior) -> None:
    copied = make_prior(codebooks=Codebooks.separate(SIZES))
    tensors = {k: v for k, v in prior.state_dict().items() if not k.startswith("books.")}
    copied.load_state_dict(tensors, strict=False)
    for position, (size, number) in enumerate(zip(SIZES, CODEBOOKS.books, strict=True)):
        book, own = list(prior.books)[number], list(copied.books)[position]
        member = position - CODEBOOKS.books.index(number)
        own.embedding.weight.copy_(book.embedding.weight[:size])
        own.head.copy_(book.head[:size])
        own.gain.copy_(book.gain[member : member + 1])
        own.bias.copy_(book.bias[member : member + 1, :size])
        own.set_meaning(features_of(prior, position), None)
    codes = random_codes()
    torch.testing.assert_close(copied(codes, LABELS), prior(codes, LABELS), atol=1e-4, rtol=0)


def test_another_position_in_a_shared_codebook_costs_a_row_of_each_kind() -> None:
    def count(late: int) -> int:
        # As configs/cifar10.yaml has it: 2 codes of 256, the late ones of 1024 in 16 numbers.
        books = Codebooks((256,) * 2 + (1024,) * late, (0, 1, *(2,) * late), (None, None, 16))
        prior = Prior(PriorConfig(), books, (), ())
        numbers = sum(tensor.numel() for tensor in prior.state_dict().values())
        assert max(tensor.numel() for tensor in prior.state_dict().values()) <= 1024 * 192
        return numbers

    # Its position and gain; its bias and the size of each entry; how it places them.
    assert count(57) - count(56) == 2 * 192 + 2 * 1024 + 16 * 128


@pytest.mark.parametrize("settings", [(65, 2), (32, 2), (66, 4)])
def test_a_width_that_does_not_fit_the_heads_is_refused(settings: tuple[int, int]) -> None:
    width, heads = settings
    with pytest.raises(ValueError, match=f"width {width} must be an even multiple of heads"):
        PriorConfig(width=width, heads=heads)


def test_it_learns_what_depends_on_the_class_and_on_earlier_codes() -> None:
    # c_2 = f(c_1, class) and the rest is constant: log2 7 bits at the first position, 0 elsewhere.
    torch.manual_seed(0)
    config = PriorConfig(width=64, depth=2, heads=2, code_features=8, dropout=0.0)
    prior = Prior(config, CODEBOOKS, ("a", "b"), (1, 1))
    optimizer = torch.optim.Adam(prior.parameters(), lr=3e-3)
    for step in range(150):
        codes, labels = law(64, step)
        loss = prior.bits(codes, labels).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.inference_mode():
        bits = prior.eval().bits(*law(512, 999)).mean(0)
        wrong = prior.bits(law(512, 999)[0], 1 - law(512, 999)[1]).mean(0)
    # Not below the entropy (up to the draw), and near it; the wrong class is costly.
    assert float(bits[0]) == pytest.approx(math.log2(7), abs=0.1)
    assert float(bits[1:].max()) < 0.2
    assert float(wrong[1]) > 1


def law(n: int, seed: int) -> tuple[Tensor, Tensor]:
    generator = generator_for(seed)
    labels = torch.randint(2, (n,), generator=generator)
    codes = torch.zeros(n, N, dtype=torch.int64)
    codes[:, 0] = torch.randint(7, (n,), generator=generator)
    codes[:, 1] = (codes[:, 0] + 2 * labels) % 4
    return codes, labels
