"""How long and how a model is trained."""

from dataclasses import dataclass
from typing import Literal


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
