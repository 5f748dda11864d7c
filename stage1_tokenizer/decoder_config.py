"""Every knob of decoders and of their training; imports no torch, as --help lists them all."""

from typing import Annotated, Literal

from pydantic import Field

from pqvae.config import HARMLESS, PLACE, config_class
from pqvae.data.config import DataPlace
from pqvae.training.config import TrainerConfig


@config_class
class DecoderConfig:
    """What every kind has."""

    kind: str


@config_class
class DirectConfig(DecoderConfig):
    """The encoder's mirror image, of the sizes that the architecture says."""

    kind: Literal["direct"] = Field(
        default="direct", description="one pass, the mean of all that fits"
    )


@config_class
class RefinedConfig(DecoderConfig):
    """The direct decoder's picture, refined at half and at full resolution."""

    kind: Literal["refined"] = Field(
        default="refined", description="the direct picture and what finer layers add to it"
    )
    half_width: int = Field(
        default=48, ge=16, le=4096, multiple_of=16, description="channels at half the resolution"
    )
    full_width: int = Field(
        default=32, ge=16, le=4096, multiple_of=16, description="channels at the full resolution"
    )


@config_class
class DrawnConfig(DecoderConfig):
    """What the codes leave unsaid is drawn from noise, on top of the direct decoder's picture."""

    kind: Literal["drawn"] = Field(
        default="drawn", description="a picture of the codes, another for each noise"
    )
    width: int = Field(
        default=128, ge=16, le=4096, multiple_of=16, description="channels of the coarsest map"
    )
    depth: int = Field(
        default=2, ge=0, le=64, description="pairs of blocks there, each with attention"
    )
    full_width: int = Field(
        default=32,
        ge=16,
        le=4096,
        multiple_of=16,
        description="channels at the full resolution; twice as many at each coarser one, up to the "
        "width",
    )
    class_names: tuple[str, ...] = Field(
        default=(), description="the classes that it knows; training sets those of the data"
    )


@config_class
class SmallConfig(DecoderConfig):
    """Few weights, that read the first codes along few directions."""

    kind: Literal["small"] = Field(
        default="small", description="few weights and the first codes, for browsers"
    )
    width: int = Field(
        default=32,
        ge=8,
        le=1024,
        multiple_of=8,
        description="channels of the coarsest map; half as many after each doubling",
    )
    depth: int = Field(default=2, ge=0, le=64, description="residual blocks there")
    directions: int = Field(
        default=120, ge=1, le=255, description="along which it is told what the codes say"
    )
    codes: int = Field(
        default=1, ge=1, le=2**12, description="that it knows; training sets what the bytes hold"
    )


# By the value of `kind`.
DECODERS: dict[str, type[DecoderConfig]] = {
    "direct": DirectConfig,
    "refined": RefinedConfig,
    "drawn": DrawnConfig,
    "small": SmallConfig,
}
COMPARED = (0, 2, 4, 10)  # blocks of lite0, by whose features pictures are compared, and its stem's


@config_class
class VividObjectiveConfig:
    squared_error: float = Field(
        default=0.6, ge=0, le=1e6, description="weight of the squared error beside the distance"
    )
    frechet: float = Field(
        default=0.5,
        ge=0,
        le=1e6,
        description="weight of the Fréchet distance between the features of all made and all real "
        "pictures",
    )
    frechet_after: float = Field(
        default=0.5, ge=0, le=1, description="share of the training before it counts"
    )
    shortest: int = Field(
        default=2, ge=1, le=2**16, description="codes of the shortest prefix that is trained on"
    )


@config_class
class DecoderRunConfig:
    """What training any decoder of a tokenizer takes."""

    out: Annotated[str, HARMLESS] = Field(default="runs/vivid", description="the run folder")
    tokenizer: Annotated[str, PLACE] = Field(
        default="runs/tokenizer",
        description="a run folder of stage 1: its model gets the decoder, its data are this run's",
    )
    data: DataPlace = Field(default_factory=DataPlace)
    device: Annotated[str, HARMLESS] = Field(
        default="auto", description="auto, cpu, cuda, cuda:1 or mps"
    )
    trainer: TrainerConfig = Field(
        default_factory=lambda: TrainerConfig(
            steps=600, batch_size=64, learning_rate=1e-3, evaluate_every=200
        )
    )


@config_class
class Config(DecoderRunConfig):
    decoder: RefinedConfig = Field(default_factory=RefinedConfig)
    objective: VividObjectiveConfig = Field(default_factory=VividObjectiveConfig)
