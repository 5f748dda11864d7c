"""The search for neighbours against slow references, whatever the blocks."""

import pytest
import torch
from torch import Tensor

from eval.measures import neighbours
from eval.measures.neighbours import Euclidean, Hamming, Tree, common_prefix, nearest
from pqvae.randomness import generator_for

# Sides of a block: one pair at a time, some, and all at once.
BLOCKS = [(1, 1), (3, 7), (1024, 4096)]


def slow_prefix(first: list[int], second: list[int]) -> int:
    length = 0
    while length < len(first) and first[length] == second[length]:
        length += 1
    return length


def slow_neighbours(distances: Tensor, count: int, leave_out: bool) -> Tensor:
    rows = []
    for query, row in enumerate(distances.tolist()):
        order = sorted(range(len(row)), key=lambda column: (row[column], column))
        rows.append([c for c in order if not (leave_out and c == query)][:count])
    return torch.tensor(rows)


@pytest.fixture(params=BLOCKS, ids=str)
def blocks(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(neighbours, "QUERIES", request.param[0])
    monkeypatch.setattr(neighbours, "ROWS", request.param[1])


def itself(leave_out: bool, n: int) -> Tensor | None:
    return torch.arange(n) if leave_out else None


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("leave_out", [False, True])
def test_euclidean_neighbours_are_those_of_a_slow_search(
    blocks: None, leave_out: bool, dtype: torch.dtype
) -> None:
    # Small whole numbers: many distances are equal, and all are exact.
    points = torch.randint(4, (60, 3), generator=generator_for(0)).float()
    queries = points if leave_out else points[:10] + 1
    distances = (queries[:, None] - points).square().sum(2)
    found = nearest(Euclidean(queries, points, dtype), 7, itself(leave_out, 60))
    assert torch.equal(found, slow_neighbours(distances, 7, leave_out))


def test_float64_tells_near_neighbours_apart_far_from_zero(blocks: None) -> None:
    # |a|^2 + |b|^2 - 2ab of equal points is not quite 0 there.
    points, queries = (1000 + 256 * torch.rand(n, 40, generator=generator_for(n)) for n in (50, 20))
    own = torch.randperm(50, generator=generator_for(2))[:20]
    queries[10:] = points[own[10:]]
    table = (queries.double().unsqueeze(1) - points.double()).square().sum(2)
    distances = Euclidean(queries, points, torch.float64)
    assert torch.equal(nearest(distances, 1)[:, 0], table.argmin(1))
    table[torch.arange(20), own] = torch.inf
    assert torch.equal(nearest(distances, 1, own)[:, 0], table.argmin(1))


def test_bytes_are_compared_as_numbers(blocks: None) -> None:
    points, queries = (
        torch.randint(256, (n, 40), dtype=torch.uint8, generator=generator_for(n)) for n in (50, 20)
    )
    table = (queries.double().unsqueeze(1) - points.double()).square().sum(2)
    found = nearest(Euclidean(queries, points, torch.float64), 5)
    assert torch.equal(found, slow_neighbours(table, 5, leave_out=False))


@pytest.mark.parametrize("queries", [1, 2, 5])
def test_equal_features_come_in_their_order_however_products_round(
    queries: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Of an odd number of columns, the last are multiplied otherwise: they differ in the last digit.
    monkeypatch.setattr(neighbours, "QUERIES", queries)
    rows = torch.randn(5, 300, generator=generator_for(0))
    database = rows[torch.arange(197) % 5]
    expected = torch.stack([torch.arange(39) * 5 + row for row in range(5)])
    assert torch.equal(nearest(Euclidean(rows, database), 39), expected)


def test_features_that_are_all_zero_are_equally_near() -> None:
    assert (
        nearest(Euclidean(torch.zeros(2, 3), torch.zeros(9, 3)), 4).tolist() == [[0, 1, 2, 3]] * 2
    )


@pytest.mark.parametrize("leave_out", [False, True])
def test_hamming_neighbours_are_those_of_a_direct_comparison(blocks: None, leave_out: bool) -> None:
    codes = torch.randint(3, (60, 8), generator=generator_for(0))
    queries = codes if leave_out else torch.randint(3, (10, 8), generator=generator_for(1))
    distances = (queries[:, None] != codes).sum(2)
    found = nearest(Hamming(queries, codes), 7, itself(leave_out, 60))
    assert torch.equal(found, slow_neighbours(distances, 7, leave_out))


def test_the_common_prefix_is_that_of_a_slow_comparison() -> None:
    codes = torch.randint(2, (40, 6), generator=generator_for(0))
    expected = [[slow_prefix(a, b) for b in codes.tolist()] for a in codes[:9].tolist()]
    assert common_prefix(codes[:9], codes.T.contiguous()).tolist() == expected


@pytest.mark.parametrize("leave_out", [False, True])
def test_the_tree_ranks_by_common_prefix_then_by_latent_then_by_order(
    blocks: None, leave_out: bool
) -> None:
    codes = torch.randint(2, (60, 4), generator=generator_for(0))
    latents = torch.randint(3, (60, 2), generator=generator_for(1)).float()
    Q = 60 if leave_out else 9
    distances = Tree(codes[:Q], codes, Euclidean(latents[:Q], latents))
    found = nearest(distances, 12, itself(leave_out, Q))
    for query in range(Q):
        others = [row for row in range(60) if not (leave_out and row == query)]
        others.sort(
            key=lambda row: (
                -slow_prefix(codes[query].tolist(), codes[row].tolist()),
                (latents[query] - latents[row]).square().sum().item(),
                row,
            )
        )
        assert found[query].tolist() == others[:12]


def test_no_latent_is_farther_than_a_longer_common_prefix_is_near() -> None:
    # The first shares a code with the query, but is as far from it as possible.
    codes, latents = torch.tensor([[0, 1], [1, 0]]), torch.tensor([[-50.0, 0], [49, 0]])
    query = Euclidean(torch.tensor([[50.0, 0]]), latents)
    assert nearest(Tree(torch.tensor([[0, 0]]), codes, query), 2).tolist() == [[0, 1]]
