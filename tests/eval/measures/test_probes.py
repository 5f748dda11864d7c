"""Linear probes against the textbook, whatever the scale of the features; the vote."""

from collections import Counter

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from eval.measures.probes import (
    RIDGE_STRENGTHS,
    Labelled,
    Parts,
    accuracy,
    principal_components,
    score_codes,
    score_features,
    vote,
)
from pqvae.data.sample import Split
from pqvae.randomness import generator_for

CLASSES = 4
SPLITS: dict[Split, int] = {"train": 0, "val": 1, "test": 2}


def clusters(n: int, D: int, seed: int, spread: float) -> Labelled:
    """Points around a centre for each class; centres do not depend on the seed."""
    centres = torch.randn(CLASSES, D, generator=generator_for(0))
    generator = generator_for(1, seed)
    labels = torch.randint(CLASSES, (n,), generator=generator)
    return Labelled(centres[labels] + spread * torch.randn(n, D, generator=generator) + 3.0, labels)


def some_clusters(n: int, D: int, spread: float) -> Parts:
    return {split: clusters(n, D, seed, spread) for split, seed in SPLITS.items()}


def textbook(train: Labelled, features: Tensor, strength: float) -> Tensor:
    """Linear regression on one-hot classes, its penalty ``strength`` mean variances."""
    X, Y = train.features.double(), F.one_hot(train.labels, CLASSES).double()
    centred, n = X - X.mean(0), len(X)
    penalty = strength * centred.square().mean() * torch.eye(X.shape[1], dtype=torch.float64)
    weights = torch.linalg.solve(centred.T @ centred / n + penalty, centred.T @ (Y - Y.mean(0)) / n)
    return ((features.double() - X.mean(0)) @ weights + Y.mean(0)).argmax(1)


@pytest.mark.parametrize(("n", "D"), [(400, 12), (60, 100)], ids=["many images", "few images"])
def test_the_linear_probe_is_the_textbooks_at_the_strength_that_is_best_on_val(
    n: int, D: int
) -> None:
    parts = some_clusters(n, D, spread=4.0)
    row = score_features(parts)
    on_val, on_test = (
        {
            strength: accuracy(
                textbook(parts["train"], parts[split].features, strength), parts[split].labels
            )
            for strength in RIDGE_STRENGTHS
        }
        for split in SPLITS
        if split != "train"
    )
    most = max(on_val.values())
    assert row["strength"] == max(s for s, value in on_val.items() if value == most)
    assert row["linear"] == pytest.approx(on_test[row["strength"]])
    assert min(on_val.values()) < most  # the choice is one
    assert row["dimensions"] == D


def test_the_linear_probe_does_not_mind_the_scale_of_features() -> None:
    parts = some_clusters(200, 12, spread=3.0)
    scaled: Parts = {
        split: Labelled(1000 * part.features, part.labels) for split, part in parts.items()
    }
    assert score_features(scaled) == score_features(parts)


def test_features_that_say_nothing_give_the_most_frequent_class() -> None:
    labels = torch.tensor([0, 2, 2, 2, 1])
    part = Labelled(torch.full((5, 3), 0.1), labels)
    row = score_features({"train": part, "val": part, "test": part})
    assert row["linear"] == row["knn"] == pytest.approx(60)


def test_principal_components_are_those_of_the_train_features() -> None:
    train, other = (clusters(n, 8, seed, 1.0).features for n, seed in ((100, 0), (30, 1)))
    found = principal_components(train, 3)(other)
    axes = torch.linalg.svd(train - train.mean(0), full_matrices=False).Vh[:3]
    expected = (other - train.mean(0)) @ axes.T
    torch.testing.assert_close(found.abs(), expected.abs(), rtol=1e-4, atol=1e-4)


def test_there_are_no_more_components_than_images_or_dimensions() -> None:
    features = clusters(5, 8, 0, 1.0).features
    assert principal_components(features, 100)(features).shape == (5, 5)


def codes_of_class(n: int, sizes: tuple[int, ...], seed: int) -> Labelled:
    """Random codes; the second one tells the class."""
    columns = [torch.randint(size, (n,), generator=generator_for(seed, size)) for size in sizes]
    return Labelled(torch.stack(columns, dim=1), columns[1] % CLASSES)


def test_softmax_regression_finds_the_code_that_tells_the_class_and_nothing_else() -> None:
    sizes = (4, 8, 16)
    parts: Parts = {
        split: codes_of_class(400 if split == "train" else 100, sizes, seed)
        for split, seed in SPLITS.items()
    }
    row = score_codes(parts, sizes)
    assert row["linear"] == 100
    assert row["dimensions"] == 28
    blind: Parts = {
        split: Labelled(part.features[:, :1], part.labels) for split, part in parts.items()
    }
    found = score_codes(blind, sizes[:1])
    assert found["linear"] < 50  # 25 by chance; 50 is almost six deviations above
    assert score_codes(blind, sizes[:1]) == found


def test_a_code_that_train_lacks_is_no_error() -> None:
    parts: Parts = {
        "train": Labelled(torch.tensor([[0], [1]]), torch.tensor([0, 1])),
        "val": Labelled(torch.tensor([[2]]), torch.tensor([1])),
        "test": Labelled(torch.tensor([[1], [3]]), torch.tensor([1, 1])),
    }
    assert score_codes(parts, (4,))["linear"] >= 50


def test_the_vote_is_that_of_a_slow_count() -> None:
    labels = torch.randint(CLASSES, (200, 6), generator=generator_for(0))
    expected = []
    for row in labels.tolist():
        votes = Counter(row)
        most = max(votes.values())
        expected.append(next(label for label in row if votes[label] == most))
    assert vote(labels, CLASSES).tolist() == expected
