"""The one training loop. It knows steps, losses and folders; images and codes are the task's."""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import torch
from torch import Tensor, nn

from pqvae.checkpoint import load_newest_state, save_state
from pqvae.cli import UserError
from pqvae.config import changed_keys, config_to_yaml, load_config
from pqvae.files import atomic_path
from pqvae.logs import RunLog, say
from pqvae.optim import adamw, clip_gradients, learning_rate
from pqvae.runtime import Runtime

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

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "log_every", "evaluate_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"trainer.{name} must be at least 1, not {getattr(self, name)}")
        if not 0 <= self.warmup < 1:
            raise ValueError(f"trainer.warmup is a share of the steps, 0 to 1, not {self.warmup}")


@dataclass(frozen=True)
class Evaluation:
    score: float  # lower is better: decides which weights are kept
    text: str  # for the console
    scalars: Mapping[str, float]  # for stats.jsonl


class Task(Protocol):
    """What a stage brings to the loop."""

    model: nn.Module  # holds the trained parameters

    def start(self) -> None:
        """Called once before step 0 of a new run, not when a run goes on."""

    def loss(self, step: int) -> dict[str, Tensor]:
        """Scalars of the batch at this step; "loss" is minimized, the others are logged."""
        ...

    def after_step(self, step: int) -> None:
        """Called when the optimizer has moved: what learns without gradients learns here."""

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
HARMLESS_KEYS = {"trainer.steps", "trainer.log_every", "trainer.evaluate_every", "device", "out"}

C = TypeVar("C", bound="DataclassInstance")


def open_run(config: C, folder: Path) -> None:
    """Make the run folder, or check that the run in it has the same config.

    Raises:
        UserError: The folder holds another run, or something else.
    """
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
    with atomic_path(path) as temporary:
        temporary.write_text(config_to_yaml(config))


def train(task: Task, config: TrainerConfig, runtime: Runtime, folder: Path) -> dict[str, float]:
    """Train the task's model; the same call again goes on from the last saved state.

    Returns:
        "steps" that were done, the best "score", and "seconds" of training and evaluation.
    """
    model = task.model
    optimizer = adamw(model, config.weight_decay, config.beta2)
    step, best, waited, seconds = 0, float("inf"), 0, 0.0
    if (newest := load_newest_state(folder / "state")) is not None:
        step, state = newest
        task.load_state_dict(state["task"])
        optimizer.load_state_dict(state["optimizer"])
        best, waited, seconds = state["best"], state["waited"], state["seconds"]
        say(f"going on from step {step} in {folder}")
    else:
        task.start()
    log = RunLog(folder, config.steps, config.batch_size, step)

    sums: dict[str, Tensor] = {}
    since, started = 0, time.perf_counter()
    while step < config.steps and not (config.patience and waited >= config.patience):
        model.train()
        rate = learning_rate(config.learning_rate, step / config.steps, config.warmup)
        for group in optimizer.param_groups:
            group["lr"] = rate
        with runtime.autocast():
            losses = task.loss(step)
        optimizer.zero_grad(set_to_none=True)
        losses["loss"].backward()
        clip_gradients(model.parameters(), config.clip_norm, step)
        optimizer.step()
        task.after_step(step)
        step += 1

        for name, value in losses.items():
            sums[name] = sums[name] + value.detach() if name in sums else value.detach()
        since += 1
        last = step == config.steps
        if step % config.log_every == 0 or last:
            means = {name: float(value) / since for name, value in sums.items()}
            log.interval(step, {**means, "lr": rate})
            sums, since = {}, 0
        if step % config.evaluate_every == 0 or last:
            model.eval()
            with torch.inference_mode():
                evaluation = task.evaluate(step)
            waited = 0 if evaluation.score < best else waited + 1
            if waited == 0:
                best = evaluation.score
                task.save_model()
            log.evaluation(step, evaluation.text, evaluation.scalars)
            total = seconds + time.perf_counter() - started
            state = {"task": task.state_dict(), "optimizer": optimizer.state_dict()}
            state |= {"best": best, "waited": waited, "seconds": total}
            save_state(folder / "state", step, state)
    seconds += time.perf_counter() - started
    return {"steps": step, "score": best, "seconds": seconds}
