"""The cached loop: what it shows is what the whole network says, whoever chooses the codes."""

import math

import pytest
import torch
from torch import Tensor, nn

from stage2_prior.prior import Prior
from stage2_prior.sequence import Sequence
from stage2_prior.unroll import unroll
from tests.stage2_prior.random_prior import BATCH, N, make_prior, random_codes

ORDERS = {
    "coarse to fine": None,
    "reversed": Sequence(((4,), (3,), (2,), (1,), (0,))),
    "mixed steps": Sequence(((1, 0), (4,), (2, 3))),
}
# Logits are of order 1; float32 products of other shapes are summed in another order.
TOLERANCE = 1e-4


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("labelled", [True, False], ids=["classes", "no class"])
def test_its_logits_are_those_of_the_whole_sequence(order: str, labelled: bool) -> None:
    prior, codes = make_prior(sequence=ORDERS[order]), random_codes()
    labels = torch.arange(BATCH) % 3 if labelled else torch.full((BATCH,), prior.no_class)
    shown = []

    def follow(step: int, logits: Tensor) -> Tensor:
        shown.append(logits)
        return codes[:, list(prior.sequence.steps[step])]

    assert torch.equal(unroll(prior, labels, len(prior.sequence.steps), follow), codes)
    with torch.inference_mode():
        whole = prior(prior.sequence.by_place(codes), labels if labelled else None)
    torch.testing.assert_close(torch.cat(shown, dim=1), whole, atol=TOLERANCE, rtol=0)
    # So an encoder that knows the codes pays what ``bits`` says.
    paid = nn.functional.cross_entropy(
        torch.cat(shown, dim=1).transpose(1, 2), prior.sequence.by_place(codes), reduction="none"
    )
    with torch.inference_mode():
        bits = prior.bits(codes, labels)
    torch.testing.assert_close(
        prior.sequence.by_position(paid) / math.log(2), bits, atol=TOLERANCE, rtol=0
    )


@pytest.mark.parametrize("order", ORDERS)
def test_fewer_steps_give_the_prefix_that_they_hold(order: str) -> None:
    prior, codes = make_prior(sequence=ORDERS[order]), random_codes()
    sequence = prior.sequence

    def follow(step: int, logits: Tensor) -> Tensor:
        return codes[:, list(sequence.steps[step])]

    for k in range(1, N + 1):
        steps = sequence.steps_for(k)
        found = unroll(prior, torch.zeros(BATCH, dtype=torch.int64), steps, follow)
        assert torch.equal(found[:, :k], codes[:, :k])
        # One step less does not hold it.
        held = {position for positions in sequence.steps[: steps - 1] for position in positions}
        assert not held >= set(range(k))


def logits_of(prior: Prior, codes: Tensor) -> Tensor:
    shown = []

    def follow(step: int, logits: Tensor) -> Tensor:
        shown.append(logits)
        return codes[:, step : step + 1]

    unroll(prior, torch.zeros(BATCH, dtype=torch.int64), N, follow)
    return torch.cat(shown, dim=1)


def test_autocast_changes_no_logits() -> None:
    prior, codes = make_prior(), random_codes()
    with torch.autocast("cpu", torch.bfloat16):
        found = logits_of(prior, codes)
    assert torch.equal(found, logits_of(prior, codes))


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16, torch.float64])
def test_a_prior_of_another_type_has_nearly_the_same_logits(kind: torch.dtype) -> None:
    prior, codes = make_prior(), random_codes()
    expected = logits_of(prior, codes)
    found = logits_of(prior.to(kind), codes).float()
    torch.testing.assert_close(found, expected, atol=0.1, rtol=0)
