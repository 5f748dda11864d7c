"""Temperature, nucleus and guidance: known answers and slow references."""

import pytest
import torch
from torch import Tensor

from pqvae.randomness import generator_for
from sampling.filters import filtered_probabilities, guide

INF = torch.inf


def random_logits(rows: int = 50, size: int = 20) -> Tensor:
    """Rows from nearly flat to very peaked, the last three codes impossible."""
    generator = generator_for(0)
    logits = torch.randn(rows, size, generator=generator) * torch.linspace(0.1, 8, rows)[:, None]
    logits[:, -3:] = -INF
    return logits


def test_temperature_zero_is_greedy() -> None:
    logits = random_logits()
    for top_p in (1.0, 0.3):
        probabilities = filtered_probabilities(logits, 0, top_p)
        assert torch.equal(probabilities.argmax(1), logits.argmax(1))
        assert torch.equal(probabilities.sum(1), torch.ones(len(logits)))
        assert ((probabilities == 0) | (probabilities == 1)).all()


def test_temperature_is_a_power_of_the_probabilities() -> None:
    probabilities = torch.tensor([[0.5, 0.3, 0.2, 0.0]])
    for temperature, expected in (
        (1.0, [0.5, 0.3, 0.2, 0.0]),
        (0.5, [25 / 38, 9 / 38, 4 / 38, 0.0]),
        (2.0, [0.4154, 0.3218, 0.2628, 0.0]),  # square roots, divided by their sum 1.7020
    ):
        found = filtered_probabilities(probabilities.log(), temperature, 1.0)
        torch.testing.assert_close(found, torch.tensor([expected]), atol=1e-4, rtol=0)


def test_the_lowest_temperatures_come_near_greedy() -> None:
    logits = random_logits()
    found = filtered_probabilities(logits, 1e-4, 1.0)
    assert torch.equal(found.round(), filtered_probabilities(logits, 0, 1.0))


def nucleus(probabilities: list[float], top_p: float) -> set[int]:
    """The reference: take the most likely code left until the share is reached."""
    kept: set[int] = set()
    while sum(probabilities[i] for i in kept) < top_p and len(kept) < len(probabilities):
        left = [i for i in range(len(probabilities)) if i not in kept]
        kept.add(max(left, key=lambda i: probabilities[i]))
    return kept


@pytest.mark.parametrize("top_p", [1e-9, 0.1, 0.5, 0.9, 0.99])
def test_top_p_keeps_the_fewest_codes_that_reach_it(top_p: float) -> None:
    logits = random_logits()
    whole = logits.double().softmax(1)
    for row, found in zip(whole, filtered_probabilities(logits, 1.0, top_p), strict=True):
        kept = nucleus(row.tolist(), top_p)
        assert set(found.nonzero().flatten().tolist()) == kept
        indices = torch.tensor(sorted(kept))
        expected = row[indices] / row[indices].sum()
        torch.testing.assert_close(found[indices].double(), expected, atol=1e-6, rtol=0)


def test_top_p_keeps_no_more_of_equally_likely_codes_than_it_needs() -> None:
    logits = torch.tensor(
        [[0.1, 0.2, 0.2, 0.2, 0.2, 0.1], [0.25, 0.25, 0.0, 0.0, 0.25, 0.25]]
    ).log()
    found = filtered_probabilities(logits, 1.0, 0.45)
    assert (found > 0).sum(1).tolist() == [3, 2]
    assert (found[:, 1] > 0).all()  # of the most likely ones the first
    torch.testing.assert_close(found.sum(1), torch.ones(2))


def test_top_p_acts_after_the_temperature() -> None:
    logits = torch.tensor([[0.5, 0.3, 0.2]]).log()
    assert (filtered_probabilities(logits, 1.0, 0.6) > 0).tolist() == [[True, True, False]]
    assert (filtered_probabilities(logits, 0.5, 0.6) > 0).tolist() == [[True, False, False]]


def test_what_is_impossible_stays_so() -> None:
    logits = random_logits()
    for temperature in (0.0, 0.01, 1.0, 10.0):
        for top_p in (1.0, 0.9, 1e-6):
            probabilities = filtered_probabilities(logits, temperature, top_p)
            assert (probabilities[:, -3:] == 0).all()
            torch.testing.assert_close(probabilities.sum(1), torch.ones(len(logits)))
    only = torch.full((1, 5), -INF)
    only[0, 3] = -7.0
    assert filtered_probabilities(only, 0.7, 0.5).tolist() == [[0, 0, 0, 1, 0]]


@pytest.mark.parametrize("temperature", [1e-30, 1e-31, 1e-38, 1e-40, 5e-324])
@pytest.mark.parametrize("top_p", [1.0, 0.5, 1e-12])
def test_a_temperature_near_zero_is_greedy(temperature: float, top_p: float) -> None:
    logits = random_logits()
    found = filtered_probabilities(logits, temperature, top_p)
    assert torch.equal(found, filtered_probabilities(logits, 0.0, 1.0))


def test_guidance_goes_from_unconditional_over_conditional_beyond() -> None:
    conditional, unconditional = random_logits(), random_logits().roll(1, 0)
    possible = slice(0, -3)
    for scale, expected in (
        (0.0, unconditional),
        (1.0, conditional),
        (3.0, 3 * conditional - 2 * unconditional),
    ):
        found = guide(conditional, unconditional, scale)
        # 1e-5: logits reach 30, and float32 has 7 digits.
        torch.testing.assert_close(found[:, possible], expected[:, possible], atol=1e-4, rtol=1e-5)
        assert (found[:, -3:] == -INF).all()
