"""The progressive quantizer against slow references: choice, sums, learning, revival."""

import copy
import math
from typing import Any

import pytest
import torch
from torch import Tensor

from pqvae.randomness import generator_for
from stage1_tokenizer.config import QuantizerConfig
from stage1_tokenizer.quantizers.codebooks import LATE_GAINS, CodebookLearner
from stage1_tokenizer.quantizers.residual import ProgressiveQuantizer, code_entropy_bits

MIXED = (8, 3, 16, 2, 5)
DIM = 6


# Of MIXED, the last three positions share a codebook of 16 entries.
SHARING = {"learned_codes": 2, "rank": 5, "subspace": 3}


def learner_of(sizes: tuple[int, ...], seed: int = 0, **config: Any) -> CodebookLearner:
    """Random entries: of any norm at the first position, of one norm at each later one."""
    config = {"learned_codes": len(sizes), **config}
    settings = QuantizerConfig(num_codes=len(sizes), codebook_sizes=sizes, **config)
    learner = CodebookLearner(ProgressiveQuantizer(settings, DIM))
    generator = generator_for(seed)
    learner.gains[1:] = 1.5 / torch.arange(2, len(sizes) + 1)
    for position, size in enumerate(sizes[: settings.num_learned]):
        values = torch.randn(size, DIM, generator=generator)
        learner._set_rows(position, torch.arange(size), values, torch.ones(size))
    if settings.num_learned < len(sizes):
        basis = torch.randn(learner.quantizer.basis.shape, generator=generator)
        learner.quantizer.basis.copy_(torch.linalg.qr(basis).Q)
        latents = torch.randn(50, DIM, generator=generator)
        learner.covariance.copy_(latents.T @ latents / 50)
        learner._turn(iterations=0)
        learner.shared.copy_(torch.randn(learner.shared.shape, generator=generator))
        learner._scale_entries()
    return learner


def quantizer_of(sizes: tuple[int, ...], seed: int = 0, **config: Any) -> ProgressiveQuantizer:
    return learner_of(sizes, seed, **config).quantizer


def latents_of(n: int, seed: int = 1) -> Tensor:
    return torch.randn(n, DIM, generator=generator_for(seed))


def entries_of(quantizer: ProgressiveQuantizer, position: int) -> Tensor:
    """The K_i entries of a position, float64."""
    return quantizer.entries(position).double()


def state_of(learner: CodebookLearner) -> dict[str, Tensor]:
    """All that a step may change, but for the weight of what arrives next."""
    state = {**learner.quantizer.state_dict(), **learner.state_dict()}
    del state["weight"]
    return {name: value.clone() for name, value in state.items()}


def assert_same_state(found: CodebookLearner, expected: dict[str, Tensor]) -> None:
    """To the bit."""
    state = state_of(found)
    assert state.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.equal(state[name], value), name


@pytest.mark.parametrize("sizes", [(16, 16, 16), MIXED])
def test_chosen_entry_is_the_nearest_of_its_codebook(sizes: tuple[int, ...]) -> None:
    quantizer = quantizer_of(sizes)
    latents = latents_of(200)
    codes, residuals = quantizer.quantize(latents)
    for row in range(len(latents)):
        for position in range(len(sizes)):
            residual = residuals.early[position, row].double()
            distances = [
                float(((residual - entry) ** 2).sum()) for entry in entries_of(quantizer, position)
            ]
            chosen = int(codes[row, position])
            assert chosen < sizes[position]
            # Float32 may take either of two entries that are equally far but for rounding.
            assert distances[chosen] <= min(distances) + 1e-5


def test_padding_is_never_chosen_even_for_a_residual_of_zero() -> None:
    # Padding rows are zero vectors: by distance alone they would be the nearest to zero.
    codes, _ = quantizer_of(MIXED).quantize(torch.zeros(4, DIM))
    assert (codes < torch.tensor(MIXED)).all()


def test_prefix_sum_and_remaining_residual_make_the_latent() -> None:
    quantizer = quantizer_of(MIXED)
    latents = latents_of(50)
    codes, residuals = quantizer.quantize(latents)
    assert torch.equal(residuals.early[0], latents)
    for k in range(1, len(MIXED) + 1):
        f_k = sum(entries_of(quantizer, i)[codes[:, i]] for i in range(k))
        assert torch.allclose(f_k + residuals.early[k].double(), latents.double(), atol=1e-5)
        assert torch.allclose(
            quantizer.dequantize(codes[:, :k]), latents - residuals.early[k], atol=1e-5
        )


def test_entries_are_the_codebook_that_codes_stand_for() -> None:
    quantizer = quantizer_of(MIXED)
    for position, size in enumerate(MIXED):
        entries = quantizer.entries(position)
        assert entries.shape == (size, DIM)
        padding = quantizer.vectors[position, size:]
        assert not padding.any()
        factors = quantizer.factors[position, :size].unsqueeze(1)
        assert torch.equal(entries, quantizer.vectors[position, :size] * factors)
    first = torch.zeros(MIXED[0], 1, dtype=torch.int64)
    first[:, 0] = torch.arange(MIXED[0])
    assert torch.equal(quantizer.dequantize(first), quantizer.entries(0))


def test_residuals_are_recomputed_to_the_bit() -> None:
    learner = learner_of(MIXED)
    learner.initialize(latents_of(300), generator_for(0))  # factors of all sizes
    quantizer, latents = learner.quantizer, latents_of(50)
    codes, residuals = quantizer.quantize(latents)
    assert torch.equal(quantizer.residuals(latents, codes).early, residuals.early)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(quantizer.residuals(latents, codes).early, residuals.early)


@pytest.mark.parametrize("sizes", [[50], [25, 25], [1, 30, 19], [17, 16, 16, 1]])
def test_residuals_of_parts_are_recomputed_for_their_batch_to_the_bit(sizes: list[int]) -> None:
    quantizer, latents = quantizer_of(MIXED), latents_of(50)
    parts = [quantizer.quantize(part) for part in latents.split(sizes)]
    codes = torch.cat([codes for codes, _ in parts])
    expected = torch.cat([residuals.early for _, residuals in parts], dim=1)
    assert torch.equal(quantizer.residuals(latents, codes).early, expected)


def test_equal_prefixes_sum_alike_to_the_bit_whatever_follows() -> None:
    quantizer = quantizer_of(MIXED)
    codes, _ = quantizer.quantize(latents_of(50))
    others, _ = quantizer.quantize(latents_of(50, seed=2))
    for k in range(1, len(MIXED) + 1):
        mixed = torch.cat([codes[:, :k], others[:, k:]], dim=1)
        assert torch.equal(
            quantizer.dequantize(mixed[:, :k]), quantizer.dequantize(codes[:, :k].clone())
        )


def test_codes_of_a_row_depend_on_that_row_alone() -> None:
    quantizer = quantizer_of(MIXED)
    latents = latents_of(64)
    codes, _ = quantizer.quantize(latents)
    order = torch.randperm(64, generator=generator_for(3))
    assert torch.equal(quantizer.quantize(latents[order])[0], codes[order])
    alone = torch.cat([quantizer.quantize(row[None])[0] for row in latents])
    assert torch.equal(alone, codes)


def beam_reference(quantizer: ProgressiveQuantizer, latent: Tensor, beam: int) -> list[int]:
    """Beam search over lists, one latent in float64; the greedy beginning always stays."""
    beginnings: list[tuple[list[int], Tensor]] = [([], latent.double())]
    for position in range(quantizer.config.num_codes):
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


@pytest.mark.parametrize("beam", [1, 2, 5, 64])
@pytest.mark.parametrize("config", [{}, SHARING])
def test_beam_search_finds_what_a_plain_one_finds(beam: int, config: dict[str, int]) -> None:
    quantizer, latents = quantizer_of(MIXED, **config), latents_of(40)
    expected = [beam_reference(quantizer, latent, beam) for latent in latents]
    assert quantizer.search(latents, beam).tolist() == expected


@pytest.mark.parametrize("beam", [1, 2, 3, 8, 33])
def test_beam_search_never_leaves_more_than_greedy_choice(beam: int) -> None:
    quantizer, latents = quantizer_of((16,) * 12, seed=3), latents_of(300)
    greedy = quantizer.quantize(latents)[1].energies()[-1]
    codes = quantizer.search(latents, beam)
    left = (latents - quantizer.dequantize(codes)).square().sum(1)
    assert (left <= greedy * (1 + 1e-5)).all()
    assert (left < 0.999 * greedy).any() == (beam > 1)


def test_beam_as_wide_as_the_tree_finds_the_nearest_sum_of_all() -> None:
    sizes = (4, 3, 5)
    quantizer, latents = quantizer_of(sizes), latents_of(30)
    every = torch.cartesian_prod(*[torch.arange(size) for size in sizes])
    distances = torch.cdist(latents.double(), quantizer.dequantize(every).double())
    assert torch.equal(quantizer.search(latents, 60), every[distances.argmin(1)])


def test_codes_that_share_a_codebook_are_nearest_and_leave_what_is_said() -> None:
    quantizer, latents = quantizer_of(MIXED, **SHARING), latents_of(60)
    codes, residuals = quantizer.quantize(latents)
    assert residuals.early.shape == (3, 60, DIM)
    assert residuals.late.shape == (4, 60, 5)
    residual = latents.double()
    for position in range(len(MIXED)):
        entries = entries_of(quantizer, position)
        distances = torch.cdist(residual, entries)
        chosen = distances.gather(1, codes[:, position, None]).squeeze(1)
        assert torch.allclose(chosen, distances.min(1).values, atol=1e-5)
        residual = residual - entries[codes[:, position]]
        lengths = torch.full((60,), position + 1)
        found = residuals.after(lengths).double()
        assert torch.allclose(found, residual, atol=1e-5)
        energies = residuals.energies()[position + 1].double()
        assert torch.allclose(energies, residual.square().sum(1), rtol=1e-4, atol=1e-5)
        prefix = quantizer.dequantize(codes[:, : position + 1])
        assert torch.allclose(latents - prefix, residual.float(), atol=1e-5)
    lengths = torch.arange(60) % 6
    rows = [residuals.after(torch.full((60,), k))[row] for row, k in enumerate(lengths.tolist())]
    assert torch.allclose(residuals.after(lengths), torch.stack(rows), atol=1e-6)


def test_entries_of_late_positions_lie_along_their_own_principal_directions() -> None:
    quantizer = quantizer_of((16,) * 4, learned_codes=1, rank=5, subspace=2)
    for late, position in enumerate(range(1, 4)):
        columns = quantizer.basis[:, quantizer.supports[late]].double()
        along = entries_of(quantizer, position) @ columns
        assert torch.allclose(along @ columns.T, entries_of(quantizer, position), atol=1e-6)
        whitened = along / quantizer.spreads[late]
        assert torch.allclose(whitened, quantizer.shared.double(), atol=1e-5)


def test_every_late_position_takes_the_directions_where_most_is_left() -> None:
    config = QuantizerConfig(
        num_codes=5, codebook_sizes=(4, 4, 4, 16, 4), learned_codes=1, rank=4, subspace=2
    )
    learner = CodebookLearner(ProgressiveQuantizer(config, DIM))
    quantizer = learner.quantizer
    learner.covariance.copy_(torch.diag(torch.tensor([1, 9, 5, 3, 0, 0.1])))
    learner.reductions.copy_(torch.tensor([0.5, 0.25, 0.5, 0.5]))
    quantizer.basis.copy_(torch.eye(DIM, 4))
    learner._turn(iterations=0)
    # 1, 9, 5, 3 -> 1, 4.5, 2.5, 3 -> 1, 1.125, 2.5, 0.75 -> 1, 0.5625, 1.25, 0.75
    assert quantizer.supports.tolist() == [[1, 2], [1, 3], [2, 1], [2, 0]]
    expected = torch.tensor([[9, 5], [4.5, 3], [2.5, 1.125], [1.25, 1]])
    assert torch.allclose(learner.deviations.square(), expected)


def test_before_anything_is_known_a_late_code_is_worth_all_its_bits() -> None:
    config = QuantizerConfig(
        num_codes=4, codebook_sizes=(8, 8, 16, 4), learned_codes=1, rank=4, subspace=2
    )
    reductions = CodebookLearner(ProgressiveQuantizer(config, DIM)).reductions
    assert reductions.tolist() == pytest.approx([1 / 8, 1 / 16, 1 / 4])  # 2^(-2 bits / 2)


def test_late_positions_learn_the_covariance_and_do_nearly_as_well_on_new_latents() -> None:
    dim, rank = 160, 80  # enough that a code says little of each dimension
    deviations = 1 / (1 + torch.arange(dim) / 40) ** 2
    rotation = torch.linalg.qr(torch.randn(dim, dim, generator=generator_for(0))).Q

    def batch(seed: int) -> Tensor:
        return torch.randn(256, dim, generator=generator_for(1, seed)) * deviations @ rotation.T

    def trained(learned_codes: int) -> CodebookLearner:
        config = QuantizerConfig(
            num_codes=16,
            codebook_sizes=(32,),
            learned_codes=learned_codes,
            rank=rank,
        )
        learner = CodebookLearner(ProgressiveQuantizer(config, dim))
        learner.initialize(batch(0), generator_for(2))
        for step in range(1, 201):
            latents = learner.quantizer.normalize(batch(step))
            learner.update(*learner.quantizer.quantize(latents), 0.95)
        return learner

    def left_of_new(quantizer: ProgressiveQuantizer) -> Tensor:
        new = torch.cat([batch(seed) for seed in range(1000, 1004)])
        return quantizer.quantize(quantizer.normalize(new))[1].energies().mean(1)

    learner = trained(learned_codes=2)
    quantizer = learner.quantizer
    assert torch.allclose(quantizer.basis.T @ quantizer.basis, torch.eye(rank), atol=1e-5)
    inside = (quantizer.basis.T @ rotation[:, :12]).square().sum() / 12
    assert inside > 0.99  # it spans the principal directions
    found, all_learned = left_of_new(quantizer), left_of_new(trained(learned_codes=16).quantizer)
    assert (found.diff() < 0).all()
    assert found[-1] < 1.1 * all_learned[-1]


@pytest.mark.parametrize("k", [0, len(MIXED) + 1])
def test_prefix_lengths_out_of_range_are_refused(k: int) -> None:
    with pytest.raises(ValueError, match=f"1 to {len(MIXED)} codes, but got {k}"):
        quantizer_of(MIXED).dequantize(torch.zeros(2, k, dtype=torch.int64))


@pytest.mark.parametrize("position", range(len(MIXED)))
def test_codes_outside_their_own_codebook_are_refused(position: int) -> None:
    quantizer = quantizer_of(MIXED)
    codes = torch.zeros(2, len(MIXED), dtype=torch.int64)
    codes[1, position] = MIXED[position] - 1
    quantizer.dequantize(codes)
    for bad in (-1, MIXED[position]):
        codes[1, position] = bad
        with pytest.raises(ValueError, match="codes must lie in"):
            quantizer.dequantize(codes)


def test_entries_follow_plain_moving_averages() -> None:
    learner = learner_of(MIXED)
    quantizer = learner.quantizer
    quantizer.scale.fill_(3.0)
    # As left by `initialize`: every entry is the mean of what has been counted for it.
    for position, size in enumerate(MIXED):
        values = entries_of(quantizer, position).float()
        learner._set_rows(position, torch.arange(size), values, torch.full((size,), 2.0))
    sums, counts = quantizer.vectors.double(), learner.counts.double()
    entries = [entries_of(quantizer, position) for position in range(len(MIXED))]
    gains, scale = learner.gains.double(), float(quantizer.scale)

    rescaled = 0
    for step in range(60):
        decay = 0.5 + 0.2 * step / 60  # small ones, so that the newest weight passes its limit
        codes, residuals = quantizer.quantize(latents_of(20, seed=100 + step) * 1.3)
        weight_before = learner.weight
        finite = (None, torch.tensor(True), torch.tensor(False))[step % 3]
        learner.update(codes, residuals, decay, finite)
        rescaled += learner.weight < weight_before

        if finite is not None and not finite:  # the past fades, and nothing comes
            sums *= decay
            counts *= decay
            continue
        scale = 0.95 * scale + 0.05 * float(residuals.early[0].double().std()) * scale
        for position in range(len(MIXED)):
            inputs, chosen = residuals.early[position].double(), codes[:, position]
            if position > 0:
                directions = entries[position][chosen] / gains[position]
                projection = (inputs * directions).sum(1).mean()
                gains[position] = decay * gains[position] + (1 - decay) * projection
            sums[position] *= decay
            counts[position] *= decay
            for row, entry in enumerate(chosen.tolist()):
                sums[position, entry] += inputs[row]
                counts[position, entry] += 1
            size = MIXED[position]
            if position == 0:
                entries[0] = sums[0, :size] / counts[0, :size, None]
            else:
                norms = sums[position, :size].norm(dim=1, keepdim=True)
                entries[position] = sums[position, :size] / norms * gains[position]

    assert rescaled >= 2
    # Float32 sums of a few hundred terms against float64 ones.
    assert torch.allclose(quantizer.vectors.double() / learner.weight, sums, rtol=1e-3, atol=1e-4)
    assert torch.allclose(learner.counts.double() / learner.weight, counts, rtol=1e-4)
    assert torch.allclose(learner.gains.double(), gains, rtol=1e-4)
    assert float(quantizer.scale) == pytest.approx(scale, rel=1e-5)
    for position in range(len(MIXED)):
        assert torch.allclose(
            entries_of(quantizer, position), entries[position], rtol=1e-3, atol=1e-4
        )


def test_late_positions_follow_plain_moving_averages() -> None:
    learner = learner_of(MIXED, **SHARING)
    quantizer = learner.quantizer
    learner.counts.fill_(1.0)
    learner.shared *= 3  # sums over the three positions
    learner._scale_entries()
    sums, counts = learner.shared.double(), torch.full((16,), 3.0).double()
    gains, reductions = learner.gains[2:].double(), learner.reductions.double()
    rescaled = 0
    for step in range(49):  # the directions stay the same until the 50th
        decay = 0.5 + 0.2 * step / 49
        codes, residuals = quantizer.quantize(latents_of(20, seed=100 + step))
        entries = [entries_of(quantizer, position) for position in range(len(MIXED))]
        weight_before = learner.weight
        finite = (None, torch.tensor(True), torch.tensor(False))[step % 3]
        learner.update(codes, residuals, decay, finite)
        rescaled += learner.weight < weight_before

        sums *= decay
        counts *= decay
        if finite is not None and not finite:
            continue
        for late, position in enumerate(range(2, 5)):
            left = residuals.after(torch.full((20,), position)).double()
            chosen = entries[position][codes[:, position]]
            unscaled = chosen / gains[late]
            gain = (left * unscaled).sum() / unscaled.square().sum()
            columns = quantizer.basis[:, quantizer.supports[late]].double()
            before, after = left @ columns, (left - chosen) @ columns
            reduction = after.square().sum() / before.square().sum()
            reductions[late] = decay * reductions[late] + (1 - decay) * reduction.clamp(0, 1)
            gains[late] = (decay * gains[late] + (1 - decay) * gain).clamp(*LATE_GAINS)
            for row, code in enumerate(codes[:, position].tolist()):
                sums[code] += before[row] / learner.deviations[late]
                counts[code] += 1
    assert rescaled >= 1
    assert torch.allclose(learner.gains[2:].double(), gains, rtol=1e-3)
    assert torch.allclose(learner.reductions.double(), reductions, rtol=1e-3)
    assert torch.allclose(quantizer.shared.double(), sums / counts[:, None], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_batch_that_is_not_finite_changes_nothing(bad: float) -> None:
    learner = learner_of(MIXED)
    quantizer = learner.quantizer
    learner.initialize(latents_of(300), generator_for(0))
    for step in range(30):  # long enough that the averages have been rescaled
        codes, residuals = quantizer.quantize(latents_of(16, seed=step))
        learner.update(codes, residuals, 0.5)
    before = state_of(learner)
    for seed in range(8):
        latents = latents_of(16, seed=100 + seed)
        latents[:seed, seed % DIM] = bad  # one number of some rows
        latents[15] = bad  # a whole row
        codes, residuals = quantizer.quantize(latents)
        assert not residuals.early.isfinite().all()
        weight = learner.weight
        learner.update(codes, residuals, 0.9, torch.tensor(False))
        assert learner.weight == weight / 0.9
        assert_same_state(learner, before)


def test_rescaling_in_a_step_that_is_not_finite_keeps_the_entries() -> None:
    learner = learner_of(MIXED)
    learner.initialize(latents_of(300), generator_for(0))
    entries = [entries_of(learner.quantizer, position) for position in range(len(MIXED))]
    codes, residuals = learner.quantizer.quantize(torch.full((4, DIM), torch.nan))
    learner.weight = learner.RESCALE_ABOVE
    learner.update(codes, residuals, 0.5, torch.tensor(False))
    assert learner.weight == 1
    for position, expected in enumerate(entries):  # rounding of one division and one product
        assert torch.allclose(entries_of(learner.quantizer, position), expected, rtol=1e-6)


def test_padding_is_never_chosen_after_many_rescalings() -> None:
    learner = learner_of(MIXED)
    quantizer = learner.quantizer
    learner.initialize(latents_of(300), generator_for(0))
    for step in range(15):  # 1e-6 each: float32 has no smaller numbers after seven
        codes, residuals = quantizer.quantize(latents_of(64, seed=step))
        learner.weight = learner.RESCALE_ABOVE
        learner.update(codes, residuals, 0.9)
        assert learner.weight == 1
        learner.revive(codes, residuals, generator_for(1, step))
    codes, residuals = quantizer.quantize(torch.cat([latents_of(64), torch.zeros(1, DIM)]))
    assert (codes < torch.tensor(MIXED)).all()
    assert residuals.early.isfinite().all()


def test_after_a_step_that_was_left_out_only_the_past_weighs_less() -> None:
    learner = learner_of(MIXED)
    learner.initialize(latents_of(300), generator_for(0))
    twin = copy.deepcopy(learner)
    codes, residuals = learner.quantizer.quantize(latents_of(16) * torch.inf)
    learner.update(codes, residuals, 0.9, torch.tensor(False))
    twin.weight /= 0.9
    for step in range(10):
        for each in (learner, twin):
            codes, residuals = each.quantizer.quantize(latents_of(16, seed=step))
            each.update(codes, residuals, 0.8)
        assert learner.weight == twin.weight
        assert_same_state(learner, state_of(twin))


def test_finite_batch_does_the_same_whether_that_is_said_or_not() -> None:
    silent = learner_of(MIXED)
    silent.initialize(latents_of(300), generator_for(0))
    told = copy.deepcopy(silent)
    for step in range(10):
        for learner, finite in ((silent, None), (told, torch.tensor(True))):
            codes, residuals = learner.quantizer.quantize(latents_of(16, seed=step))
            learner.update(codes, residuals, 0.8, finite)
        assert_same_state(told, state_of(silent))


def test_search_stays_in_float32_under_autocast() -> None:
    quantizer, latents = quantizer_of((256,) * 4), latents_of(64)
    codes, residuals = quantizer.quantize(latents)
    with torch.autocast("cpu", torch.bfloat16):
        cast_codes, cast_residuals = quantizer.quantize(latents)
    assert torch.equal(cast_codes, codes)
    assert torch.equal(cast_residuals.early, residuals.early)


def test_entries_of_a_later_position_share_one_norm() -> None:
    learner = learner_of(MIXED)
    quantizer = learner.quantizer
    learner.initialize(latents_of(300), generator_for(0))
    for step in range(30):
        codes, residuals = quantizer.quantize(latents_of(16, seed=step))
        learner.update(codes, residuals, 0.9)
        learner.revive(codes, residuals, generator_for(1, step))
    for position in range(1, len(MIXED)):
        norms = entries_of(quantizer, position).norm(dim=1)
        assert torch.allclose(norms, learner.gains[position].double(), rtol=1e-5)
    first = entries_of(quantizer, 0).norm(dim=1)
    assert first.max() > 1.1 * first.min()


def test_revival_replaces_exactly_the_rare_entries_by_splits_of_chosen_ones() -> None:
    learner = learner_of((8, 6, 16), revive_below=0.5)
    quantizer = learner.quantizer
    learner.counts.copy_(torch.arange(48).view(3, 16) + 1)  # the long memory decides nothing
    learner.recent[0, :8] = torch.tensor([10, 10, 4.9, 10, 0, 10, 20, 15.1])  # mean 10
    learner.recent[1, :6] = torch.tensor([1, 1, 1, 1, 1, 1.0])  # mean 1: none is rare
    learner.recent[2, :16] = torch.tensor([4.0] * 8 + [1.0] * 4 + [3.0] * 4)  # mean 3
    rare = [{2, 4}, set(), set(range(8, 12))]
    learner._scale_entries()  # the counts are the first position's scale
    vectors, counts = quantizer.vectors.clone(), learner.counts.clone()
    codes, residuals = quantizer.quantize(latents_of(32))
    chosen = [entries_of(quantizer, position)[codes[:, position]] for position in range(3)]
    learner.revive(codes, residuals, generator_for(5))

    for position in range(3):
        changed = (quantizer.vectors[position] != vectors[position]).any(1).nonzero().squeeze(1)
        assert set(changed.tolist()) == rare[position]
        size = quantizer.config.sizes[position]
        splits = 0.8 * chosen[position] + 0.2 * residuals.early[position].double()
        if position > 0:
            splits *= learner.gains[position] / splits.norm(dim=1, keepdim=True)
        for row in rare[position]:
            difference = (entries_of(quantizer, position)[row] - splits).abs().amax(1)
            assert difference.min() < 1e-5
            # A revived entry starts with the mean count: it moves no faster than the others.
            assert learner.counts[position, row] == counts[position, :size].mean()
        kept = [row for row in range(size) if row not in rare[position]]
        assert torch.equal(learner.counts[position, kept], counts[position, kept])
    again = quantizer.vectors.clone()
    learner.revive(codes, residuals, generator_for(6))  # a new window, in which nothing was counted
    assert torch.equal(quantizer.vectors, again)


def test_revived_entry_takes_over_a_part_of_a_popular_one() -> None:
    # Two clusters for four entries, two of which lie where nothing is.
    generator = generator_for(7)
    latents = torch.randn(400, 64, generator=generator) + 3 * (torch.arange(400) % 2)[:, None]
    quantizer = ProgressiveQuantizer(QuantizerConfig(num_codes=1, codebook_sizes=(4,)), 64)
    learner = CodebookLearner(quantizer)
    learner.initialize(latents, generator_for(8))
    learner._set_rows(0, torch.tensor([2, 3]), torch.full((2, 64), 100.0), torch.ones(2))
    codes, residuals = quantizer.quantize(quantizer.normalize(latents))
    learner.update(codes, residuals, 0.99)
    assert codes.unique().numel() == 2
    learner.revive(codes, residuals, generator_for(9))
    codes, _ = quantizer.quantize(quantizer.normalize(latents))
    assert torch.bincount(codes[:, 0], minlength=4).min() >= 10


def test_window_of_uses_counts_every_choice_since_the_last_revival() -> None:
    learner = learner_of(MIXED)
    quantizer = learner.quantizer
    learner.initialize(latents_of(300), generator_for(0))
    uses = torch.zeros_like(learner.recent)
    for step in range(3):
        codes, residuals = quantizer.quantize(latents_of(16, seed=step))
        learner.update(codes, residuals, 0.9)
        for position in range(len(MIXED)):
            uses[position] += torch.bincount(codes[:, position], minlength=max(MIXED))
    assert torch.equal(learner.recent, uses)
    learner.revive(codes, residuals, generator_for(1))
    assert torch.equal(learner.window, uses)
    assert not learner.recent.any()


def test_nearest_choice_stays_exact_after_learning_and_revival() -> None:
    # The first codebook keeps half the squared norms beside its entries: they must stay in step.
    learner = learner_of(MIXED, revive_below=0.9)
    quantizer = learner.quantizer
    learner.initialize(latents_of(300), generator_for(0))
    for step in range(5):
        codes, residuals = quantizer.quantize(latents_of(16, seed=step))
        learner.update(codes, residuals, 0.7)
        learner.revive(codes, residuals, generator_for(1, step))
    codes, residuals = quantizer.quantize(latents_of(100, seed=50))
    for position in range(len(MIXED)):
        distances = torch.cdist(residuals.early[position].double(), entries_of(quantizer, position))
        chosen = distances.gather(1, codes[:, position, None]).squeeze(1)
        assert torch.allclose(chosen, distances.amin(1), atol=1e-5)


@pytest.mark.parametrize("seed", range(3))
def test_start_from_data_leaves_less_residual_than_random_entries(seed: int) -> None:
    # Correlated data, as latents are: there is something to find.
    mixing = torch.randn(DIM, DIM, generator=generator_for(9, seed))
    encoded = 3 * latents_of(2000, seed=seed) @ mixing
    quantizer = quantizer_of(MIXED)
    CodebookLearner(quantizer).initialize(encoded, generator_for(seed))
    latents = quantizer.normalize(encoded)
    assert float(latents.std()) == pytest.approx(1, rel=1e-4)
    codes, residuals = quantizer.quantize(latents)
    energy = residuals.early.square().mean((1, 2))
    assert (energy.diff() < 0).all()  # every position takes something away

    _, by_random = quantizer_of(MIXED, seed=seed).quantize(latents)
    assert energy[-1] < 0.8 * by_random.early[-1].square().mean()
    for position, size in enumerate(MIXED):
        assert codes[:, position].unique().numel() == size


@pytest.mark.parametrize("seed", range(3))
def test_start_from_repeated_data_still_uses_every_entry(seed: int) -> None:
    # 48 different latents, 20 times each: two of 32 entries start at the same one for certain
    # (but for a chance of 1e-7), and one of the two is then never chosen.
    encoded = latents_of(48, seed=seed).repeat(20, 1)
    quantizer = quantizer_of((32,))
    CodebookLearner(quantizer).initialize(encoded, generator_for(seed))
    codes, _ = quantizer.quantize(quantizer.normalize(encoded))
    assert codes.unique().numel() == 32


@pytest.mark.parametrize("different", [1, 4, 10])
def test_fewer_different_latents_than_entries_give_finite_codebooks(different: int) -> None:
    # The first position describes them all, and leaves later ones nothing to learn from.
    latents = latents_of(different).repeat(50, 1)
    learner = learner_of((16, 16, 3))
    quantizer = learner.quantizer
    learner.initialize(latents, generator_for(0))
    for step in range(20):
        codes, residuals = quantizer.quantize(quantizer.normalize(latents))
        learner.update(codes, residuals, 0.9)
        learner.revive(codes, residuals, generator_for(1, step))
    assert all(entries_of(quantizer, position).isfinite().all() for position in range(3))
    codes, residuals = quantizer.quantize(quantizer.normalize(latents))
    assert residuals.early[-1].abs().max() < 0.1
    # What the encoder gives later is described by all positions again.
    for step in range(300):
        codes, residuals = quantizer.quantize(quantizer.normalize(latents_of(64, seed=step)))
        learner.update(codes, residuals, 0.9)
        if step % 20 == 19:
            learner.revive(codes, residuals, generator_for(2, step))
    assert (residuals.energies().mean(1).diff() < 0).all()


def test_decay_goes_from_start_to_end_with_a_geometric_middle() -> None:
    config = QuantizerConfig(num_codes=1, decay_start=0.9, decay_end=0.999)
    learner = CodebookLearner(ProgressiveQuantizer(config, DIM))
    for progress, decay in ((0.0, 0.9), (0.5, 0.99), (1.0, 0.999)):
        assert learner.decay(progress) == pytest.approx(decay, rel=1e-9)


def test_scale_follows_the_standard_deviation_of_the_encoder() -> None:
    learner = learner_of(MIXED)
    quantizer = learner.quantizer
    encoded = 7 * latents_of(500)
    deviation = float(encoded.double().std())
    for step in range(1, 301):
        codes, residuals = quantizer.quantize(quantizer.normalize(encoded))
        learner.update(codes, residuals, 0.9)
        expected = deviation + (1 - deviation) * 0.95**step
        assert float(quantizer.scale) == pytest.approx(expected, rel=1e-4)
    assert float(quantizer.normalize(encoded).std()) == pytest.approx(1, rel=1e-3)


def test_entropy_of_uniform_codes_is_log2_of_their_number_and_of_constant_ones_zero() -> None:
    uniform = torch.arange(64) % 16
    skewed = torch.tensor([0] * 32 + [1] * 16 + [2] * 16)  # 1/2, 1/4, 1/4: 1.5 bits
    codes = torch.stack([uniform, torch.full((64,), 3), skewed], dim=1)
    assert code_entropy_bits(codes, (16, 16, 5)) == pytest.approx([4, 0, 1.5], abs=1e-12)


def test_usage_counts_entropy_and_dead_entries_of_each_codebook() -> None:
    learner = learner_of((8, 4))
    learner.window[0, :8] = torch.tensor([5.0] * 4 + [0.0] * 4)  # 2 bits, 4 dead
    learner.window[1, :4] = 3.0  # 2 bits, none dead
    entropy, dead = learner.usage()
    assert entropy == pytest.approx(2)
    assert dead == 4


def test_usage_is_of_the_running_window_until_the_first_is_full() -> None:
    learner = learner_of((8, 4))
    codes = torch.tensor([[0, 0], [1, 1], [2, 2], [3, 3]])
    residuals = learner.quantizer.residuals(latents_of(4), codes)
    learner.update(codes, residuals, 0.9)
    assert learner.usage() == (pytest.approx(2), 4)
    learner.update(codes // 2, residuals, 0.9)  # 3/8, 3/8, 1/8, 1/8
    both = -2 * (3 / 8 * math.log2(3 / 8) + 1 / 8 * math.log2(1 / 8))
    assert learner.usage() == (pytest.approx(both), 4)
    learner.revive(codes, residuals, generator_for(0))
    assert learner.usage() == (pytest.approx(both), 4)
    learner.update(codes * 0, residuals, 0.9)  # a new window, not yet full
    assert learner.usage() == (pytest.approx(both), 4)
    learner.revive(codes, residuals, generator_for(1))
    assert learner.usage() == (pytest.approx(0), 7 + 3)


def test_bits_are_log2_of_the_codebook_sizes() -> None:
    assert QuantizerConfig(num_codes=3, codebook_sizes=(256,)).bits == (8, 8, 8)
    shared = QuantizerConfig(num_codes=5, codebook_sizes=(256, 1024), learned_codes=2).bits
    assert shared == (8, 8, 10, 10, 10)
    mixed = QuantizerConfig(num_codes=2, codebook_sizes=(2, 10)).bits
    assert mixed == pytest.approx((1, math.log2(10)))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_codes": 0}, "num_codes is 0"),
        ({"num_codes": 4, "codebook_sizes": (8, 8, 8)}, "codebook_sizes has 3 numbers"),
        ({"num_codes": 2, "codebook_sizes": (8, 1)}, "at least 2 each"),
        ({"num_codes": 2, "codebook_sizes": ()}, "codebook_sizes has 0 numbers"),
        ({"learned_codes": 0}, "learned_codes must be at least 1, not 0"),
        ({"subspace": 0}, "subspace is 0, but must be 1 to rank, which is 256"),
        ({"rank": 8}, "subspace is 16, but must be 1 to rank, which is 8"),
        ({"decay_start": 0.9, "decay_end": 0.8}, "decay_start and decay_end"),
        ({"decay_start": 0.9, "decay_end": 1.0}, "decay_start and decay_end"),
        ({"decay_start": 0.0, "decay_end": 0.9}, "decay_start and decay_end"),
    ],
)
def test_impossible_settings_are_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        QuantizerConfig(**settings)  # type: ignore[bad-argument-type]


@pytest.mark.parametrize("config", [{}, SHARING])
def test_learner_state_round_trip_goes_on_alike(config: dict[str, int]) -> None:
    def steps(learner: CodebookLearner, seeds: range) -> None:
        for seed in seeds:
            codes, residuals = learner.quantizer.quantize(latents_of(16, seed=seed))
            learner.update(codes, residuals, 0.9)
            if seed % 3 == 2:
                learner.revive(codes, residuals, generator_for(1, seed))

    straight, cut = learner_of(MIXED, **config), learner_of(MIXED, **config)
    for learner in (straight, cut):
        learner.initialize(latents_of(300), generator_for(0))
    steps(straight, range(60))  # past a turn of the basis
    steps(cut, range(44))
    resumed = CodebookLearner(quantizer_of(MIXED, seed=7, **config))
    resumed.quantizer.load_state_dict(cut.quantizer.state_dict())
    resumed.load_state_dict(cut.state_dict())
    steps(resumed, range(44, 60))
    assert resumed.weight == straight.weight
    assert_same_state(resumed, state_of(straight))
