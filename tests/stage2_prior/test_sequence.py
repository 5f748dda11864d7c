"""The order of the codes: another one is a tuple of steps, and everything else follows."""

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor

from pqvae.randomness import generator_for, uniform_noise
from stage2_prior.books import Codebooks
from stage2_prior.config import PriorConfig
from stage2_prior.drawing import draw_codes
from stage2_prior.prior import Prior
from stage2_prior.sequence import Sequence, coarse_to_fine
from stage2_prior.unroll import unroll

SIZES = (5, 6, 4, 8)
N = len(SIZES)
# All there is to do for a new order.
REVERSED = Sequence(tuple((position,) for position in reversed(range(N))))
IN_PAIRS = Sequence(((0, 1), (2, 3)))
ORDERS = [coarse_to_fine(N), REVERSED, IN_PAIRS, Sequence(((2, 0, 3), (1,)))]


def law(n: int, seed: int) -> Tensor:
    """Codes (n, N) where later ones follow from earlier ones: log2 5 + 1 bits an image."""
    generator = generator_for(seed)
    first = torch.randint(5, (n,), generator=generator)
    third = first % 2 + 2 * torch.randint(2, (n,), generator=generator)
    return torch.stack([first, first + 1, third, first + third], dim=1)


def train(sequence: Sequence) -> Prior:
    torch.manual_seed(0)
    config = PriorConfig(width=64, depth=2, heads=2, code_features=8)
    books = Codebooks(SIZES, (0, 1, 1, 1), (None, 2))
    prior = Prior(config, books, (), (), sequence)
    optimizer = torch.optim.Adam(prior.parameters(), lr=3e-3)
    for step in range(150):
        loss = prior.bits(law(64, step)).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return prior.eval()


# Bits of each position: what those of the steps before leave open.
@pytest.mark.parametrize(
    ("sequence", "expected"),
    [
        (REVERSED, None),  # c_4 first: all 5 + 1 bits are paid there and at c_3, whichever way
        (IN_PAIRS, [math.log2(5), math.log2(5), 1.0, 2.0 - 1.0]),
    ],
    ids=["reversed", "in pairs"],
)
def test_a_new_order_trains_saves_and_draws(
    sequence: Sequence, expected: list[float] | None, tmp_path: Path
) -> None:
    prior = train(sequence)
    prior.save_pretrained(tmp_path)
    loaded = Prior.from_pretrained(tmp_path)
    assert loaded.sequence == sequence
    with torch.inference_mode():
        bits = loaded.bits(law(2048, 999)).mean(0)
        assert torch.equal(bits, prior.bits(law(2048, 999)).mean(0))
    if expected is None:
        assert float(bits.sum()) == pytest.approx(math.log2(5) + 1, abs=0.25)
        assert float(bits[0]) < 0.1  # it has been told all
    else:
        # What stands in one step is predicted apart from each other.
        assert bits.tolist() == pytest.approx(expected, abs=0.15)

    indices = torch.arange(500)

    def choose(step: int, logits: Tensor) -> Tensor:
        return draw_codes(logits.softmax(dim=-1), 0, indices, sequence.steps[step])

    labels = torch.zeros_like(indices)
    codes = unroll(loaded, labels, len(sequence.steps), choose)
    if sequence is REVERSED:
        lawful = (codes[:, 1] == codes[:, 0] + 1) & (codes[:, 3] == codes[:, 0] + codes[:, 2])
        assert lawful.double().mean() > 0.9
    # The noise of a code belongs to its position, wherever that stands in the sequence.
    with torch.inference_mode():
        first = loaded(torch.empty(1, 0, dtype=torch.int64))[0, 0].softmax(0)
    expected_codes = draw_codes(first.expand(500, 1, -1), 0, indices, [sequence.steps[0][0]])
    assert torch.equal(codes[:, sequence.steps[0][0]], expected_codes[:, 0])
    assert uniform_noise(0, indices, 0).ne(uniform_noise(0, indices, 3)).all()


@pytest.mark.parametrize("sequence", ORDERS)
def test_codes_come_back_from_their_places(sequence: Sequence) -> None:
    codes = law(16, 0)
    by_place = sequence.by_place(codes)
    assert torch.equal(sequence.by_position(by_place), codes)
    for steps in range(1, len(sequence.steps) + 1):
        places = sequence.bounds[steps]
        prefix = sequence.by_position(by_place[:, :places])
        assert torch.equal(prefix, codes[:, : prefix.shape[1]])
        assert sequence.steps_in(places) == steps
        # It is the longest: the next position is not among them.
        if prefix.shape[1] < N:
            assert prefix.shape[1] not in sequence.order[:places]


@pytest.mark.parametrize("sequence", ORDERS)
def test_steps_are_summed_ended_and_repeated(sequence: Sequence) -> None:
    values = torch.randn(3, N, 2, generator=generator_for(0))
    for first in range(len(sequence.steps)):
        begin = sequence.bounds[first]
        here = values[:, begin:]
        sums, ends = sequence.sum_steps(here, first), sequence.last_of_steps(here, first)
        for step in range(first, len(sequence.steps)):
            places = slice(sequence.bounds[step], sequence.bounds[step + 1])
            torch.testing.assert_close(sums[:, step - first], values[:, places].sum(1))
            assert torch.equal(ends[:, step - first], values[:, places][:, -1])
            repeated = sequence.repeat_steps(sums, first)[:, places.start - begin]
            assert torch.equal(repeated, sums[:, step - first])
        assert sequence.repeat_steps(sums, first).shape == here.shape


def test_a_prefix_that_ends_inside_of_a_step_is_refused() -> None:
    with pytest.raises(ValueError, match="3 codes end inside of a step"):
        IN_PAIRS.steps_in(3)


@pytest.mark.parametrize("steps", [((0,), (2,)), ((0,), (1, 1)), ((0,), (), (1,)), ((0, 1), (1,))])
def test_steps_hold_every_position_once(steps: tuple[tuple[int, ...], ...]) -> None:
    with pytest.raises(ValueError, match="steps must hold each position once"):
        Sequence(steps)
