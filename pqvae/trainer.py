"""The one training loop. It knows steps, losses and folders; images and codes are the task's."""

import contextlib
import math
import signal
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeVar

import torch
import yaml
from torch import Tensor, nn

from pqvae import ranks
from pqvae.checkpoint import digest_of, load_newest_state, save_state
from pqvae.cli import UserError
from pqvae.config import changed_keys, config_to_yaml, load_config
from pqvae.curves import draw_curves
from pqvae.files import atomic_path, locked
from pqvae.health import Health
from pqvae.loader import generator_for, parts_of_batch
from pqvae.logs import RunLog, say
from pqvae.optim import adamw, learning_rate
from pqvae.runtime import Runtime
from pqvae.sinks import Sinks
from pqvae.stopping import Stopped, StopRequest

if TYPE_CHECKING:
    from _typeshed import DataclassInstance


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainerConfig:
    steps: int
    batch_size: int
    learning_rate: float  # the peak; warm-up before it, a cosine to zero after it
    warmup: float = 0.03  # share of the steps
    weight_decay: float = 1e-4
    beta2: float = 0.99
    clip_norm: float = 1.0  # gradients above this norm are scaled down to it
    log_every: int = 50  # steps
    evaluate_every: int = 250  # steps; also saves what the run needs to go on
    patience: int = 0  # stop after this many evaluations without a better score; 0: never
    seed: int = 0
    accumulate: int = 1  # micro-batches a process takes its share of the batch in; saves memory
    skip_nonfinite: int = 0  # steps in a row that may be left out for a loss that is not finite
    compile: bool = False  # torch.compile the networks; meant for GPUs
    sinks: tuple[Literal["tensorboard", "trackio", "wandb"], ...] = ()  # besides stats.jsonl

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "log_every", "evaluate_every", "accumulate"):
            if getattr(self, name) < 1:
                raise ValueError(f"trainer.{name} must be at least 1, not {getattr(self, name)}")
        for name in ("patience", "skip_nonfinite"):
            if getattr(self, name) < 0:
                raise ValueError(f"trainer.{name} cannot be negative, as {getattr(self, name)} is")
        if not 0 <= self.warmup < 1:
            raise ValueError(f"trainer.warmup is a share of the steps, 0 to 1, not {self.warmup}")


@dataclass(frozen=True)
class Evaluation:
    score: float  # lower is better: decides which weights are kept
    text: str  # for the console
    scalars: Mapping[str, float]  # for stats.jsonl


class Task(Protocol):
    """What a stage brings to the loop.

    Of several processes each has a task; all are alike after every step.
    """

    model: nn.Module  # holds the trained parameters
    networks: Sequence[nn.Module]  # the parts of it that are worth compiling
    curves: Mapping[str, Sequence[str]]  # panels of curves.png: title -> names of scalars

    def start(self) -> None:
        """Called before the first step of a new run, by the first process only."""

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


# Changing these does not make it another run.
HARMLESS_KEYS = {
    "device",
    "out",
    "data.workers",
    "trainer.steps",
    "trainer.log_every",
    "trainer.evaluate_every",
    "trainer.accumulate",
    "trainer.skip_nonfinite",
    "trainer.compile",
    "trainer.sinks",
}

C = TypeVar("C", bound="DataclassInstance")


@contextlib.contextmanager
def open_run(config: C, folder: Path) -> Iterator[None]:
    """Inside of this block the run folder is this run's alone: made, or that of the same config.

    Raises:
        UserError: The folder holds another run or something else, or is in use.
    """
    with contextlib.ExitStack() as stack:
        ranks.first_does(lambda: stack.enter_context(_opened_run(config, folder)))
        yield


@contextlib.contextmanager
def _opened_run(config: C, folder: Path) -> Iterator[None]:
    path = folder / "config.yaml"
    if path.exists():
        before = load_config(type(config), path, [])
        changed = [key for key in changed_keys(before, config) if key not in HARMLESS_KEYS]
        if changed:
            raise UserError(
                f"{folder} holds a run with another {', '.join(changed)}; "
                f"choose another folder (out=...) or remove it"
            )
    elif folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder} exists and is not a run folder; choose another one (out=...)")
    folder.mkdir(parents=True, exist_ok=True)
    with locked(folder):
        with atomic_path(path) as temporary:
            temporary.write_text(config_to_yaml(config))
        yield


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

        newest = ranks.first_does(lambda: load_newest_state(folder / "state"))
        self.step = newest[0] if newest else 0
        self.log = RunLog(folder, config.steps, config.batch_size, self.step, self.open_sinks())
        self.health = Health(config.skip_nonfinite, task.keys, self.log)
        if newest:
            self.load_state_dict(newest[1])
            say(f"going on from step {self.step} in {folder}")
        else:
            with request.at_once():
                ranks.first_does(task.start)
            if ranks.count() > 1:
                task.load_state_dict(ranks.share(task.state_dict()))
        self.saved = (self.step, self.evaluated) if newest else None
        self.started = time.perf_counter() - self.seconds
        if config.compile:
            for network in task.networks:
                network.compile()

    def open_sinks(self) -> Sinks | None:
        if not self.config.sinks or not ranks.is_first():
            return None
        shown = yaml.safe_load((self.folder / "config.yaml").read_text())
        return Sinks(self.config.sinks, self.folder, shown, self.step)

    def run(self) -> dict[str, float]:
        config = self.config
        while True:
            if self.step > self.evaluated and self.is_due(config.evaluate_every):
                self.health.check()
                self.evaluate()
            if ranks.any_of(bool(self.request.signum)):
                self.save()
                text = f"stopped after step {self.step} of {config.steps}, saved in {self.folder}"
                raise Stopped(self.request.signum or signal.SIGTERM, text)
            if self.step >= config.steps or (config.patience and self.waited >= config.patience):
                break
            self.train_step()
            if self.is_due(config.log_every):
                self.health.check()
                count = float(self.totals.pop("finite"))
                means = {name: float(total) / count for name, total in self.totals.items()}
                self.log.interval(self.step, means if count else {})
                self.totals = {}
        ranks.first_does(self.draw_curves)
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
        ranks.add_up([*gradients, *scalars.values()])
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
        self.health.add(self.step, scalars["loss"], norm)
        if self.runtime.device.type == "cpu":  # elsewhere this would wait for the device
            self.health.check()
        self.step += 1

    def evaluate(self) -> None:
        """Evaluate in the first process, and save; after a signal, leave it for the next time."""
        self.task.model.eval()
        evaluation = ranks.first_does(self.evaluation_unless_stopped)
        if evaluation is None:
            return
        if not math.isfinite(evaluation.score):
            raise UserError(f"step {self.step}: the held-out score is {evaluation.score}")
        self.evaluated = self.step
        self.waited = 0 if evaluation.score < self.best else self.waited + 1
        if self.waited == 0:
            self.best, self.best_step = evaluation.score, self.step
            ranks.first_does(self.task.save_model)
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
        ranks.check_alike(lambda: digest_of(state["task"]), f"step {self.step}: the state")
        folder = self.folder / "state"
        ranks.first_does(lambda: save_state(folder, self.step, state, {self.best_step}))
        self.saved = self.step, self.evaluated
        self.log.mark(self.step)  # none of this counts into the speed

    def draw_curves(self) -> None:
        if not draw_curves(self.log.path, self.folder / "curves.png", self.task.curves):
            say("no curves.png: pip install 'pqvae[plots]' first")

    def state_dict(self) -> dict[str, Any]:
        return {
            "task": self.task.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "health": self.health.state_dict(),
            "totals": self.totals,
            "seconds": time.perf_counter() - self.started,
            **{name: getattr(self, name) for name in self.COUNTERS},
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.task.load_state_dict(state["task"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.health.load_state_dict(state["health"])
        device = self.runtime.device
        self.totals = {name: value.to(device) for name, value in state["totals"].items()}
        self.seconds = state["seconds"]
        for name in self.COUNTERS:
            setattr(self, name, state[name])


def _uncompiled() -> contextlib.AbstractContextManager[None]:
    """Held-out batches of other sizes are not worth compiling for."""
    return torch.compiler.set_stance("force_eager")
