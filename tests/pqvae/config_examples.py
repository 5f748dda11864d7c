"""Configs that the tests of configuration load, and how they set one key."""

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from pqvae.config import HARMLESS, OneOf, config_class, load_config


@config_class
class TrainerConfig:
    steps: Annotated[int, HARMLESS] = Field(default=100, ge=1, description="optimizer steps")
    learning_rate: float = Field(default=1e-3, gt=0)
    betas: tuple[Annotated[float, Field(ge=0, lt=1.5)], ...] = (0.9, 0.95)
    warmup: int | None = Field(default=None, ge=0)

    def __post_init__(self) -> None:
        if self.warmup is not None and self.warmup > self.steps:
            raise ValueError(f"trainer.warmup={self.warmup} is over trainer.steps={self.steps}")


@config_class
class Config:
    trainer: TrainerConfig = Field(default_factory=lambda: TrainerConfig(steps=500))
    name: str = "run"
    note: str | None = None
    widths: tuple[int, ...] = Field(default=(32, 64), max_length=5)
    classes: tuple[str, ...] = ()
    precision: Literal["auto", "bf16", "float32"] = "auto"
    flip: bool = True


@config_class
class Needy:
    size: int


@config_class
class QuantizerConfig:
    num_codes: int = Field(default=32, ge=1, description="codes of one image")
    dim: int = 4


@config_class
class NearestConfig(QuantizerConfig):
    kind: Literal["nearest"] = "nearest"
    decay: float = Field(default=0.9, gt=0, lt=1)


@config_class
class GumbelConfig(QuantizerConfig):
    kind: Literal["gumbel"] = "gumbel"
    dim: int = 8
    temperature: Annotated[float, HARMLESS] = Field(default=1.0, gt=0)


QUANTIZERS: dict[str, type] = {"nearest": NearestConfig, "gumbel": GumbelConfig}


@config_class
class ModelConfig:
    out: Annotated[str, HARMLESS] = "run"
    quantizer: Annotated[QuantizerConfig, OneOf(QUANTIZERS)] = Field(
        default_factory=lambda: NearestConfig(decay=0.5), description="how latents become codes"
    )


@config_class
class OpenConfig:
    quantizer: Annotated[QuantizerConfig, OneOf(QUANTIZERS)]


def write(folder: Path, text: str) -> Path:
    path = folder / "config.yaml"
    path.write_text(text)
    return path


def set_to(key: str, text: str) -> Any:
    config: Any = load_config(Config, None, [f"{key}={text}"])
    for name in key.split("."):
        config = getattr(config, name)
    return config
