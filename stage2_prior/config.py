"""Every knob of stage 2; imports no torch, as --help lists them all."""

from typing import Annotated

from pydantic import Field

from pqvae.config import HARMLESS, PLACE, config_class
from pqvae.data.config import DataPlace
from pqvae.training.config import TrainerConfig


@config_class
class PriorConfig:
    width: int = Field(default=192, ge=32, le=16384, description="of the transformer")
    depth: int = Field(default=4, ge=1, le=512, description="transformer layers")
    heads: int = Field(default=3, ge=1, le=512, description="of attention; each at least 32 wide")
    dropout: float = Field(
        default=0.0,
        ge=0,
        lt=1,
        description="of inputs and feed-forwards; for long runs on few images",
    )
    label_dropout: float = Field(
        default=0.1,
        ge=0,
        le=1,
        description="share of images trained without their class, for guidance",
    )
    code_features: int = Field(
        default=128,
        ge=1,
        le=2**16,
        description="dimensions of the latent that the prior sees of each code",
    )

    def __post_init__(self) -> None:
        if self.width % (2 * self.heads) or self.width < 32 * self.heads:
            raise ValueError(
                f"width {self.width} must be an even multiple of heads {self.heads}, at least 32x"
            )


@config_class
class Config:
    out: Annotated[str, HARMLESS] = Field(default="runs/prior", description="the run folder")
    tokenizer: Annotated[str, PLACE] = Field(
        default="runs/tokenizer",
        description="a run folder of stage 1; its data are this run's data",
    )
    data: DataPlace = Field(default_factory=DataPlace)
    device: Annotated[str, HARMLESS] = Field(
        default="auto", description="auto, cpu, cuda, cuda:1 or mps"
    )
    class_conditional: bool = Field(default=True, description="where the data have classes")
    views: int = Field(
        default=8,
        ge=1,
        le=10**4,
        description="encodings of each training image: itself, and others augmented",
    )
    prefix: int = Field(
        default=0,
        ge=0,
        le=2**16,
        description="train on the first so many codes, and keep what tells those best; 0: all",
    )
    prior: PriorConfig = Field(default_factory=PriorConfig)
    trainer: TrainerConfig = Field(
        default_factory=lambda: TrainerConfig(
            steps=650,
            batch_size=64,
            learning_rate=1e-3,
            weight_decay=0.05,
            beta2=0.95,
            evaluate_every=100,
            patience=4,
        )
    )
