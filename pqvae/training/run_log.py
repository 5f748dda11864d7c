"""What a run tells: one line per interval on stderr, the same numbers in ``stats.jsonl``."""

import json
import time
from collections.abc import Mapping
from pathlib import Path

from pqvae import distributed
from pqvae.console import format_seconds, say
from pqvae.files import atomic_path
from pqvae.training.sinks import Sinks


class RunLog:
    """The log of one training run, written by the first of its processes."""

    def __init__(
        self,
        folder: Path,
        total_steps: int,
        batch_size: int,
        first_step: int,
        sinks: Sinks | None = None,
    ) -> None:
        self.path, self._sinks = folder / "stats.jsonl", sinks
        self.total_steps, self.batch_size = total_steps, batch_size
        if distributed.is_rank_zero():
            self._keep_until(first_step)
        self.mark(first_step)

    def mark(self, step: int) -> None:
        """Start an interval: what runs from here on counts into the next line's speed."""
        self._step, self._time = step, time.perf_counter()

    def interval(self, step: int, scalars: Mapping[str, float]) -> None:
        """Say where the training stands, and append the numbers to ``stats.jsonl``."""
        rate = (step - self._step) / max(time.perf_counter() - self._time, 1e-9)
        eta = format_seconds((self.total_steps - step) / max(rate, 1e-9))
        parts = " ".join(f"{name} {value:.4g}" for name, value in scalars.items())
        speed = f"{rate * self.batch_size:.0f} img/s"
        say(f"step {step}/{self.total_steps} | {speed} | eta {eta} | {parts}")
        self.record(step, {**scalars, "images_per_second": rate * self.batch_size})
        self.mark(step)

    def note(self, step: int, text: str, scalars: Mapping[str, float]) -> None:
        """Say what an evaluation found, or what has happened; append its numbers."""
        say(f"step {step}/{self.total_steps} | {text}")
        self.record(step, scalars)

    def record(self, step: int, scalars: Mapping[str, float]) -> None:
        if not distributed.is_rank_zero():
            return
        line = {"step": step, "images_seen": step * self.batch_size, **scalars}
        with open(self.path, "a") as file:
            file.write(json.dumps(line) + "\n")
        if self._sinks:
            self._sinks.record(step, scalars)

    def close(self) -> None:
        if self._sinks:
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
