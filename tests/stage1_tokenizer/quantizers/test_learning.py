"""What every kind of quantizer promises to training: it learns, skips, counts, and resumes."""

import math
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import Tensor

from pqvae.randomness import generator_for
from stage1_tokenizer.config import FSQConfig
from stage1_tokenizer.quantizers.contract import Quantizer

if TYPE_CHECKING:
    from tests.stage1_tokenizer.quantizers.conftest import Case

B = 64


def state_of(quantizer: Quantizer[Any]) -> dict[str, Tensor]:
    state = {**quantizer.state_dict(), **quantizer.training_state()}
    return {name: value.clone() for name, value in state.items()}


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    """To the bit."""
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.equal(found[name], value), name


def test_choosing_and_describing_change_nothing(case: "Case") -> None:
    quantizer = case.started().train()
    before = state_of(quantizer)
    latents = case.latents(quantizer, B, 1)
    description = quantizer.describe(latents, 0.5, generator_for(0))
    quantizer.encode(latents)
    quantizer.decode(quantizer.describe_by(latents, description.codes).codes)
    assert_same(state_of(quantizer), before)


def test_training_on_latents_unlike_the_first_leaves_less_of_new_ones(case: "Case") -> None:
    quantizer = case.started(case.encoded(300, 0).abs())
    new = case.encoded(500, 99)

    def share_left() -> float:
        latents = quantizer.normalize(new)
        left = quantizer.describe_by(latents, quantizer.encode(latents)).left()
        return float(left[-1].mean() / left[0].mean())

    before = share_left()
    case.train(quantizer, range(100))
    # Measured: 0.38 to 0.89 of it, over all cases and three seeds.
    assert share_left() < 0.97 * before


def test_scale_follows_the_standard_deviation_of_the_encoder(case: "Case") -> None:
    quantizer, encoded, finite = case.started(), 7 * case.encoded(100, 5), torch.tensor(True)
    before, deviation = float(quantizer.scale), float(encoded.double().std())
    if isinstance(case.config, FSQConfig):  # whose scale stays as it starts
        deviation = before
    for step in range(1, 61):
        latents = quantizer.normalize(encoded)
        description = quantizer.describe_by(latents, quantizer.encode(latents))
        quantizer.learn(description, step, 0.0, finite, generator_for(0))
        expected = deviation + (before - deviation) * 0.95**step
        assert float(quantizer.scale) == pytest.approx(expected, rel=1e-4)


def test_latents_have_unit_variance_after_the_start(case: "Case") -> None:
    quantizer = case.started()
    assert float(quantizer.normalize(case.encoded(300, 0)).std()) == pytest.approx(1, rel=1e-4)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_batch_that_is_not_finite_changes_nothing(case: "Case", bad: float) -> None:
    quantizer = case.started()
    case.train(quantizer, range(10))
    before = state_of(quantizer)
    for seed in range(4):
        latents = case.latents(quantizer, 16, 100 + seed)
        latents[:seed, seed] = bad  # one number of some rows
        latents[15] = bad  # a whole row
        codes = quantizer.encode(latents) % torch.tensor(quantizer.sizes)
        description = quantizer.describe_by(latents, codes)
        no = torch.tensor(False)
        quantizer.learn(description, 10 + seed, 0.5, no, generator_for(seed))
    after = state_of(quantizer)
    # Averages fade by what comes later weighing more, and so do skipped steps.
    for name in ("learned.weight", "shared.weight", "shared.updates"):
        assert (name in before) == (name in after)
        before.pop(name, None), after.pop(name, None)
    assert_same(after, before)


def test_parts_of_a_batch_teach_what_the_whole_of_it_does(case: "Case") -> None:
    whole, parted = case.started(), case.started()
    if whole.whole_batches:
        pytest.skip("takes each batch in one piece")
    for step in range(20):
        latents, finite = case.latents(whole, B, step), torch.tensor(True)
        description = whole.describe(latents, 0.5, generator_for(2))
        codes = [
            parted.describe(part, 0.5, generator_for(2)).codes
            for part in latents.split([17, 1, 46])
        ]
        again = parted.describe_by(latents, torch.cat(codes))
        whole.learn(description, step, 0.5, finite, generator_for(3, step))
        parted.learn(again, step, 0.5, finite, generator_for(3, step))
    assert_same(state_of(parted), state_of(whole))


def test_state_round_trip_continues_alike_to_the_bit(case: "Case") -> None:
    straight, cut, resumed = case.started(), case.started(), case.untrained()
    case.train(straight, range(60))  # past revivals, and a rotation of the shared basis
    case.train(cut, range(44))
    resumed.load_state_dict(cut.state_dict())
    resumed.load_training_state({key: t.clone() for key, t in cut.training_state().items()})
    case.train(resumed, range(44, 60))
    assert_same(state_of(resumed), state_of(straight))


def test_weights_alone_choose_and_decode_alike(case: "Case") -> None:
    trained, loaded = case.started(), case.untrained()
    case.train(trained, range(10))
    loaded.load_state_dict(trained.state_dict())
    latents = case.latents(trained, B, 1)
    codes = trained.encode(latents)
    assert torch.equal(loaded.eval().encode(latents), codes)
    for k in trained.cuts:
        assert torch.equal(loaded.decode(codes[:, :k]), trained.decode(codes[:, :k]))


def test_usage_counts_every_choice_of_the_last_full_window(case: "Case") -> None:
    quantizer, finite = case.started(), torch.tensor(True)
    N, sizes = quantizer.num_codes, torch.tensor(quantizer.sizes)
    every = quantizer.config.revive_every

    def learn(step: int, codes: Tensor) -> None:
        description = quantizer.describe_by(case.latents(quantizer, 4, 1), codes)
        quantizer.learn(description, step, 0.5, finite, generator_for(0))

    learn(0, torch.arange(4).unsqueeze(1) % sizes)
    first = quantizer.usage()
    shares = [torch.bincount(torch.arange(4) % size, minlength=size) / 4 for size in sizes.tolist()]
    entropies = [-float(torch.special.xlogy(share, share).sum()) / math.log(2) for share in shares]
    dead = sum(int((share == 0).sum()) for share in shares)
    assert first == (pytest.approx(sum(entropies) / N, rel=1e-5), dead)
    learn(every - 1, torch.arange(4).unsqueeze(1) % sizes)  # ends the window
    assert quantizer.usage() == (pytest.approx(first[0]), dead)
    learn(every, torch.zeros(4, N, dtype=torch.int64))  # a new one, not yet full
    assert quantizer.usage() == (pytest.approx(first[0]), dead)
    learn(2 * every - 1, torch.zeros(4, N, dtype=torch.int64))
    assert quantizer.usage() == (pytest.approx(0), int((sizes - 1).sum()))
