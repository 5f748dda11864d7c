"""The Fréchet loss: its distance and its gradient are those of the formula."""

import numpy as np
import pytest
import torch
from torch import Tensor
from torch_fidelity.metric_fid import fid_statistics_to_metric

from stage1_tokenizer.frechet import HORIZON, FrechetLoss

FINITE = torch.tensor(True)


def real_and_made(D: int = 6) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    real, made = torch.randn(2, 400, D, generator=generator)
    mixing = torch.eye(D) + 0.3 * torch.randn(D, D, generator=generator)
    return real @ mixing + 0.5, made


def learned(real: Tensor, made: Tensor) -> FrechetLoss:
    loss = FrechetLoss(real.shape[1])
    loss.start(real)
    for step in range(HORIZON):
        loss.learn(made, step, FINITE)
    return loss


def variance(loss: FrechetLoss) -> Tensor:
    """Of the real features."""
    return loss.deviations.square().sum()


def squared_distance(made: Tensor, mean: Tensor, covariance: Tensor) -> Tensor:
    """Slowly, by the formula, with gradients."""
    centred = made - made.mean(0)
    product = (centred.T @ centred / len(made)) @ covariance
    root = torch.linalg.eigvals(product).real.clamp_min(0).sqrt().sum()
    shift = (made.mean(0) - mean).square().sum()
    return shift + centred.square().sum() / len(made) + covariance.trace() - 2 * root


def test_the_distance_is_torch_fidelitys() -> None:
    real, made = real_and_made()
    first, second = (
        {"mu": x.mean(0), "sigma": np.cov(x, rowvar=False, ddof=ddof)}
        for x, ddof in ((made.double().numpy(), 0), (real.double().numpy(), 1))
    )
    expected = fid_statistics_to_metric(first, second, False)["frechet_inception_distance"]
    loss = learned(real, made)
    found = float(loss.distance * variance(loss))
    assert found == pytest.approx(expected, rel=1e-4)
    assert found > 1


def test_the_gradient_is_that_of_the_distance() -> None:
    real, made = real_and_made()
    loss = learned(real, made)
    first, second = (made.double().requires_grad_() for _ in range(2))
    squared_distance(first, real.double().mean(0), torch.cov(real.double().T)).backward()
    (loss.double()(second) * variance(loss)).backward()
    assert first.grad is not None
    torch.testing.assert_close(second.grad, first.grad, rtol=1e-3, atol=1e-6)


def test_features_that_follow_it_come_to_lie_as_real_ones() -> None:
    real, made = real_and_made()
    made = made.clone().requires_grad_()
    loss = learned(real, made.detach())
    before = float(loss.distance)
    for step in range(HORIZON, 20 * HORIZON):  # slowly, beside the averages
        (gradient,) = torch.autograd.grad(loss(made), made)
        with torch.no_grad():
            made -= 0.005 * len(made) * variance(loss) * gradient
        loss.learn(made.detach(), step, FINITE)
    assert float(loss.distance) < before / 20


def test_it_pulls_at_nothing_before_it_has_seen_enough() -> None:
    real, made = real_and_made()
    loss = FrechetLoss(real.shape[1])
    loss.start(real)
    for step in range(HORIZON - 1):
        loss.learn(made, step, FINITE)
    made.requires_grad_()
    value = loss(made)
    value.backward()
    assert value == 0
    assert not made.grad.any()  # type: ignore[union-attr]
    assert loss.distance == 1


def test_a_step_that_is_not_finite_changes_nothing() -> None:
    real, made = real_and_made()
    loss = learned(real, made)
    before = {name: buffer.clone() for name, buffer in loss.named_buffers()}
    loss.learn(torch.full_like(made, torch.nan), HORIZON, torch.tensor(False))
    for name, buffer in loss.named_buffers():
        assert torch.equal(buffer, before[name]), name


def test_made_features_that_hardly_vary_are_not_thrown_far() -> None:
    real, made = real_and_made()
    made[:, 0] *= 1e-3
    carrier = learned(real, made).carrier
    assert torch.linalg.eigvalsh(carrier).max() == pytest.approx(3)
