"""The prior: causal, equal with and without its cache, and honest about bits."""

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from pqvae.errors import UserError
from pqvae.randomness import generator_for
from stage1_tokenizer.config import QuantizerConfig
from stage1_tokenizer.quantizers.residual import ProgressiveQuantizer
from stage1_tokenizer.tokenizer import Tokenizer
from stage2_prior.config import PriorConfig
from stage2_prior.prior import Prior

SIZES = (7, 4, 16, 2, 9)
N, CLASSES, BATCH = len(SIZES), 3, 6
# Logits are of order 1; float32 products of other shapes are summed in another order.
TOLERANCE = 1e-4

TINY = PriorConfig(width=64, depth=2, heads=2, code_features=8)


def make_prior(config: PriorConfig = TINY, classes: int = CLASSES) -> Prior:
    """A prior in which every weight counts: training would move those that start at zero, too."""
    torch.manual_seed(0)
    names, counts = tuple(f"class {i}" for i in range(classes)), (5,) * classes
    prior = Prior(config, SIZES, names, counts, "hash of a tokenizer")
    for parameter in prior.parameters():
        nn.init.normal_(parameter, std=0.1)
    prior.code_features.normal_()
    return prior.eval()


@pytest.fixture(scope="module")
def prior() -> Prior:
    return make_prior()


def random_codes(seed: int = 0) -> Tensor:
    columns = [
        torch.randint(size, (BATCH,), generator=generator_for(seed, i))
        for i, size in enumerate(SIZES)
    ]
    return torch.stack(columns, dim=1)


LABELS = torch.arange(BATCH) % CLASSES


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
@pytest.mark.parametrize("labels", [LABELS, None], ids=["classes", "no class"])
def test_cached_logits_are_the_uncached_ones(prior: Prior, labels: Tensor | None) -> None:
    codes, cache = torch.empty(BATCH, 0, dtype=torch.int64), None
    for position in range(N):
        cached, cache = prior.next_logits(codes, labels, cache)
        uncached = prior(codes, labels)[:, -1]
        torch.testing.assert_close(cached, uncached, atol=TOLERANCE, rtol=0)
        assert torch.equal(cached.argmax(1), uncached.argmax(1))
        chosen = torch.randint(SIZES[position], (BATCH, 1), generator=generator_for(1, position))
        codes = torch.cat([codes, chosen], dim=1)


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
    for parameter in (prior.head, prior.head_bias, prior.head_projection.weight):
        parameter.zero_()
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
def test_entries_mean_to_the_prior_what_they_are_to_the_quantizer(dim: int, rank: int) -> None:
    quantizer = ProgressiveQuantizer(QuantizerConfig(num_codes=N, codebook_sizes=SIZES), dim)
    generator = generator_for(0)
    basis = torch.linalg.qr(torch.randn(dim, rank, generator=generator)).Q
    for position, size in enumerate(SIZES):
        quantizer.vectors[position, :size] = torch.randn(size, rank, generator=generator) @ basis.T
    quantizer.factors.copy_(torch.rand(quantizer.factors.shape, generator=generator) + 0.5)
    prior = make_prior()
    state = torch.get_rng_state()
    prior.set_code_features(quantizer)
    assert torch.equal(torch.get_rng_state(), state)  # it draws no number of the training's

    entries = torch.cat([quantizer.entries(position) for position in range(N)]).double()
    features = torch.cat([prior.code_features[i, :size] for i, size in enumerate(SIZES)]).double()
    expected, found = entries @ entries.T, features @ features.T
    scale = expected.norm() / found.norm()
    # 1e-4: a randomized decomposition in float32 finds so few directions to about 1e-6.
    torch.testing.assert_close(found * scale, expected, atol=1e-4 * float(expected.max()), rtol=0)
    for position, size in enumerate(SIZES):
        assert (prior.code_features[position, size:] == 0).all()


@torch.inference_mode()
def test_saved_and_loaded_it_is_the_same(prior: Prior, tmp_path: Path) -> None:
    content_hash = prior.save_pretrained(tmp_path / "model")
    for folder in (tmp_path, tmp_path / "model"):  # a run folder or the model in it
        loaded = Prior.from_pretrained(folder)
        assert not loaded.training
        assert loaded.config == prior.config
        assert loaded.sizes == SIZES
        assert loaded.class_names == prior.class_names
        assert loaded.class_counts == prior.class_counts
        assert loaded.tokenizer_hash == "hash of a tokenizer"
        assert loaded.content_hash == content_hash
        codes = random_codes()
        assert torch.equal(loaded(codes, LABELS), prior(codes, LABELS))


def test_a_foreign_or_damaged_folder_is_refused(
    prior: Prior, tiny_tokenizer: Tokenizer, tmp_path: Path
) -> None:
    def refused(message: str) -> None:
        with pytest.raises(UserError, match=message):
            Prior.from_pretrained(tmp_path)

    refused(r"no prior here \(config.json is missing\)")
    config = tmp_path / "config.json"
    config.write_text("[]")
    refused(r"config.json: not the config of a model")
    Tokenizer(tiny_tokenizer.config).save_pretrained(tmp_path)
    refused("holds a tokenizer, but a prior is needed")
    prior.save_pretrained(tmp_path)
    config.write_text(config.read_text().replace("class 1", "class 9"))
    refused("do not belong together, or are damaged")
    prior.save_pretrained(tmp_path)
    weights = tmp_path / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    refused("do not belong together, or are damaged")
    weights.write_bytes(data[: len(data) // 2])
    refused("model.safetensors: damaged")
    weights.unlink()
    refused("model.safetensors: no such file")


@pytest.mark.parametrize("settings", [(65, 2), (32, 2), (66, 4)])
def test_a_width_that_does_not_fit_the_heads_is_refused(settings: tuple[int, int]) -> None:
    width, heads = settings
    with pytest.raises(ValueError, match=f"width {width} must be an even multiple of heads"):
        PriorConfig(width=width, heads=heads)


def test_it_learns_what_depends_on_the_class_and_on_earlier_codes() -> None:
    # c_2 = f(c_1, class) and the rest is constant: log2 7 bits at the first position, 0 elsewhere.
    torch.manual_seed(0)
    config = PriorConfig(width=64, depth=2, heads=2, code_features=8, dropout=0.0)
    prior = Prior(config, SIZES, ("a", "b"), (1, 1), "")
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
