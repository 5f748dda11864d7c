"""The one training loop. It knows steps, losses and folders; images and codes are the task's."""

import contextlib
import math
import signal
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from pqvae import distributed
from pqvae.console import say
from pqvae.errors import UserError
from pqvae.runtime import Runtime
from pqvae.signals import Stopped, StopRequest
from pqvae.training.checkpoint import digest_of, load_newest_state, save_state
from pqvae.training.config import TrainerConfig
from pqvae.training.curves import draw_curves
from pqvae.training.nonfinite import NonFiniteGuard
from pqvae.training.optim import scheduled_rate
from pqvae.training.run_log import RunLog
from pqvae.training.step import TrainStep
from pqvae.training.task import Task


def train(
    task: Task,
    config: TrainerConfig,
    runtime: Runtime,
    folder: Path,
    settings: Mapping[str, Any] | None = None,
) -> dict[str, float]:
    """Train the task's model; the same call again resumes from the last saved state.

    What a step does is a function of (seed, step) and of what the state holds, so that a run that
    was cut ends as a straight one: to the bit on the same processor.

    Args:
        task: What is trained, on what.
        config: How long, and how.
        runtime: Where, and in which precision.
        folder: The run folder, there already.
        settings: The run's whole config in plain values: sinks show it beside the run.

    Returns:
        "steps" that were done, the best "score", and "seconds" of training and evaluation.

    Raises:
        UserError: The loss or the gradient is not finite, or the processes have come apart.
        Stopped: A signal asked to end, and the state has been saved.
    """
    with StopRequest() as request, contextlib.ExitStack() as stack:
        # Where the run stands: at its newest state that is whole, or at its start.
        newest = distributed.on_rank_zero(lambda: load_newest_state(folder / "state"))
        step, state = newest or (0, None)
        log = RunLog(folder, config, step, settings or {})
        stack.callback(log.close)
        run = _Run(task, config, runtime, folder, log)
        run.begin(step, state, request)

        while True:
            # Evaluate at every interval and at the end: once, also if the run was cut just then.
            if run.step > run.evaluated and run.is_due(config.evaluate_every):
                run.evaluate(request)

            # Asked to stop? Any rank may have got the signal; all save and leave at this step.
            if distributed.any_rank(bool(request.signum)):
                run.save()
                text = f"stopped after step {run.step} of {config.steps}, saved in {folder}"
                raise Stopped(request.signum or signal.SIGTERM, text)

            # Done? All steps, or too many evaluations without a better score.
            if run.step >= config.steps or 0 < config.patience <= run.waited:
                break

            # A step: each rank its parts of the batch, then the same update in all of them.
            run.do_step()

            # Log means over the interval; here at the latest a GPU is waited for.
            if run.is_due(config.log_every):
                run.guard.check()
                log.interval(run.step, scheduled_rate(config, run.step - 1))

        distributed.on_rank_zero(run.draw_curves)
        return {"steps": run.step, "score": run.best, "seconds": run.seconds}


class _Run:
    """What ``train`` carries from step to step, all of it in the saved state."""

    COUNTERS = ("evaluated", "best", "best_step", "waited")

    def __init__(
        self, task: Task, config: TrainerConfig, runtime: Runtime, folder: Path, log: RunLog
    ) -> None:
        self.task, self.config, self.runtime, self.folder = task, config, runtime, folder
        self.log = log
        self.guard = NonFiniteGuard(config.skip_nonfinite, task.keys, log)
        self.train_step = TrainStep(task, config, runtime)
        self.step = self.evaluated = self.best_step = self.waited = 0  # the first three are steps
        self.best = float("inf")
        self._saved: tuple[int, int] | None = None  # step and evaluated of the newest state
        self._started = 0.0  # by the clock, as if the run had never been cut

    @property
    def seconds(self) -> float:
        return time.perf_counter() - self._started

    def begin(self, step: int, state: dict[str, Any] | None, request: StopRequest) -> None:
        """Resume from the state; without one, start on rank 0: there a signal ends at once."""
        seconds = 0.0
        if state is not None:
            self.step, seconds = step, state["seconds"]
            self.load_state_dict(state)
            self._saved = self.step, self.evaluated
            say(f"resuming from step {self.step} in {self.folder}")
            self._say_other_length(state.get("steps"))
        else:
            with request.at_once():
                distributed.on_rank_zero(self.task.start)
            if distributed.world_size() > 1:
                self.task.load_state_dict(distributed.broadcast(self.task.state_dict()))
        if self.config.compile:
            for network in self.task.networks:
                network.compile()
        self._started = time.perf_counter() - seconds

    def _say_other_length(self, before: int | None) -> None:
        """Say what becomes of the learning rate where the run is now to have other steps."""
        now = self.config.steps
        if before is None or before == now or self.step >= now:
            return
        config = replace(self.config, steps=before)
        was, is_now = (scheduled_rate(one, self.step) for one in (config, self.config))
        say(
            f"trainer.steps was {before} and is {now}: the learning rate goes on along the curve "
            f"of {now} steps, at {is_now:.3g} instead of {was:.3g}"
        )

    def is_due(self, every: int) -> bool:
        return self.step % every == 0 or self.step == self.config.steps

    def do_step(self) -> None:
        scalars, finite = self.train_step(self.step)
        self.log.add(scalars, finite)
        self.guard.add(self.step, scalars["loss"], scalars["gradient_norm"])
        if self.runtime.device.type == "cpu":  # elsewhere this would wait for the device
            self.guard.check()
        self.step += 1

    def evaluate(self, request: StopRequest) -> None:
        """Evaluate on rank 0, and save; after a signal, leave it for the next time."""
        self.guard.check()
        self.task.model.eval()
        found = distributed.on_rank_zero(lambda: self._evaluation(request))
        if found is None:
            return
        score, text, scalars = found
        if not math.isfinite(score):
            raise UserError(f"step {self.step}: the held-out score is {score}")
        self.evaluated = self.step
        self.waited = 0 if score < self.best else self.waited + 1
        if self.waited == 0:
            self.best, self.best_step = score, self.step
            distributed.on_rank_zero(self.task.save_model)
        self.log.note(self.step, text, scalars)
        self.save()

    def _evaluation(self, request: StopRequest) -> tuple[float, str, dict[str, float]] | None:
        """Score, text and scalars in plain values, for all ranks; None after a signal."""
        try:
            # Eager, as held-out batches of other sizes are not worth compiling for.
            with (
                request.at_once(),
                torch.inference_mode(),
                torch.compiler.set_stance("force_eager"),
            ):
                found = self.task.evaluate(self.step)
        except Stopped:
            return None
        return found.score, found.text, dict(found.scalars)

    def save(self) -> None:
        """Write the state, unless the newest one is this."""
        if self._saved == (self.step, self.evaluated):
            return
        state = self.state_dict()
        distributed.check_ranks_agree(
            lambda: digest_of(state["task"]), f"step {self.step}: the state"
        )
        folder = self.folder / "state"
        distributed.on_rank_zero(lambda: save_state(folder, self.step, state, {self.best_step}))
        self._saved = self.step, self.evaluated
        self.log.mark(self.step)  # none of this counts into the speed

    def draw_curves(self) -> None:
        if not draw_curves(self.log.path, self.folder / "curves.png", self.task.curves):
            say("no curves.png: pip install 'pqvae[plots]' first")

    def state_dict(self) -> dict[str, Any]:
        return {
            "task": self.task.state_dict(),
            "optimizer": self.train_step.optimizer.state_dict(),
            "health": self.guard.state_dict(),
            "totals": self.log.totals,
            "seconds": self.seconds,
            "steps": self.config.steps,
            **{name: getattr(self, name) for name in self.COUNTERS},
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.task.load_state_dict(state["task"])
        self.train_step.optimizer.load_state_dict(state["optimizer"])
        self.guard.load_state_dict(state["health"])
        device = self.runtime.device
        self.log.totals = {name: value.to(device) for name, value in state["totals"].items()}
        for name in self.COUNTERS:
            setattr(self, name, state[name])
