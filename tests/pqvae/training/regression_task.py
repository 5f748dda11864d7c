"""A task that trains in milliseconds, and what may happen to it on the way."""

import json
import os
import signal
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pqvae.randomness import generator_for
from pqvae.runtime import Runtime
from pqvae.training.checkpoint import digest_of
from pqvae.training.config import TrainerConfig
from pqvae.training.task import Evaluation

CPU = Runtime(torch.device("cpu"), bf16=False, reason="a test")
TRUTH = torch.tensor([1.0, -2.0, 0.5])


class CutError(Exception):
    """Stands for the power failing."""


class Regression:
    """Find TRUTH from noisy examples; keeps a moving mean as something learned without gradients.

    Args:
        scores: What the evaluations shall find; () for the real error.
        events: Called with the step when a part of its loss is computed, or "evaluate".
    """

    def __init__(
        self,
        folder: Path,
        *,
        scores: Sequence[float] = (),
        events: Callable[[int | str], None] = lambda _: None,
    ) -> None:
        torch.manual_seed(0)
        self.model: nn.Module = nn.Linear(3, 1)
        self.networks: Sequence[nn.Module] = (self.model,)
        self.curves: Mapping[str, Sequence[str]] = {}  # drawing takes longer than all the rest
        self.folder, self.scores, self.events = folder, list(scores), events
        self.moving_mean = torch.zeros(())
        self.started = 0
        self.saved: list[int] = []
        self.evaluated: list[int] = []
        self.weights_at: dict[int, Tensor] = {}
        self._targets: list[Tensor] = []

    def start(self) -> None:
        self.started += 1

    def loss(self, step: int, part: slice) -> dict[str, Tensor]:
        self.events(step)
        generator = generator_for(1, step)
        inputs = torch.randn(16, 3, generator=generator)[part]
        targets = inputs @ TRUTH + 0.01 * torch.randn(16, generator=generator)[part]
        self._targets.append(targets)
        mse = (self.model(inputs).squeeze(1) - targets).square().mean()
        return {"loss": mse, "mean": targets.mean()}

    def after_step(self, step: int, finite: Tensor) -> None:
        targets, self._targets = torch.cat(self._targets), []
        self.moving_mean.lerp_(targets.mean(), 0.1 * finite)

    def keys(self, step: int) -> list[str]:
        return [f"example-{step}-{index}" for index in range(16)]

    def evaluate(self, step: int) -> Evaluation:
        self.events("evaluate")
        self.evaluated.append(step)
        self.weights_at[step] = self.weights().clone()
        error = float((self.weights() - TRUTH).square().mean())
        score = self.scores[len(self.evaluated) - 1] if self.scores else error
        return Evaluation(score, f"error {error:.4f}", {"error": error})

    def weights(self) -> Tensor:
        return self.model.get_parameter("weight").detach().squeeze(0)

    def save_model(self) -> None:
        self.saved.append(self.evaluated[-1])
        torch.save(self.model.state_dict(), self.folder / "best.pt")

    def state_dict(self) -> dict[str, Any]:
        return {"model": self.model.state_dict(), "moving_mean": self.moving_mean}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.model.load_state_dict(state["model"])
        self.moving_mean.copy_(state["moving_mean"])


def cut_at(*steps: int) -> Callable[[int | str], None]:
    """Events of which the ones at these steps are the power failing, once each."""
    left = list(steps)

    def event(step: int | str) -> None:
        if step in left:
            left.remove(int(step))
            raise CutError

    return event


def signal_at(event: int | str, number: signal.Signals) -> Callable[[int | str], None]:
    """Events at one of which this process gets a signal."""

    def on(happened: int | str) -> None:
        if happened == event:
            os.kill(os.getpid(), number)

    return on


def config_of(**changes: Any) -> TrainerConfig:
    config = TrainerConfig(
        steps=10, batch_size=16, learning_rate=0.3, log_every=2, evaluate_every=2
    )
    return replace(config, **changes)


def stats(folder: Path) -> list[dict[str, Any]]:
    """The lines of stats.jsonl without the one number that is a time."""
    lines = [json.loads(line) for line in (folder / "stats.jsonl").read_text().splitlines()]
    for line in lines:
        line.pop("images_per_second", None)
    return lines


def alike(task: Regression, other: Regression) -> bool:
    """Whether everything that training changes is the same to the bit."""
    return digest_of(task.state_dict()) == digest_of(other.state_dict())
