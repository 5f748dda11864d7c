"""Every knob of training a decoder that draws; imports no torch, as --help lists them all."""

from typing import Annotated

from pydantic import Field

from pqvae.config import HARMLESS, config_class
from pqvae.training.config import TrainerConfig
from stage1_tokenizer.decoder_config import DecoderRunConfig, DrawnConfig


@config_class
class DrawnObjectiveConfig:
    energy: float = Field(
        default=5.0,
        ge=0,
        le=1e6,
        description="weight of the energy score of two draws and the original, beside the "
        "discriminator's",
    )
    colours: float = Field(
        default=0.5, ge=0, le=1e6, description="weight of the pixels in it, beside the features"
    )
    no_codes: float = Field(
        default=0.1, ge=0, le=1, description="share of pictures that are drawn from no codes"
    )
    no_class: float = Field(
        default=0.1, ge=0, le=1, description="share of pictures whose class is not told"
    )


@config_class
class Config(DecoderRunConfig):
    out: Annotated[str, HARMLESS] = Field(default="runs/drawn", description="the run folder")
    decoder: DrawnConfig = Field(default_factory=DrawnConfig)
    objective: DrawnObjectiveConfig = Field(default_factory=DrawnObjectiveConfig)
    trainer: TrainerConfig = Field(
        default_factory=lambda: TrainerConfig(
            steps=4000,
            batch_size=32,
            learning_rate=1e-3,
            beta1=0.0,
            clip_norm=100.0,
            evaluate_every=400,
        )
    )
