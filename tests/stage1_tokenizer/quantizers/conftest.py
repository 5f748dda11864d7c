"""Every kind of quantizer, untrained, started and trained on the same synthetic latents."""

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from pqvae.randomness import generator_for
from stage1_tokenizer.config import (
    FSQConfig,
    GumbelConfig,
    QuantizerConfig,
    ResidualConfig,
    SpatialConfig,
)
from stage1_tokenizer.quantizers import KINDS
from stage1_tokenizer.quantizers.codebook import Codebook, Seen
from stage1_tokenizer.quantizers.contract import Quantizer

SHAPE, DIM = (3, 4, 4), 48  # of a latent
MIXED = (8, 3, 16, 2, 5)
BATCH = 64
MISSING = importlib.util.find_spec("vector_quantize_pytorch") is None
NEEDS_LIBRARY = pytest.mark.skipif(MISSING, reason="vector-quantize-pytorch is not installed")
OWN: dict[str, QuantizerConfig] = {
    "residual": ResidualConfig(num_codes=5, codebook_sizes=MIXED, learned_codes=5, revive_every=20),
    "residual-shared": ResidualConfig(
        num_codes=5, codebook_sizes=MIXED, learned_codes=2, rank=20, subspace=4, revive_every=20
    ),
    "gumbel": GumbelConfig(num_codes=5, codebook_sizes=MIXED, revive_every=20),
}
LIBRARY: dict[str, QuantizerConfig] = {
    "spatial": SpatialConfig(codebook_size=8, revive_every=20),
    "spatial-levels": SpatialConfig(codebook_size=8, levels=2, revive_every=20),
    "spatial-fold": SpatialConfig(codebook_size=16, levels=3, fold=2, revive_every=20),
    "fsq": FSQConfig(levels=(4, 3), revive_every=20),
}


@dataclass(frozen=True)
class Case:
    """One kind of quantizer with one config."""

    config: QuantizerConfig

    def untrained(self) -> Quantizer[Any]:
        torch.manual_seed(0)
        return KINDS[type(self.config)](self.config, SHAPE)

    def started(self, encoded: Tensor | None = None) -> Quantizer[Any]:
        quantizer = self.untrained()
        quantizer.start(encoded_of(300, 0) if encoded is None else encoded, generator_for(0))
        return quantizer

    @staticmethod
    def encoded(n: int, seed: int) -> Tensor:
        return encoded_of(n, seed)

    @staticmethod
    def latents(quantizer: Quantizer[Any], n: int, seed: int) -> Tensor:
        return quantizer.normalize(encoded_of(n, seed))

    def train(self, quantizer: Quantizer[Any], steps: range, total: int = 100) -> None:
        """Plain gradient descent on |f - f_N|^2, which carries nothing from step to step."""
        parameters = list(quantizer.parameters())
        rate = 10.0 if isinstance(self.config, GumbelConfig) else 0.3
        lengths, finite = torch.full((BATCH,), quantizer.num_codes), torch.tensor(True)
        for step in steps:
            latents, progress = self.latents(quantizer, BATCH, 100 + step), step / total
            description = quantizer.describe(latents, progress, generator_for(2, step))
            if parameters:
                loss = (description.prefix(lengths) - latents).square().mean()
                loss = loss if description.loss is None else loss + description.loss
                gradients = torch.autograd.grad(loss, parameters)
                with torch.no_grad():
                    for parameter, gradient in zip(parameters, gradients, strict=True):
                        parameter -= rate * gradient
            quantizer.learn(description, step, progress, finite, generator_for(3, step))


def encoded_of(n: int, seed: int) -> Tensor:
    """Correlated numbers (n, DIM), as an encoder's are."""
    mixing = torch.randn(DIM, DIM, generator=generator_for(9)) / torch.arange(1, DIM + 1) ** 0.5
    return 2 * torch.randn(n, DIM, generator=generator_for(1, seed)) @ mixing.T


@pytest.fixture(
    params=[
        *(pytest.param(config, id=name) for name, config in OWN.items()),
        *(pytest.param(c, id=name, marks=NEEDS_LIBRARY) for name, c in LIBRARY.items()),
    ]
)
def case(request: pytest.FixtureRequest) -> Case:
    """Every kind, one after the other."""
    return Case(request.param)


@pytest.fixture(scope="session")
def configs() -> dict[str, QuantizerConfig]:
    """Those of all cases, by name."""
    return OWN | LIBRARY


def see_batch(codebook: Codebook, residual: Tensor) -> Seen:
    """What a codebook sees of residuals (B, D) that its nearest entries describe."""
    left, codes = [codebook.enter(residual)], []
    for index in range(len(codebook.sizes)):
        codes.append(codebook.nearest(index, left[-1]))
        left.append(left[-1].clone())
        codebook.add(index, codes[-1], left[-1], alpha=-1)
    parts = torch.stack(left)
    energies = parts.square().sum(2).mean(1)
    return Seen(torch.stack(codes, dim=1), residual, parts, energies[:-1] - energies[1:])


@pytest.fixture(scope="session")
def see() -> Callable[[Codebook, Tensor], Seen]:
    """``see(codebook, residual)``: see ``see_batch``."""
    return see_batch
