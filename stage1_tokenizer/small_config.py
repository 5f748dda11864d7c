"""Every knob of training a decoder for browsers; imports no torch, as --help lists them all."""

from typing import Annotated

from pydantic import Field

from pqvae.config import HARMLESS, config_class
from pqvae.training.config import TrainerConfig
from stage1_tokenizer.decoder_config import DecoderRunConfig, SmallConfig


@config_class
class Config(DecoderRunConfig):
    out: Annotated[str, HARMLESS] = Field(default="runs/small", description="the run folder")
    bytes: int = Field(
        default=24, ge=1, le=512, description="of codes of fixed length, that it is to know"
    )
    decoder: SmallConfig = Field(default_factory=SmallConfig)
    trainer: TrainerConfig = Field(
        default_factory=lambda: TrainerConfig(
            steps=6000, batch_size=64, learning_rate=3e-3, evaluate_every=500
        )
    )
