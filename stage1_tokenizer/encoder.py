"""Image -> latent: halve the resolution a few times, with residual blocks in between.

    image --+--> [conv, stride 2 -> blocks] x levels -> norm -> 1x1 conv ------(+)--> latent
            |                                                                   |
            +--> one linear map per patch (starts as principal components) -----+

The linear shortcut makes the latent a sensible one before the first step, so that the codebooks can
start from clusters of real images; the network starts at zero beside it and learns what to add.
"""

import torch
from torch import Tensor, nn

from stage1_tokenizer.blocks import blocks, group_norm
from stage1_tokenizer.config import ArchitectureConfig


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
