"""The codebook that late positions share: directions, spreads, moving averages, new latents."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from pqvae.randomness import generator_for
from stage1_tokenizer.quantizers.codebook import Codebook, Seen
from stage1_tokenizer.quantizers.shared import GAINS, RESCALE_ABOVE, SharedCodebook

SIZES, DIM, RANK, SUBSPACE = (16, 2, 5), 6, 5, 3
See = Callable[[Codebook, Tensor], Seen]


def latents_of(n: int, seed: int = 1) -> Tensor:
    return torch.randn(n, DIM, generator=generator_for(seed)) / torch.arange(1, DIM + 1) ** 0.5


def started() -> SharedCodebook:
    codebook = SharedCodebook(SIZES, DIM, RANK, SUBSPACE)
    codebook.start(latents_of(300, 0), generator_for(0))
    return codebook


def entries_of(codebook: SharedCodebook, index: int) -> Tensor:
    """The K_i entries of a position in the latent's coordinates, float64."""
    placement = codebook.placement(index)
    assert placement is not None
    return (codebook.meaning(0)[: codebook.sizes[index]] @ placement).double()


def nothing(seen: Seen) -> Seen:
    """What is learned from instead of a batch that is not finite."""
    return Seen(seen.codes, *(torch.zeros_like(t) for t in (seen.entered, seen.left, seen.falls)))


def test_entries_lie_along_their_own_principal_directions(see: See) -> None:
    codebook = started()
    for step in range(3):
        codebook.learn(see(codebook, latents_of(50, step)), 0.9, None)
    for index, size in enumerate(SIZES):
        columns = codebook.basis[:, codebook.supports[index]].double()
        along = entries_of(codebook, index) @ columns
        torch.testing.assert_close(
            along @ columns.T, entries_of(codebook, index), rtol=0, atol=1e-5
        )
        whitened = along / codebook.spreads[index]
        torch.testing.assert_close(whitened, codebook.meaning(0)[:size].double(), rtol=0, atol=1e-5)


def test_every_position_takes_the_directions_where_most_is_left() -> None:
    # Of a code of 1, 2, 1 and 1 bits along two directions: 1/2, 1/4, 1/2 and 1/2 of the variance.
    codebook = SharedCodebook((2, 4, 2, 2), DIM, rank=4, subspace=2)
    variances = torch.tensor([1, 9, 5, 3, 0, 0.1])
    codebook.start(torch.diag((DIM * variances).sqrt()), generator_for(0))
    # 1, 9, 5, 3 -> 1, 4.5, 2.5, 3 -> 1, 1.125, 2.5, 0.75 -> 1, 0.5625, 1.25, 0.75
    assert codebook.supports.tolist() == [[1, 2], [1, 3], [2, 1], [2, 0]]
    expected = torch.tensor([[9, 5], [4.5, 3], [2.5, 1.125], [1.25, 1]])
    torch.testing.assert_close(codebook.training_state()["deviations"].square(), expected)


def test_before_anything_is_known_a_code_is_worth_all_its_bits() -> None:
    codebook = SharedCodebook((8, 16, 4), DIM, rank=4, subspace=2)
    codebook.start(latents_of(300), generator_for(0))
    reductions = codebook.training_state()["reductions"]
    assert reductions.tolist() == pytest.approx([1 / 8, 1 / 16, 1 / 4])  # 2^(-2 bits / 2)


def test_entries_and_gains_follow_plain_moving_averages(see: See) -> None:
    codebook = started()
    state = codebook.training_state()
    sums, counts = state["sums"].double(), state["counts"].sum(0).double()
    gains, reductions = state["gains"].double(), state["reductions"].double()
    covariance, rescaled, weight = state["covariance"].double(), 0, 1.0
    for step in range(49):  # the directions stay the same until the 50th
        decay = 0.5 + 0.2 * step / 49
        latents = latents_of(20, seed=100 + step)
        seen = see(codebook, latents)
        entries = [entries_of(codebook, index) for index in range(3)]
        skipped = step % 3 == 2
        finite = (None, torch.tensor(True), torch.tensor(False))[step % 3]
        codebook.learn(nothing(seen) if skipped else seen, decay, finite)
        before, weight = weight, float(codebook.training_state()["weight"])
        rescaled += weight < before

        sums, counts = sums * decay, counts * decay
        if skipped:
            continue
        covariance = decay * covariance + (1 - decay) * (latents.T @ latents / 20).double()
        left = latents.double()
        for index in range(3):
            chosen = entries[index][seen.codes[:, index]]
            unscaled = chosen / gains[index]
            gain = (left * unscaled).sum() / unscaled.square().sum()
            columns = codebook.basis[:, codebook.supports[index]].double()
            inside, after = left @ columns, (left - chosen) @ columns
            reduction = after.square().sum() / inside.square().sum()
            reductions[index] = decay * reductions[index] + (1 - decay) * reduction.clamp(0, 1)
            gains[index] = (decay * gains[index] + (1 - decay) * gain).clamp(*GAINS)
            deviations = codebook.training_state()["deviations"][index]
            for row, code in enumerate(seen.codes[:, index].tolist()):
                sums[code] += inside[row] / deviations
                counts[code] += 1
            left = left - chosen
    assert rescaled >= 1
    state = codebook.training_state()
    torch.testing.assert_close(state["gains"].double(), gains, rtol=1e-3, atol=0)
    torch.testing.assert_close(state["reductions"].double(), reductions, rtol=1e-3, atol=0)
    torch.testing.assert_close(state["covariance"].double(), covariance, rtol=1e-3, atol=1e-5)
    expected = sums / counts[:, None]
    torch.testing.assert_close(codebook.meaning(0).double(), expected, rtol=1e-3, atol=1e-4)


def test_finite_batch_does_the_same_whether_that_is_said_or_not(see: See) -> None:
    silent, told = started(), started()
    for step in range(55):  # past a rotation of the basis
        for codebook, finite in ((silent, None), (told, torch.tensor(True))):
            codebook.learn(see(codebook, latents_of(16, seed=step)), 0.8, finite)
    expected = {**silent.state_dict(), **silent.training_state()}
    for name, value in {**told.state_dict(), **told.training_state()}.items():
        assert torch.equal(value, expected[name]), name


def test_rescaling_in_a_skipped_step_keeps_the_entries(see: See) -> None:
    codebook = started()
    before = [entries_of(codebook, index) for index in range(3)]
    state = {name: value.clone() for name, value in codebook.training_state().items()}
    codebook.load_training_state(state | {"weight": torch.tensor(RESCALE_ABOVE)})
    codebook.learn(nothing(see(codebook, latents_of(4))), 0.5, torch.tensor(False))
    assert codebook.training_state()["weight"] == 1
    for index, expected in enumerate(before):  # rounding of two divisions
        torch.testing.assert_close(entries_of(codebook, index), expected, rtol=1e-5, atol=1e-7)


def test_basis_follows_the_principal_directions_of_what_comes(see: See) -> None:
    dim, rank = 40, 8
    rotation = torch.linalg.qr(torch.randn(dim, dim, generator=generator_for(0))).Q
    deviations = torch.cat([torch.ones(5), 0.1 * torch.ones(dim - 5)])

    def batch(seed: int) -> Tensor:
        return torch.randn(64, dim, generator=generator_for(1, seed)) * deviations @ rotation.T

    codebook = SharedCodebook((16,) * 3, dim, rank, subspace=4)
    codebook.start(torch.randn(200, dim, generator=generator_for(2)), generator_for(3))
    for step in range(200):
        codebook.learn(see(codebook, batch(step)), 0.95, None)
    torch.testing.assert_close(
        codebook.basis.T @ codebook.basis, torch.eye(rank), rtol=0, atol=1e-5
    )
    inside = (codebook.basis.T @ rotation[:, :5]).square().sum() / 5
    assert inside > 0.99
