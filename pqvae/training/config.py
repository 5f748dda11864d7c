"""How long and how a model is trained."""

from typing import Annotated, Literal

from pydantic import Field

from pqvae.config import HARMLESS, config_class

ENDLESS = 10**9  # steps; of counts that nothing else bounds


@config_class
class TrainerConfig:
    steps: Annotated[int, HARMLESS] = Field(ge=1, le=ENDLESS, description="of the optimizer")
    batch_size: int = Field(
        ge=1, le=10**6, description="images of a step, of all processes together"
    )
    learning_rate: float = Field(
        gt=0, le=10, description="the peak; warm-up before it, a cosine to zero after it"
    )
    warmup: float = Field(default=0.03, ge=0, lt=1, description="share of the steps")
    weight_decay: float = Field(
        default=1e-4, ge=0, le=100, description="of matrices and convolutions (AdamW)"
    )
    beta1: float = Field(default=0.9, ge=0, lt=1, description="of AdamW")
    beta2: float = Field(default=0.99, ge=0, lt=1, description="of AdamW")
    clip_norm: float = Field(
        default=1.0, gt=0, le=1e9, description="gradients above this are scaled down to it"
    )
    log_every: Annotated[int, HARMLESS] = Field(default=50, ge=1, le=ENDLESS, description="steps")
    evaluate_every: Annotated[int, HARMLESS] = Field(
        default=250,
        ge=1,
        le=ENDLESS,
        description="steps; also saves what the run needs to resume",
    )
    patience: int = Field(
        default=0,
        ge=0,
        le=ENDLESS,
        description="stop after so many evaluations without a better score; 0: never",
    )
    seed: int = Field(default=0, ge=0, lt=2**63, description="of all that is drawn at random")
    accumulate: Annotated[int, HARMLESS] = Field(
        default=1,
        ge=1,
        le=10**6,
        description="micro-batches that a process takes its share in; saves memory",
    )
    skip_nonfinite: Annotated[int, HARMLESS] = Field(
        default=0,
        ge=0,
        le=ENDLESS,
        description="steps in a row that may be skipped for a loss that is not finite",
    )
    compile: Annotated[bool, HARMLESS] = Field(
        default=False, description="torch.compile the networks; meant for GPUs"
    )
    sinks: Annotated[tuple[Literal["tensorboard", "trackio", "wandb"], ...], HARMLESS] = Field(
        default=(), description="besides stats.jsonl"
    )
