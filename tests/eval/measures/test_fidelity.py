import pkgutil

import pytest
import torch
from torch import Tensor

from eval.measures.fidelity import fid, inception_score, kid, precision_recall
from eval.measures.metrics import METRICS
from eval.measures.statistics import Reference
from eval.networks.features import Features


def as_features(pool: Tensor, logits: Tensor | None = None) -> Features:
    return Features(pool, logits, "")


@pytest.mark.parametrize("name", METRICS)
def test_every_metric_of_the_table_gives_the_scores_that_it_announces(name: str) -> None:
    metric = METRICS[name]
    images, real = (
        as_features(torch.rand(12, 4, generator=torch.Generator().manual_seed(seed)), torch.eye(12))
        for seed in range(2)
    )
    found = pkgutil.resolve_name(metric.compute)(images, Reference(real))
    assert {score.key for score in metric.scores} <= found.keys()


def gaussian(n: int, mean: Tensor, root: Tensor, seed: int) -> Tensor:
    """Points with exactly this sample mean, and with the sample covariance ``root @ root.T``."""
    generator = torch.Generator().manual_seed(seed)
    points = torch.randn(n, len(mean), dtype=torch.float64, generator=generator)
    points -= points.mean(0)
    white = points @ torch.linalg.inv(torch.linalg.cholesky(points.T.cov())).T
    return white @ root.T + mean


def square_root(matrix: Tensor) -> Tensor:
    values, vectors = torch.linalg.eigh(matrix)
    return vectors @ values.clamp_min(0).sqrt().diag() @ vectors.T


def test_fid_of_two_gaussians_is_the_closed_formula() -> None:
    D = 16
    generator = torch.Generator().manual_seed(0)
    means = torch.randn(2, D, dtype=torch.float64, generator=generator)
    roots = torch.randn(2, D, D, dtype=torch.float64, generator=generator)
    first, second = (gaussian(100, means[i], roots[i], seed=i) for i in range(2))
    cov = [root @ root.T for root in roots]
    cross = square_root(square_root(cov[0]) @ cov[1] @ square_root(cov[0]))
    expected = (means[0] - means[1]).square().sum() + (cov[0] + cov[1] - 2 * cross).trace()
    found = fid(as_features(first), Reference(as_features(second)))["fid"]
    assert found == pytest.approx(expected.item(), rel=1e-8)


def test_fid_of_a_set_with_itself_is_zero() -> None:
    pool = torch.rand(200, 16, generator=torch.Generator().manual_seed(0))
    assert fid(as_features(pool), Reference(as_features(pool)))["fid"] == pytest.approx(0, abs=1e-9)


def test_kid_is_near_zero_for_one_distribution_and_not_for_two() -> None:
    generator = torch.Generator().manual_seed(0)
    first, second = (torch.randn(300, 16, generator=generator) for _ in range(2))
    alike = kid(as_features(first), Reference(as_features(second)))
    apart = kid(as_features(first), Reference(as_features(second + 0.5)))
    assert alike["kid_subset_size"] == 300
    assert abs(alike["kid"]) < 0.05  # over seeds it scatters by 0.01 about zero
    assert apart["kid"] > 0.5


def test_kid_takes_all_images_where_there_are_few() -> None:
    pool = torch.rand(30, 16, generator=torch.Generator().manual_seed(0))
    found = kid(as_features(pool[:20]), Reference(as_features(pool)))
    assert found["kid_subset_size"] == 20
    assert "kid_std" not in found  # every subset is the same set: no spread to speak of


def test_inception_score_of_sure_and_balanced_logits_is_the_number_of_classes() -> None:
    logits = 100 * torch.eye(4).repeat(500, 1)
    found = inception_score(as_features(logits, logits), Reference(as_features(logits)))
    assert found["isc"] == pytest.approx(4, rel=0.02)  # splits are balanced only by chance
    sure = torch.zeros(100, 4)
    found = inception_score(as_features(sure, sure), Reference(as_features(sure)))
    assert found["isc"] == pytest.approx(1)


def test_precision_and_recall_tell_fidelity_from_coverage() -> None:
    generator = torch.Generator().manual_seed(0)
    real = torch.randn(200, 4, generator=generator)
    narrow = 0.1 * torch.randn(200, 4, generator=generator)
    same = precision_recall(as_features(real), Reference(as_features(real)))
    assert same == {"precision": 1.0, "recall": 1.0, "f_score": 1.0}
    found = precision_recall(as_features(narrow), Reference(as_features(real)))
    assert found["precision"] > 0.95
    assert found["recall"] < 0.05
