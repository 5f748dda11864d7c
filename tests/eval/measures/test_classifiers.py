"""Ridge, softmax regression and neighbours against slow references, whatever is chunked."""

from collections import Counter

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from eval.measures import classifiers
from eval.measures.classifiers import (
    STRENGTHS,
    Labelled,
    OneHotLinear,
    Parts,
    Ridge,
    accuracy,
    nearest,
    nearest_codes,
    softmax_regression,
    vote,
)
from pqvae.randomness import generator_for

CLASSES = 4


def clusters(n: int, D: int, seed: int, spread: float = 1.0) -> Labelled:
    """Points around a centre for each class; centres do not depend on the seed."""
    centres = torch.randn(CLASSES, D, generator=generator_for(0))
    generator = generator_for(1, seed)
    labels = torch.randint(CLASSES, (n,), generator=generator)
    return Labelled(centres[labels] + spread * torch.randn(n, D, generator=generator) + 3.0, labels)


def solved(train: Labelled, strength: float) -> tuple[Tensor, Tensor]:
    """Weights and intercept by the textbook."""
    X, Y = train.features.double(), F.one_hot(train.labels, CLASSES).double()
    centred, n = X - X.mean(0), len(X)
    D = X.shape[1]
    penalty = strength * centred.square().mean() * torch.eye(D, dtype=torch.float64)
    weights = torch.linalg.solve(centred.T @ centred / n + penalty, centred.T @ (Y - Y.mean(0)) / n)
    return weights, Y.mean(0) - X.mean(0) @ weights


@pytest.mark.parametrize(("n", "D"), [(200, 12), (20, 50)], ids=["many images", "few images"])
@pytest.mark.parametrize("strength", [1e-4, 0.1, 100])
def test_ridge_is_the_direct_solution(n: int, D: int, strength: float) -> None:
    train, other = clusters(n, D, seed=0, spread=2.0), clusters(100, D, seed=1, spread=2.0)
    ridge = Ridge(train, CLASSES)
    weights, intercept = solved(train, strength)
    torch.testing.assert_close(ridge.weights(strength), weights, rtol=1e-6, atol=1e-8)
    expected = (other.features.double() @ weights + intercept).argmax(1)
    assert torch.equal(ridge.predict(other.features, strength), expected)


def test_ridge_does_not_mind_the_scale_of_features_nor_the_size_of_chunks(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    train, val = clusters(200, 12, seed=0), clusters(300, 12, seed=1)
    ridge = Ridge(train, CLASSES)
    scaled = Ridge(Labelled(1000 * train.features, train.labels), CLASSES)
    monkeypatch.setattr(classifiers, "ROWS", 7)
    in_parts = Ridge(train, CLASSES)
    for strength in STRENGTHS:
        expected = ridge.predict(val.features, strength)
        assert torch.equal(scaled.predict(1000 * val.features, strength), expected)
        assert torch.equal(in_parts.predict(val.features, strength), expected)


def test_ridge_chooses_the_strength_that_is_best_held_out() -> None:
    # 40 images in 100 dimensions: without a penalty, it is all noise.
    train, val = clusters(40, 100, seed=0, spread=6.0), clusters(500, 100, seed=1, spread=6.0)
    ridge = Ridge(train, CLASSES)
    of_each = {s: accuracy(ridge.predict(val.features, s), val.labels) for s in STRENGTHS}
    best = ridge.best_strength(val)
    assert of_each[best] == max(of_each.values()) > min(of_each.values())
    assert best == max(s for s, value in of_each.items() if value == of_each[best])


def test_features_that_say_nothing_give_the_most_frequent_class() -> None:
    labels = torch.tensor([0, 2, 2, 2, 1])
    ridge = Ridge(Labelled(torch.full((5, 3), 0.1), labels), CLASSES)
    for strength in STRENGTHS:
        predicted = ridge.predict(torch.full((9, 3), 0.1), strength)
        assert predicted.tolist() == [2] * 9


def test_principal_components_are_those_of_the_train_features() -> None:
    train, other = clusters(100, 8, seed=0), clusters(30, 8, seed=1)
    found = Ridge(train, CLASSES).principal(other.features, 3)
    mean = train.features.mean(0)
    axes = torch.linalg.svd(train.features - mean, full_matrices=False).Vh[:3]
    expected = (other.features - mean) @ axes.T
    torch.testing.assert_close(found.abs(), expected.abs(), rtol=1e-4, atol=1e-4)


def codes_of_class(n: int, sizes: tuple[int, ...], seed: int) -> Labelled:
    """Random codes; the second one tells the class."""
    columns = [torch.randint(size, (n,), generator=generator_for(seed, size)) for size in sizes]
    return Labelled(torch.stack(columns, dim=1), columns[1] % CLASSES)


def test_one_hot_linear_is_a_product_with_one_hot_codes() -> None:
    sizes = (3, 8, 5)
    model = OneHotLinear(sizes, CLASSES)
    torch.nn.init.normal_(model.rows.weight)
    torch.nn.init.normal_(model.bias)
    codes = codes_of_class(20, sizes, seed=0).features
    one_hot = [F.one_hot(codes[:, i], size) for i, size in enumerate(sizes)]
    expected = torch.cat(one_hot, dim=1).float() @ model.rows.weight + model.bias
    torch.testing.assert_close(model(codes), expected)


def test_softmax_regression_finds_the_code_that_tells_the_class_and_nothing_else(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(classifiers, "MAX_STEPS", 600)
    sizes = (4, 8, 16)
    parts: Parts = {
        "train": codes_of_class(400, sizes, seed=0),
        "val": codes_of_class(100, sizes, seed=1),
        "test": codes_of_class(100, sizes, seed=2),
    }
    assert softmax_regression(parts, sizes, CLASSES, seed=0)[0] == 100
    blind: Parts = {
        split: Labelled(part.features[:, :1], part.labels) for split, part in parts.items()
    }
    value, steps = softmax_regression(blind, sizes[:1], CLASSES, seed=0)
    assert value < 50  # 25 by chance; 50 is almost six deviations above
    assert steps < classifiers.MAX_STEPS  # it stops when nothing is to be learned
    assert softmax_regression(blind, sizes[:1], CLASSES, seed=0) == (value, steps)


def slow_neighbours(distances: Tensor, count: int, leave_out: bool) -> Tensor:
    rows = []
    for query, row in enumerate(distances.tolist()):
        order = sorted(range(len(row)), key=lambda column: (row[column], column))
        rows.append([c for c in order if not (leave_out and c == query)][:count])
    return torch.tensor(rows)


# Chunks of 1 and 3 queries, and all at once.
@pytest.mark.parametrize("cells", [1, 200, 1 << 24])
@pytest.mark.parametrize("leave_out", [False, True])
def test_euclidean_neighbours_are_those_of_a_slow_search(
    cells: int, leave_out: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(classifiers, "CELLS", cells)
    # Small whole numbers: many distances are equal, and all are exact.
    points = torch.randint(4, (60, 3), generator=generator_for(0)).float()
    queries = points if leave_out else points[:10] + 1
    distances = (queries[:, None] - points).square().sum(2)
    found = nearest(queries, points, 7, leave_out=leave_out)
    assert torch.equal(found, slow_neighbours(distances, 7, leave_out))


def test_equal_features_come_in_their_order_however_products_round(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Of an odd number of columns, the last are multiplied otherwise: they differ in the last digit.
    rows = torch.randn(5, 300, generator=generator_for(0))
    database = rows[torch.arange(197) % 5]
    expected = torch.stack([torch.arange(39) * 5 + row for row in range(5)])
    for queries in (1, 2, 5):
        monkeypatch.setattr(classifiers, "CELLS", queries * len(database))
        assert torch.equal(nearest(rows, database, 39), expected)


@pytest.mark.parametrize("cells", [1, 200, 1 << 24])
@pytest.mark.parametrize("leave_out", [False, True])
def test_hamming_neighbours_of_all_lengths_are_those_of_a_direct_comparison(
    cells: int, leave_out: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(classifiers, "CELLS", cells)
    codes = torch.randint(3, (60, 8), generator=generator_for(0))
    queries = codes if leave_out else torch.randint(3, (10, 8), generator=generator_for(1))
    lengths = [1, 2, 5, 8]
    found = nearest_codes(queries, codes, lengths, 7, leave_out=leave_out)
    for k, neighbours in zip(lengths, found, strict=True):
        distances = (queries[:, None, :k] != codes[:, :k]).sum(2)
        assert torch.equal(neighbours, slow_neighbours(distances, 7, leave_out))


def test_the_vote_is_that_of_a_slow_count() -> None:
    labels = torch.randint(CLASSES, (200, 6), generator=generator_for(0))
    expected = []
    for row in labels.tolist():
        votes = Counter(row)
        most = max(votes.values())
        expected.append(next(label for label in row if votes[label] == most))
    assert vote(labels, CLASSES).tolist() == expected
