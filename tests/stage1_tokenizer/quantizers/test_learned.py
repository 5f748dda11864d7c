"""Early positions' codebooks: moving averages, shared norms, revival, the start from data."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from pqvae.randomness import generator_for
from stage1_tokenizer.quantizers.codebook import Codebook, Seen
from stage1_tokenizer.quantizers.learned import RESCALE_ABOVE, LearnedCodebooks

MIXED, DIM = (8, 3, 16, 2, 5), 6
See = Callable[[Codebook, Tensor], Seen]


def latents_of(n: int, seed: int = 1) -> Tensor:
    return torch.randn(n, DIM, generator=generator_for(seed))


def started(sizes: tuple[int, ...] = MIXED) -> LearnedCodebooks:
    codebooks = LearnedCodebooks(sizes, DIM)
    codebooks.start(latents_of(300, 0), generator_for(0))
    return codebooks


def entries_of(codebooks: LearnedCodebooks) -> list[Tensor]:
    """The K_i entries of every position, float64."""
    return [codebooks.meaning(index).double() for index in range(len(codebooks.sizes))]


def nothing(seen: Seen) -> Seen:
    """What is learned from instead of a batch that is not finite."""
    return Seen(seen.codes, *(torch.zeros_like(t) for t in (seen.entered, seen.left, seen.falls)))


def state_of(codebooks: LearnedCodebooks) -> dict[str, Tensor]:
    state = {**codebooks.state_dict(), **codebooks.training_state()}
    return {name: value.clone() for name, value in state.items()}


def assert_same_state(found: LearnedCodebooks, expected: LearnedCodebooks) -> None:
    """To the bit."""
    state = state_of(found)
    for name, value in state_of(expected).items():
        assert torch.equal(state[name], value), name


def make_weight(codebooks: LearnedCodebooks, weight: float) -> None:
    """Let what arrives next weigh this much: what many steps would do."""
    state = codebooks.training_state() | {"weight": torch.tensor(weight, dtype=torch.float64)}
    codebooks.load_training_state({name: value.clone() for name, value in state.items()})


def test_entries_follow_plain_moving_averages(see: See) -> None:
    codebooks = started()
    state = codebooks.training_state()
    sums, counts, gains = (t.double() for t in (codebooks.vectors, state["counts"], state["gains"]))
    entries, rescaled, weight = entries_of(codebooks), 0, 1.0
    for step in range(60):
        decay = 0.5 + 0.2 * step / 60  # small ones, so that the newest weight passes its limit
        seen = see(codebooks, latents_of(20, seed=100 + step) * 1.3)
        finite = (None, torch.tensor(True), torch.tensor(False))[step % 3]
        skipped = step % 3 == 2
        codebooks.learn(nothing(seen) if skipped else seen, decay, finite)
        before, weight = weight, float(codebooks.training_state()["weight"])
        rescaled += weight < before

        sums, counts = sums * decay, counts * decay
        if skipped:  # the past fades, and nothing comes
            continue
        for index, size in enumerate(MIXED):
            inputs, chosen = seen.left[index].double(), seen.codes[:, index]
            if index > 0:
                directions = entries[index][chosen] / gains[index]
                projection = (inputs * directions).sum(1).mean()
                gains[index] = decay * gains[index] + (1 - decay) * projection
            for row, entry in enumerate(chosen.tolist()):
                sums[index, entry] += inputs[row]
                counts[index, entry] += 1
            if index == 0:
                entries[0] = sums[0, :size] / counts[0, :size, None]
            else:
                norms = sums[index, :size].norm(dim=1, keepdim=True)
                entries[index] = sums[index, :size] / norms * gains[index]

    assert rescaled >= 2
    # Float32 sums of a few hundred terms against float64 ones.
    state = codebooks.training_state()
    used = torch.arange(max(MIXED)) < torch.tensor(MIXED)[:, None]
    found, expected = state["counts"].double() / weight, counts
    torch.testing.assert_close(found[used], expected[used], rtol=1e-4, atol=0)
    torch.testing.assert_close(state["gains"].double(), gains, rtol=1e-4, atol=0)
    for mine, plain in zip(entries_of(codebooks), entries, strict=True):
        torch.testing.assert_close(mine, plain, rtol=1e-3, atol=1e-4)


def test_finite_batch_does_the_same_whether_that_is_said_or_not(see: See) -> None:
    silent, told = started(), started()
    for step in range(10):
        for codebooks, finite in ((silent, None), (told, torch.tensor(True))):
            codebooks.learn(see(codebooks, latents_of(16, seed=step)), 0.8, finite)
        assert_same_state(told, silent)


def test_after_a_skipped_step_only_the_past_weighs_less(see: See) -> None:
    codebooks, twin = started(), started()
    seen = see(codebooks, latents_of(16))
    codebooks.learn(nothing(seen), 0.9, torch.tensor(False))
    make_weight(twin, 1 / 0.9)
    for step in range(10):
        assert_same_state(codebooks, twin)
        for each in (codebooks, twin):
            each.learn(see(each, latents_of(16, seed=step)), 0.8, None)


def test_rescaling_in_a_skipped_step_keeps_the_entries(see: See) -> None:
    codebooks = started()
    before = entries_of(codebooks)
    make_weight(codebooks, RESCALE_ABOVE)
    codebooks.learn(nothing(see(codebooks, latents_of(4))), 0.5, torch.tensor(False))
    assert codebooks.training_state()["weight"] == 1
    for found, expected in zip(entries_of(codebooks), before, strict=True):
        # Rounding of one division and one product.
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=0)


def test_padding_is_zero_and_never_chosen_after_many_rescalings(see: See) -> None:
    codebooks = started()
    for step in range(15):  # 1e-6 each: float32 has no smaller numbers after seven
        make_weight(codebooks, RESCALE_ABOVE)
        seen = see(codebooks, latents_of(64, seed=step))
        codebooks.learn(seen, 0.9, None)
        assert codebooks.training_state()["weight"] == 1
        codebooks.revive(seen, torch.ones(5, 16), 0.1, generator_for(1, step))
    for index, size in enumerate(MIXED):
        assert not codebooks.vectors[index, size:].any()
    seen = see(codebooks, torch.cat([latents_of(64), torch.zeros(1, DIM)]))
    assert (seen.codes < torch.tensor(MIXED)).all()
    assert seen.left.isfinite().all()


def test_entries_of_a_later_position_share_one_norm(see: See) -> None:
    codebooks = started()
    for step in range(30):
        seen = see(codebooks, latents_of(16, seed=step))
        codebooks.learn(seen, 0.9, None)
        uses = torch.rand(5, 16, generator=generator_for(2, step))
        codebooks.revive(seen, uses, 0.5, generator_for(1, step))
    gains = codebooks.training_state()["gains"].double()
    first, *later = (entries.norm(dim=1) for entries in entries_of(codebooks))
    for norms, gain in zip(later, gains[1:], strict=True):
        torch.testing.assert_close(norms, gain.expand(len(norms)), rtol=1e-5, atol=0)
    assert first.max() > 1.1 * first.min()


def test_revival_replaces_exactly_the_rare_entries_by_splits_of_chosen_ones(see: See) -> None:
    codebooks = started((8, 6, 16))
    uses = torch.zeros(3, 16)
    uses[0, :8] = torch.tensor([10, 10, 4.9, 10, 0, 10, 20, 15.1])  # mean 10
    uses[1, :6] = torch.tensor([1, 1, 1, 1, 1, 1.0])  # mean 1: none is rare
    uses[2, :16] = torch.tensor([4.0] * 8 + [1.0] * 4 + [3.0] * 4)  # mean 3
    rare = [{2, 4}, set(), set(range(8, 12))]
    seen = see(codebooks, latents_of(32))
    before, counts = entries_of(codebooks), codebooks.training_state()["counts"].clone()
    chosen = [before[index][seen.codes[:, index]] for index in range(3)]
    codebooks.revive(seen, uses, 0.5, generator_for(5))
    gains, after = codebooks.training_state()["gains"], codebooks.training_state()["counts"]

    for index, entries in enumerate(entries_of(codebooks)):
        size = len(entries)
        changed = (entries != before[index]).any(1).nonzero().squeeze(1)
        assert set(changed.tolist()) == rare[index]
        splits = 0.8 * chosen[index] + 0.2 * seen.left[index].double()
        if index > 0:
            splits *= gains[index] / splits.norm(dim=1, keepdim=True)
        for row in rare[index]:
            assert (entries[row] - splits).abs().amax(1).min() < 1e-5
            # A revived entry starts with the mean count: it moves no faster than the others.
            assert float(after[index, row]) == pytest.approx(float(counts[index, :size].mean()))
        kept = [row for row in range(size) if row not in rare[index]]
        assert torch.equal(after[index, kept], counts[index, kept])


def test_revived_entry_takes_over_a_part_of_a_popular_one(see: See) -> None:
    # Four clusters at the start, one for each entry, of which two then are no more.
    generator, centres = generator_for(7), 6 * torch.eye(4, 64)
    four = centres[torch.arange(400) % 4] + torch.randn(400, 64, generator=generator)
    two = centres[torch.arange(400) % 2] + torch.randn(400, 64, generator=generator)
    codebooks = LearnedCodebooks((4,), 64)
    for seed in range(20):  # until no two entries have met in one cluster
        codebooks.start(four, generator_for(8, seed))
        if see(codebooks, four).codes[:4].unique().numel() == 4:
            break
    seen = see(codebooks, two)
    codebooks.learn(seen, 0.99, None)
    uses = torch.bincount(seen.codes[:, 0], minlength=4)
    assert (uses > 0).sum() == 2
    codebooks.revive(seen, uses.float().unsqueeze(0), 0.1, generator_for(9))
    assert torch.bincount(see(codebooks, two).codes[:, 0], minlength=4).min() >= 10


@pytest.mark.parametrize("seed", range(3))
def test_start_from_data_leaves_less_residual_than_entries_drawn_from_it(
    see: See, seed: int
) -> None:
    # Correlated data, as latents are: there is something to find.
    mixing = torch.randn(DIM, DIM, generator=generator_for(9, seed))
    latents = latents_of(2000, seed=seed) @ mixing
    codebooks = LearnedCodebooks(MIXED, DIM)
    left = codebooks.start(latents, generator_for(seed))
    seen = see(codebooks, latents)
    torch.testing.assert_close(seen.left[-1], left, rtol=0, atol=1e-4)
    assert (seen.falls > 0).all()  # every position takes something away
    for index, size in enumerate(MIXED):
        assert seen.codes[:, index].unique().numel() == size

    residual = latents  # of an entry in another place, at every position
    for index, size in enumerate(MIXED):
        drawn = torch.randint(2000, (size,), generator=generator_for(seed, index))
        entries = residual[drawn]
        residual = residual - entries[torch.cdist(residual, entries).argmin(1)]
    assert left.square().mean() < 0.8 * residual.square().mean()


@pytest.mark.parametrize("seed", range(3))
def test_start_from_repeated_data_still_uses_every_entry(see: See, seed: int) -> None:
    # 48 different latents, 20 times each: two of 32 entries start at the same one for certain
    # (but for a chance of 1e-7), and one of the two is then never chosen.
    latents = latents_of(48, seed=seed).repeat(20, 1)
    codebooks = LearnedCodebooks((32,), DIM)
    codebooks.start(latents, generator_for(seed))
    assert see(codebooks, latents).codes.unique().numel() == 32
