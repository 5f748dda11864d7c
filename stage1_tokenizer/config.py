"""Every knob of stage 1; imports no torch, as --help lists them all."""

import math
from dataclasses import dataclass, field
from typing import Literal

from pqvae.data.config import DataConfig
from pqvae.training.config import TrainerConfig


@dataclass(frozen=True, kw_only=True, slots=True)
class ArchitectureConfig:
    widths: tuple[int, ...] = (32, 64)  # channels after each halving of the resolution
    encoder_blocks: tuple[int, ...] = (0, 3)  # residual blocks at each of these resolutions
    decoder_blocks: tuple[int, ...] = (0, 3)
    attention: bool = False  # attention after each residual block of the lowest resolution
    latent_channels: int = 16

    def __post_init__(self) -> None:
        if not len(self.widths) == len(self.encoder_blocks) == len(self.decoder_blocks) >= 1:
            raise ValueError("widths, encoder_blocks and decoder_blocks must be equally long")
        if any(width < 16 or width % 16 for width in self.widths):
            raise ValueError(f"widths {list(self.widths)} must be multiples of 16")
        if min(self.encoder_blocks) < 0 or min(self.decoder_blocks) < 0:
            raise ValueError("encoder_blocks and decoder_blocks cannot be negative")
        if not 1 <= self.latent_channels <= 3 * self.downsampling**2:
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


@dataclass(frozen=True, kw_only=True, slots=True)
class QuantizerConfig:
    num_codes: int = 32  # N: codes of one image
    codebook_sizes: tuple[int, ...] = (256,)  # K_i: one for all, one for the learned and one for
    # the shared, or one for each position
    learned_codes: int = 8  # L: positions with entries of their own; later ones share a codebook
    rank: int = 256  # r: principal directions of the residual that these describe ...
    subspace: int = 16  # n: ... and how many of them each does
    decay_start: float = 0.97  # of the moving averages, at the start of training ...
    decay_end: float = 0.9997  # ... and at its end; 1 - decay falls geometrically between
    revive_below: float = 0.1  # entries used less than this share of the mean start anew ...
    revive_every: int = 100  # ... judged by their use in the last so many steps
    assignment: Literal["nearest", "gumbel"] = "nearest"  # gumbel: every position has entries of
    # its own, learned by gradient (gumbel.py); of the above, only revive_every plays a part then

    def __post_init__(self) -> None:
        if self.num_codes < 1:
            raise ValueError(f"num_codes is {self.num_codes}, but an image needs at least 1 code")
        if len(self.codebook_sizes) not in (1, 2, self.num_codes):
            raise ValueError(
                f"codebook_sizes has {len(self.codebook_sizes)} numbers; give 1 for all positions, "
                f"2 for those before and after learned_codes, or num_codes={self.num_codes} of them"
            )
        if min(self.codebook_sizes) < 2:
            raise ValueError("codebook_sizes must be at least 2 each; 1 entry says nothing")
        if self.learned_codes < 1:
            raise ValueError(f"learned_codes must be at least 1, not {self.learned_codes}")
        if not 1 <= self.subspace <= self.rank:
            raise ValueError(
                f"subspace is {self.subspace}, but must be 1 to rank, which is {self.rank}"
            )
        if not 0 < self.decay_start <= self.decay_end < 1:
            raise ValueError("decay_start and decay_end must satisfy 0 < start <= end < 1")

    @property
    def sizes(self) -> tuple[int, ...]:
        """K_i of every position, N numbers."""
        sizes, N = self.codebook_sizes, self.num_codes
        L = min(self.learned_codes, N)
        return sizes if len(sizes) == N else sizes[:1] * L + sizes[-1:] * (N - L)

    @property
    def num_learned(self) -> int:
        """L: positions with entries of their own; the other N - L share a codebook."""
        N = self.num_codes
        return N if self.assignment == "gumbel" else min(self.learned_codes, N)

    @property
    def bits(self) -> tuple[float, ...]:
        """log2 K_i of every position: the fixed-length cost of each code."""
        return tuple(math.log2(size) for size in self.sizes)


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenizerConfig:
    image_size: int  # pixels, height and width
    architecture: ArchitectureConfig = field(default_factory=ArchitectureConfig)
    quantizer: QuantizerConfig = field(default_factory=QuantizerConfig)


@dataclass(frozen=True, kw_only=True, slots=True)
class ObjectiveConfig:
    full_share: float = 0.8  # of the images are decoded from all codes, the others from a prefix
    commitment: float = 0.25  # weight of |f - f_N|^2: keeps the encoder near its codes
    entropy_weight: float = 0.05  # of H(Z|X) - H(Z) of a code, in nats; assignment=gumbel only

    def __post_init__(self) -> None:
        if not 0 <= self.full_share <= 1:
            raise ValueError(f"objective.full_share is a share, 0 to 1, not {self.full_share}")


@dataclass(frozen=True, kw_only=True, slots=True)
class Config:
    out: str = "runs/tokenizer"  # the run folder
    device: str = "auto"  # auto | cpu | cuda | mps
    data: DataConfig = field(default_factory=DataConfig)
    architecture: ArchitectureConfig = field(default_factory=ArchitectureConfig)
    quantizer: QuantizerConfig = field(default_factory=QuantizerConfig)
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    trainer: TrainerConfig = field(
        default_factory=lambda: TrainerConfig(
            steps=2000, batch_size=64, learning_rate=2e-3, evaluate_every=250
        )
    )

    def __post_init__(self) -> None:
        self.architecture.latent_shape(self.data.image_size)  # raises where sizes do not fit
