"""The cached loop: what it shows is what the whole network says, whoever chooses the codes."""

import math

import pytest
import torch
from torch import Tensor, nn

from pqvae.randomness import generator_for
from stage2_prior.books import Codebooks
from stage2_prior.config import PriorConfig
from stage2_prior.prior import Prior
from stage2_prior.sequence import Sequence
from stage2_prior.unroll import unroll

SIZES = (7, 4, 16, 2, 9)
CODEBOOKS = Codebooks(SIZES, (0, 1, 2, 2, 2), (None, None, 3))
N, BATCH = len(SIZES), 6
ORDERS = {
    "coarse to fine": None,
    "reversed": Sequence(((4,), (3,), (2,), (1,), (0,))),
    "mixed steps": Sequence(((1, 0), (4,), (2, 3))),
}
# Logits are of order 1; float32 products of other shapes are summed in another order.
TOLERANCE = 1e-4


def make_prior(sequence: Sequence | None) -> Prior:
    """A prior in which every weight counts."""
    torch.manual_seed(0)
    config = PriorConfig(width=64, depth=2, heads=2, code_features=8)
    prior = Prior(config, CODEBOOKS, ("a", "b", "c"), (1, 1, 1), sequence)
    for parameter in prior.parameters():
        nn.init.normal_(parameter, std=0.1)
    for book in prior.books:
        placements = None if book.placements is None else torch.randn(book.placements.shape)
        book.set_meaning(torch.randn(book.meaning.shape), placements)
    return prior.eval()


def random_codes(seed: int = 0) -> Tensor:
    columns = [
        torch.randint(size, (BATCH,), generator=generator_for(seed, i))
        for i, size in enumerate(SIZES)
    ]
    return torch.stack(columns, dim=1)


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("labelled", [True, False], ids=["classes", "no class"])
def test_its_logits_are_those_of_the_whole_sequence(order: str, labelled: bool) -> None:
    prior, codes = make_prior(ORDERS[order]), random_codes()
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
    prior, codes = make_prior(ORDERS[order]), random_codes()
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
