"""Every knob of stage 1; imports no torch, as --help lists them all."""

import math
from typing import Annotated, Literal

from pydantic import Field

from pqvae.config import HARMLESS, OneOf, config_class
from pqvae.data.config import LARGEST, DataConfig
from pqvae.training.config import ENDLESS, TrainerConfig

# Far above what is of use: of more, only the memory would say so.
MOST_CODES, LARGEST_BOOK, MOST_DIRECTIONS = 4096, 2**20, 2**16

Width = Annotated[int, Field(ge=16, le=4096, multiple_of=16)]
Blocks = Annotated[int, Field(ge=0, le=64)]
BookSize = Annotated[int, Field(ge=2, le=LARGEST_BOOK)]


@config_class
class ArchitectureConfig:
    widths: tuple[Width, ...] = Field(
        default=(32, 64),
        min_length=1,
        max_length=8,
        description="channels after each halving of the resolution",
    )
    encoder_blocks: tuple[Blocks, ...] = Field(
        default=(0, 3), description="residual blocks at each of these resolutions"
    )
    decoder_blocks: tuple[Blocks, ...] = Field(
        default=(0, 3), description="the same of the decoder"
    )
    attention: bool = Field(
        default=False, description="attention after each residual block of the lowest resolution"
    )
    latent_channels: int = Field(default=16, ge=1, le=4096, description="of the latent map")

    def __post_init__(self) -> None:
        if not len(self.widths) == len(self.encoder_blocks) == len(self.decoder_blocks):
            raise ValueError("widths, encoder_blocks and decoder_blocks must be equally long")
        if not self.latent_channels <= 3 * self.downsampling**2:
            raise ValueError(
                f"latent_channels is {self.latent_channels}; a patch has "
                f"{3 * self.downsampling**2} numbers, so give 1 to that many"
            )

    @property
    def downsampling(self) -> int:
        """Image size divided by the latent map's size."""
        return 2 ** len(self.widths)

    def latent_shape(self, image_size: int) -> tuple[int, int, int]:
        """(C, h, w) of the latent map.

        Raises:
            ValueError: The image size is not a multiple of the downsampling.
        """
        if image_size % self.downsampling:
            raise ValueError(
                f"image_size {image_size} must be a multiple of {self.downsampling}, "
                f"as {len(self.widths)} widths halve the resolution as often"
            )
        side = image_size // self.downsampling
        return self.latent_channels, side, side


@config_class
class QuantizerConfig:
    """What every kind has."""

    kind: str
    revive_every: int = Field(
        default=100,
        ge=1,
        le=ENDLESS,
        description="steps over which uses are counted, then unused entries revived",
    )


@config_class
class ResidualConfig(QuantizerConfig):
    """The progressive quantizer."""

    kind: Literal["residual"] = Field(default="residual", description="nearest entries, subtracted")
    num_codes: int = Field(default=32, ge=1, le=MOST_CODES, description="N: codes of one image")
    codebook_sizes: tuple[BookSize, ...] = Field(
        default=(256,),
        description="K_i: one for all, one for the learned and one for the shared, or one for each",
    )
    learned_codes: int = Field(
        default=8,
        ge=1,
        le=MOST_CODES,
        description="L: positions with entries of their own; later ones share a codebook",
    )
    rank: int = Field(
        default=256,
        ge=1,
        le=MOST_DIRECTIONS,
        description="r: principal directions of the residual that these describe",
    )
    subspace: int = Field(
        default=16,
        ge=1,
        le=MOST_DIRECTIONS,
        description="n: how many of them each late position describes",
    )
    decay_start: float = Field(
        default=0.97, gt=0, lt=1, description="of the moving averages, at the start of training"
    )
    decay_end: float = Field(
        default=0.9997,
        gt=0,
        lt=1,
        description="the same at its end; 1 - decay falls geometrically between",
    )
    revive_below: float = Field(
        default=0.1,
        ge=0,
        le=1,
        description="entries used less than this share of the mean start anew",
    )

    def __post_init__(self) -> None:
        if len(self.codebook_sizes) not in (1, 2, self.num_codes):
            raise ValueError(
                f"codebook_sizes has {len(self.codebook_sizes)} numbers; give 1 for all positions, "
                f"2 for those before and after learned_codes, or num_codes={self.num_codes} of them"
            )
        if not self.subspace <= self.rank:
            raise ValueError(
                f"subspace is {self.subspace}, but must be 1 to rank, which is {self.rank}"
            )
        if not self.decay_start <= self.decay_end:
            raise ValueError("decay_start and decay_end must satisfy 0 < start <= end < 1")

    @property
    def sizes(self) -> tuple[int, ...]:
        """K_i of every position, N numbers."""
        sizes, N, L = self.codebook_sizes, self.num_codes, self.num_learned
        return sizes if len(sizes) == N else sizes[:1] * L + sizes[-1:] * (N - L)

    @property
    def num_learned(self) -> int:
        """L: positions with entries of their own; the other N - L share a codebook."""
        return min(self.learned_codes, self.num_codes)


@config_class
class GumbelConfig(QuantizerConfig):
    """PQ-VAE as first proposed: every position's entries are learned by gradient."""

    kind: Literal["gumbel"] = Field(
        default="gumbel", description="random codes, entries by gradient"
    )
    num_codes: int = Field(default=32, ge=1, le=MOST_CODES, description="N: codes of one image")
    codebook_sizes: tuple[BookSize, ...] = Field(
        default=(256,), description="K_i: one for all, or one for each"
    )
    entropy_weight: float = Field(
        default=0.05, ge=0, le=1000, description="of H(Z|X) - H(Z) of a code, in nats, in the loss"
    )

    def __post_init__(self) -> None:
        if len(self.codebook_sizes) not in (1, self.num_codes):
            raise ValueError(
                f"codebook_sizes must be 1 number or num_codes={self.num_codes} of them"
            )

    @property
    def sizes(self) -> tuple[int, ...]:
        """K_i of every position, N numbers."""
        sizes = self.codebook_sizes
        return sizes if len(sizes) == self.num_codes else sizes * self.num_codes


@config_class
class SpatialConfig(QuantizerConfig):
    """VQ or residual VQ of every place of the latent map."""

    kind: Literal["spatial"] = Field(
        default="spatial", description="a code for each place, to compare"
    )
    codebook_size: int = Field(
        default=512, ge=2, le=LARGEST_BOOK, description="K: entries of each level's codebook"
    )
    levels: int = Field(
        default=1,
        ge=1,
        le=MOST_CODES,
        description="codes of a place, each of what is left by those before",
    )
    fold: int = Field(
        default=1, ge=1, le=LARGEST, description="side of the squares of the map that are one place"
    )
    least_uses: float = Field(
        default=0.8,
        ge=0,
        le=1000,
        description="entries used less often in a batch, on average, start anew",
    )


@config_class
class FSQConfig(QuantizerConfig):
    """Finite scalar quantization of every place of the latent map."""

    kind: Literal["fsq"] = Field(
        default="fsq", description="rounded numbers at each place, to compare"
    )
    levels: tuple[BookSize, ...] = Field(
        default=(8, 8, 8),
        min_length=1,
        max_length=16,
        description="values that each number of a place is rounded to",
    )

    def __post_init__(self) -> None:
        if math.prod(self.levels) > LARGEST_BOOK:
            raise ValueError(
                f"levels multiply to {math.prod(self.levels)} values of a place, but must to at "
                f"most {LARGEST_BOOK}"
            )


# By the value of `kind`.
QUANTIZERS: dict[str, type[QuantizerConfig]] = {
    "residual": ResidualConfig,
    "gumbel": GumbelConfig,
    "spatial": SpatialConfig,
    "fsq": FSQConfig,
}


@config_class
class TokenizerConfig:
    image_size: int = Field(ge=8, le=LARGEST, description="pixels, height and width")
    architecture: ArchitectureConfig = Field(default_factory=ArchitectureConfig)
    quantizer: Annotated[QuantizerConfig, OneOf(QUANTIZERS)] = Field(default_factory=ResidualConfig)


@config_class
class ObjectiveConfig:
    full_share: float = Field(
        default=0.8,
        ge=0,
        le=1,
        description="of the images are decoded from all codes, others from a prefix",
    )
    commitment: float = Field(
        default=0.25,
        ge=0,
        le=1000,
        description="weight of |f - f_N|^2: keeps the encoder near its codes",
    )


@config_class
class Config:
    out: Annotated[str, HARMLESS] = Field(default="runs/tokenizer", description="the run folder")
    device: Annotated[str, HARMLESS] = Field(
        default="auto", description="auto, cpu, cuda, cuda:1 or mps"
    )
    data: DataConfig = Field(default_factory=DataConfig)
    architecture: ArchitectureConfig = Field(default_factory=ArchitectureConfig)
    quantizer: Annotated[QuantizerConfig, OneOf(QUANTIZERS)] = Field(default_factory=ResidualConfig)
    objective: ObjectiveConfig = Field(default_factory=ObjectiveConfig)
    trainer: TrainerConfig = Field(
        default_factory=lambda: TrainerConfig(
            steps=2000, batch_size=64, learning_rate=2e-3, evaluate_every=250
        )
    )

    def __post_init__(self) -> None:
        self.architecture.latent_shape(self.data.image_size)  # raises where sizes do not fit
