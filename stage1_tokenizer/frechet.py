"""The Fréchet distance between made and real pictures' features, as a loss of a batch.

    d^2 = |m - m_r|^2 + tr(S + S_r - 2 (S S_r)^(1/2))

for features of mean m and covariance S of made pictures, m_r and S_r of real ones (Dowson & Landau
1982; of Inception's features this is FID). Its gradient by one feature x of n made ones is
2 / n (x - t(x)), where t carries the one Gaussian onto the other over the least distance (Knott &
Smith 1984):

    t(x) = m_r + A (x - m),    A = S_r^(1/2) (S_r^(1/2) S S_r^(1/2))^(-1/2) S_r^(1/2)

So |x - t(x)|^2 with t held fixed is a loss of the same gradient, to which each picture adds by
itself. A batch is far too small to tell S: m and S are running averages, and all is done along the
principal axes of real features that vary most, where S_r is diagonal and m_r 0.
"""

import torch
from torch import Tensor, nn

AXES = 256  # at most
HORIZON = 32  # steps that the running averages reach back over
RENEW_EVERY = 16  # steps, for which t is held fixed
LONGEST = 3.0  # of A's stretches: where made features hardly vary, they have no bound
LEAST = 1e-6  # of eigenvalues, relative to the largest


class FrechetLoss(nn.Module):
    """Draws features of made pictures, float32 (B, D), to where they would lie among real ones.

    All that it knows is in its buffers: ``start`` and ``learn`` set them.

    Attributes:
        distance: d^2 when t was renewed, as a share of the real features' variance; 1 until then.
    """

    real_mean: Tensor
    axes: Tensor
    deviations: Tensor
    mean: Tensor
    products: Tensor
    steps: Tensor
    carried_mean: Tensor
    carrier: Tensor
    ready: Tensor
    distance: Tensor

    def __init__(self, dimensions: int) -> None:
        super().__init__()
        R = min(AXES, dimensions)
        self.register_buffer("real_mean", torch.zeros(dimensions))
        self.register_buffer("axes", torch.zeros(dimensions, R))
        for name in ("deviations", "mean", "carried_mean"):  # the last: m as it is in t
            self.register_buffer(name, torch.zeros(R))
        for name in ("products", "carrier"):  # the running mean of x x^T; A
            self.register_buffer(name, torch.zeros(R, R))
        for name in ("steps", "ready"):  # learned from; 1 once t stands on enough of them
            self.register_buffer(name, torch.zeros(()))
        self.register_buffer("distance", torch.ones(()))

    def start(self, real: Tensor) -> None:
        """Measure the features of real pictures, float32 (n, D)."""
        values, vectors = torch.linalg.eigh(torch.cov(real.double().cpu().T))
        R = len(self.deviations)
        self.real_mean.copy_(real.mean(0))
        self.axes.copy_(vectors[:, -R:])
        self.deviations.copy_(values[-R:].clamp_min(0).sqrt())

    def forward(self, features: Tensor) -> Tensor:
        """The mean of |x - t(x)|^2, as a share of the real features' variance; 0 until ready."""
        with torch.autocast(features.device.type, enabled=False):
            along = self._along(features)
            wanted = (along.detach() - self.carried_mean) @ self.carrier
        error = (along - wanted).square().sum(1).mean()
        return self.ready * error / self.deviations.square().sum()

    @torch.no_grad()
    def learn(self, features: Tensor, step: int, finite: Tensor) -> None:
        """Account for the features (B, D) of a step's whole batch; for none where not finite."""
        self.steps += finite
        share = finite / self.steps.clamp(1, HORIZON)
        along = torch.where(finite, self._along(features), 0)
        self.mean.lerp_(along.mean(0), share)
        self.products.lerp_(along.T @ along / len(along), share)
        if (step + 1) % RENEW_EVERY == 0 and self.steps >= HORIZON:
            self._renew()

    def _along(self, features: Tensor) -> Tensor:
        return (features - self.real_mean) @ self.axes

    def _renew(self) -> None:
        deviations, mean = self.deviations.double().cpu(), self.mean.double().cpu()
        covariance = self.products.double().cpu() - mean.outer(mean)
        scales = deviations.outer(deviations)  # S_r^(1/2) on both sides, as it is diagonal
        values, vectors = torch.linalg.eigh(scales * covariance)
        values = values.clamp_min(LEAST * float(values[-1]))
        carrier = scales * ((vectors * values.rsqrt()) @ vectors.T)
        stretches, directions = torch.linalg.eigh((carrier + carrier.T) / 2)
        self.carrier.copy_((directions * stretches.clamp(0, LONGEST)) @ directions.T)
        self.carried_mean.copy_(self.mean)
        variance = deviations.square().sum()
        squared = mean.square().sum() + covariance.trace() + variance - 2 * values.sqrt().sum()
        self.distance.copy_(squared / variance)
        self.ready.fill_(1)
