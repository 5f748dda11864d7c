"""The seam between the loop and a stage: what a task brings."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor, nn


@dataclass(frozen=True)
class Evaluation:
    score: float  # lower is better: decides which weights are kept
    text: str  # for the console
    scalars: Mapping[str, float]  # for stats.jsonl


class Task(Protocol):
    """What a stage brings to the loop.

    Of several processes (ranks) each has a task; all are alike after every step.
    """

    model: nn.Module  # holds the trained parameters
    networks: Sequence[nn.Module]  # the parts of it that are worth compiling
    curves: Mapping[str, Sequence[str]]  # panels of curves.png: title -> names of scalars

    def start(self) -> None:
        """Called before the first step of a new run, on rank 0 only."""

    def loss(self, step: int, part: slice) -> dict[str, Tensor]:
        """Scalars of a part of the step's batch, as means over its images.

        "loss" is minimized, the others are logged. What is drawn at random is drawn for the whole
        batch, so that it does not matter in which parts the batch is taken.
        """
        ...

    def after_step(self, step: int, finite: Tensor) -> None:
        """Called when all parts have been seen: what learns without gradients learns here.

        Changes nothing where ``finite``, a bool on the device, is false.
        """

    def keys(self, step: int) -> Sequence[str]:
        """The names of the samples in the step's batch."""
        ...

    def evaluate(self, step: int) -> Evaluation:
        """Held-out figures after this many steps; may draw pictures into the run folder."""
        ...

    def save_model(self) -> None:
        """Write the model folder; called whenever the score has improved."""

    def state_dict(self) -> dict[str, Any]:
        """Everything that training changes, besides the optimizer."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None: ...
