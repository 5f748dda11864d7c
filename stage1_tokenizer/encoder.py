"""Image -> latent: halve the resolution a few times, with residual blocks in between.

    image --+--> [conv, stride 2 -> blocks] x levels -> norm -> 1x1 conv ------(+)--> latent
            |                                                                   |
            +--> one linear map per patch (starts as principal components) -----+

The linear shortcut makes the latent a sensible one before the first step, so that the codebooks can
start from clusters of real images; the network starts at zero beside it and learns what to add.
"""

from dataclasses import dataclass

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F


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


def group_norm(width: int) -> nn.GroupNorm:
    return nn.GroupNorm(width // 16, width)


class ResidualBlock(nn.Module):
    """Norm, SiLU, 3x3 convolution, twice, added to the input; the identity at the start."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = group_norm(width), group_norm(width)
        self.conv1 = nn.Conv2d(width, width, 3, padding=1)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1)
        nn.init.zeros_(self.conv2.weight)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.conv1(F.silu(self.norm1(x)))
        return x + self.conv2(F.silu(self.norm2(hidden)))


class AttentionBlock(nn.Module):
    """Every place of the map looks at all others, added to the input; starts as the identity."""

    def __init__(self, width: int, head_width: int = 32) -> None:
        super().__init__()
        self.heads = max(1, width // head_width)
        self.norm = group_norm(width)
        self.qkv = nn.Conv2d(width, 3 * width, 1)
        self.out = nn.Conv2d(width, width, 1)
        nn.init.zeros_(self.out.weight)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = rearrange(
            self.qkv(self.norm(x)), "b (t n d) h w -> t b n (h w) d", t=3, n=self.heads
        )
        attended = F.scaled_dot_product_attention(q, k, v)
        return x + self.out(rearrange(attended, "b n (h w) d -> b (n d) h w", h=x.shape[2]))


def blocks(width: int, count: int, attention: bool) -> list[nn.Module]:
    """This many residual blocks, each followed by an attention block if asked for."""
    pair = [ResidualBlock, AttentionBlock] if attention else [ResidualBlock]
    return [block(width) for _ in range(count) for block in pair]


class Encoder(nn.Module):
    """Images, float (B, 3, H, W) in [-1, 1] -> latents (B, D) with D = C h w."""

    def __init__(self, config: ArchitectureConfig) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels, last = 3, len(config.widths) - 1
        for level, (width, count) in enumerate(
            zip(config.widths, config.encoder_blocks, strict=True)
        ):
            if level > 0:
                layers.append(nn.SiLU())
            layers.append(nn.Conv2d(channels, width, 4, stride=2, padding=1))
            layers += blocks(width, count, config.attention and level == last)
            channels = width
        head = nn.Conv2d(channels, config.latent_channels, 1)
        nn.init.zeros_(head.weight)
        nn.init.zeros_(head.bias)  # type: ignore[bad-argument-type]
        self.network = nn.Sequential(*layers, group_norm(channels), nn.SiLU(), head)
        patch = config.downsampling
        self.shortcut = nn.Conv2d(3, config.latent_channels, patch, stride=patch)

    def forward(self, images: Tensor) -> Tensor:
        images = images.contiguous(memory_format=torch.channels_last)
        return (self.shortcut(images) + self.network(images)).flatten(1)
