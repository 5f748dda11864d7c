"""What a run tells: a line per interval on stderr, its numbers to ``stats.jsonl`` and sinks."""

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pqvae import distributed
from pqvae.console import format_seconds, say
from pqvae.files import atomic_path
from pqvae.training.config import TrainerConfig
from pqvae.training.sinks import Sinks


class RunLog:
    """The log of one training run, written by rank 0."""

    def __init__(
        self, folder: Path, config: TrainerConfig, first_step: int, settings: Mapping[str, Any]
    ) -> None:
        """Open the log of a run that stands at this step.

        Args:
            folder: The run folder, there already.
            config: Of the run.
            first_step: How many steps are done; what is logged of later ones will be done again.
            settings: What sinks show beside the run.
        """
        self.path = folder / "stats.jsonl"
        self.total_steps, self.batch_size = config.steps, config.batch_size
        self.totals: dict[str, Tensor] = {}  # of scalars since the last line, "finite": of steps
        self._sinks: Sinks | None = None
        if distributed.is_rank_zero():
            self._sinks = Sinks(config.sinks, folder, settings, first_step)
            self._keep_until(first_step)
        self.mark(first_step)

    def mark(self, step: int) -> None:
        """Start an interval: what runs from here on counts into the next line's speed."""
        self._step, self._time = step, time.perf_counter()

    def add(self, scalars: Mapping[str, Tensor], finite: Tensor) -> None:
        """Count a step into the interval's means if it was finite; no device is waited for."""
        for name, value in {**scalars, "finite": torch.ones_like(scalars["loss"])}.items():
            value = torch.where(finite, value, 0)
            self.totals[name] = self.totals[name] + value if name in self.totals else value

    def interval(self, step: int, learning_rate: float) -> None:
        """Say where the training stands, and write the means since the last call.

        Args:
            step: How many are done.
            learning_rate: Of the last of them.
        """
        count = float(self.totals.pop("finite"))
        means = {name: float(total) / count for name, total in self.totals.items() if count}
        self.totals = {}
        rate = (step - self._step) / max(time.perf_counter() - self._time, 1e-9)
        eta = format_seconds((self.total_steps - step) / max(rate, 1e-9))
        parts = " ".join(f"{name} {value:.4g}" for name, value in means.items())
        speed = f"{rate * self.batch_size:.0f} img/s"
        say(f"step {step}/{self.total_steps} | {speed} | eta {eta} | {parts}")
        speed_and_rate = {
            "learning_rate": learning_rate,
            "images_per_second": rate * self.batch_size,
        }
        self.record(step, {**means, **speed_and_rate})
        self.mark(step)

    def note(self, step: int, text: str, scalars: Mapping[str, float]) -> None:
        """Say what an evaluation found, or what has happened; write its numbers."""
        say(f"step {step}/{self.total_steps} | {text}")
        self.record(step, scalars)

    def record(self, step: int, scalars: Mapping[str, float]) -> None:
        if self._sinks is None:  # not rank 0
            return
        line = {"step": step, "images_seen": step * self.batch_size, **scalars}
        with open(self.path, "a") as file:
            file.write(json.dumps(line) + "\n")
        self._sinks.record(step, scalars)

    def close(self) -> None:
        if self._sinks is not None:
            self._sinks.close()

    def _keep_until(self, step: int) -> None:
        """Drop the lines of steps that are about to be done again."""
        if not self.path.exists():
            return
        kept = []
        for line in self.path.read_text().splitlines():
            try:
                if json.loads(line)["step"] <= step:
                    kept.append(line + "\n")
            except (json.JSONDecodeError, KeyError):
                continue  # the line that a kill cut short
        with atomic_path(self.path) as temporary:
            temporary.write_text("".join(kept))
