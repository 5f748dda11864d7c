"""Every knob of stage 2; imports no torch, as --help lists them all."""

from dataclasses import dataclass, field

from pqvae.training.config import TrainerConfig


@dataclass(frozen=True, kw_only=True, slots=True)
class PriorConfig:
    width: int = 192
    depth: int = 4  # transformer layers
    heads: int = 3
    dropout: float = 0.0  # of inputs and feed-forwards; for long runs on few images
    label_dropout: float = 0.1  # share of images trained without their class, for guidance
    code_features: int = 128  # dimensions of the latent that the prior sees of each code

    def __post_init__(self) -> None:
        if self.width % (2 * self.heads) or self.width < 32 * self.heads:
            raise ValueError(
                f"width {self.width} must be an even multiple of heads {self.heads}, at least 32x"
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class Config:
    out: str = "runs/prior"  # the run folder
    tokenizer: str = "runs/tokenizer"  # a run folder of stage 1; its data are this run's data
    device: str = "auto"  # auto | cpu | cuda | mps
    class_conditional: bool = True  # where the data have classes
    views: int = 8  # encodings of each training image: itself, and others augmented
    prior: PriorConfig = field(default_factory=PriorConfig)
    trainer: TrainerConfig = field(
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

    def __post_init__(self) -> None:
        if self.views < 1:
            raise ValueError(f"views must be at least 1, not {self.views}")
