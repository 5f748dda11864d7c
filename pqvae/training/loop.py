"""The one training loop. It knows steps, losses and folders; images and codes are the task's."""

import contextlib
import math
import signal
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import yaml
from torch import Tensor, nn

from pqvae import distributed
from pqvae.console import say
from pqvae.data.batches import parts_of_batch
from pqvae.errors import UserError
from pqvae.randomness import generator_for
from pqvae.runtime import Runtime
from pqvae.signals import Stopped, StopRequest
from pqvae.training.checkpoint import digest_of, load_newest_state, save_state
from pqvae.training.config import TrainerConfig
from pqvae.training.curves import draw_curves
from pqvae.training.nonfinite import NonFiniteGuard
from pqvae.training.optim import adamw, learning_rate
from pqvae.training.run_log import RunLog
from pqvae.training.sinks import Sinks
from pqvae.training.task import Evaluation, Task

if TYPE_CHECKING:
    pass


def train(task: Task, config: TrainerConfig, runtime: Runtime, folder: Path) -> dict[str, float]:
    """Train the task's model; the same call again goes on from the last saved state.

    What a step does is a function of (seed, step) and of what the state holds, so that a run that
    was cut ends as a straight one: to the bit on the same processor.

    Returns:
        "steps" that were done, the best "score", and "seconds" of training and evaluation.

    Raises:
        UserError: The loss or the gradient is not finite, or the processes have come apart.
        Stopped: A signal asked to end, and the state has been saved.
    """
    with StopRequest() as request:
        training = _Training(task, config, runtime, folder, request)
        try:
            return training.run()
        finally:
            training.log.close()


class _Training:
    """What ``train`` carries from step to step, all of it in the saved state."""

    COUNTERS = ("evaluated", "best", "best_step", "waited")

    def __init__(
        self,
        task: Task,
        config: TrainerConfig,
        runtime: Runtime,
        folder: Path,
        request: StopRequest,
    ) -> None:
        self.task, self.config, self.runtime, self.folder = task, config, runtime, folder
        self.request = request
        self.parts = parts_of_batch(config.batch_size, config.accumulate)
        self.parameters = list(task.model.parameters())
        self.optimizer = adamw(task.model, config.weight_decay, config.beta2)
        self.totals: dict[str, Tensor] = {}  # of the scalars since the last log line
        self.evaluated = self.best_step = self.waited = 0  # the first two are steps
        self.best, self.seconds = float("inf"), 0.0

        newest = distributed.on_rank_zero(lambda: load_newest_state(folder / "state"))
        self.step = newest[0] if newest else 0
        self.log = RunLog(folder, config.steps, config.batch_size, self.step, self.open_sinks())
        self.guard = NonFiniteGuard(config.skip_nonfinite, task.keys, self.log)
        if newest:
            self.load_state_dict(newest[1])
            say(f"going on from step {self.step} in {folder}")
        else:
            with request.at_once():
                distributed.on_rank_zero(task.start)
            if distributed.world_size() > 1:
                task.load_state_dict(distributed.broadcast(task.state_dict()))
        self.saved = (self.step, self.evaluated) if newest else None
        self.started = time.perf_counter() - self.seconds
        if config.compile:
            for network in task.networks:
                network.compile()

    def open_sinks(self) -> Sinks | None:
        if not self.config.sinks or not distributed.is_rank_zero():
            return None
        shown = yaml.safe_load((self.folder / "config.yaml").read_text())
        return Sinks(self.config.sinks, self.folder, shown, self.step)

    def run(self) -> dict[str, float]:
        config = self.config
        while True:
            if self.step > self.evaluated and self.is_due(config.evaluate_every):
                self.guard.check()
                self.evaluate()
            if distributed.any_rank(bool(self.request.signum)):
                self.save()
                text = f"stopped after step {self.step} of {config.steps}, saved in {self.folder}"
                raise Stopped(self.request.signum or signal.SIGTERM, text)
            if self.step >= config.steps or (config.patience and self.waited >= config.patience):
                break
            self.train_step()
            if self.is_due(config.log_every):
                self.guard.check()
                count = float(self.totals.pop("finite"))
                means = {name: float(total) / count for name, total in self.totals.items()}
                self.log.interval(self.step, means if count else {})
                self.totals = {}
        distributed.on_rank_zero(self.draw_curves)
        seconds = time.perf_counter() - self.started
        return {"steps": self.step, "score": self.best, "seconds": seconds}

    def is_due(self, every: int) -> bool:
        return self.step % every == 0 or self.step == self.config.steps

    def train_step(self) -> None:
        config, model = self.config, self.task.model
        model.train()
        rate = learning_rate(config.learning_rate, self.step / config.steps, config.warmup)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.zero_grad(set_to_none=True)
        scalars: dict[str, Tensor] = {}
        for part in self.parts:
            # Dropout is the one thing that draws from the global generator.
            torch.manual_seed(generator_for(config.seed, self.step, part.start).initial_seed())
            with self.runtime.autocast():
                losses = self.task.loss(self.step, part)
            share = (part.stop - part.start) / config.batch_size
            (losses["loss"] * share).backward()
            for name, value in losses.items():
                scaled = value.detach().float() * share
                scalars[name] = scalars[name] + scaled if name in scalars else scaled
        gradients = [p.grad for p in self.parameters if p.grad is not None]
        distributed.all_reduce_sum([*gradients, *scalars.values()])
        norm = nn.utils.clip_grad_norm_(self.parameters, config.clip_norm)
        finite = norm.isfinite() & scalars["loss"].isfinite()
        # The fused step changes nothing then, and nothing has to wait for the device to know.
        self.optimizer.found_inf = (~finite).float()  # type: ignore[missing-attribute]
        self.optimizer.step()
        self.task.after_step(self.step, finite)
        scalars |= {"gradient_norm": norm, "finite": torch.ones_like(norm)}
        for name, value in scalars.items():
            value = torch.where(finite, value, 0)
            self.totals[name] = self.totals[name] + value if name in self.totals else value
        self.guard.add(self.step, scalars["loss"], norm)
        if self.runtime.device.type == "cpu":  # elsewhere this would wait for the device
            self.guard.check()
        self.step += 1

    def evaluate(self) -> None:
        """Evaluate in the first process, and save; after a signal, leave it for the next time."""
        self.task.model.eval()
        evaluation = distributed.on_rank_zero(self.evaluation_unless_stopped)
        if evaluation is None:
            return
        if not math.isfinite(evaluation.score):
            raise UserError(f"step {self.step}: the held-out score is {evaluation.score}")
        self.evaluated = self.step
        self.waited = 0 if evaluation.score < self.best else self.waited + 1
        if self.waited == 0:
            self.best, self.best_step = evaluation.score, self.step
            distributed.on_rank_zero(self.task.save_model)
        self.log.note(self.step, evaluation.text, evaluation.scalars)
        self.save()

    def evaluation_unless_stopped(self) -> Evaluation | None:
        try:
            with self.request.at_once(), torch.inference_mode(), _uncompiled():
                return self.task.evaluate(self.step)
        except Stopped:
            return None

    def save(self) -> None:
        if self.saved == (self.step, self.evaluated):
            return
        state = self.state_dict()
        distributed.check_ranks_agree(
            lambda: digest_of(state["task"]), f"step {self.step}: the state"
        )
        folder = self.folder / "state"
        distributed.on_rank_zero(lambda: save_state(folder, self.step, state, {self.best_step}))
        self.saved = self.step, self.evaluated
        self.log.mark(self.step)  # none of this counts into the speed

    def draw_curves(self) -> None:
        if not draw_curves(self.log.path, self.folder / "curves.png", self.task.curves):
            say("no curves.png: pip install 'pqvae[plots]' first")

    def state_dict(self) -> dict[str, Any]:
        return {
            "task": self.task.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "health": self.guard.state_dict(),
            "totals": self.totals,
            "seconds": time.perf_counter() - self.started,
            **{name: getattr(self, name) for name in self.COUNTERS},
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.task.load_state_dict(state["task"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.guard.load_state_dict(state["health"])
        device = self.runtime.device
        self.totals = {name: value.to(device) for name, value in state["totals"].items()}
        self.seconds = state["seconds"]
        for name in self.COUNTERS:
            setattr(self, name, state[name])


def _uncompiled() -> contextlib.AbstractContextManager[None]:
    """Held-out batches of other sizes are not worth compiling for."""
    return torch.compiler.set_stance("force_eager")
