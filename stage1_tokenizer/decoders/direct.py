"""Quantized latent of any prefix -> a whole image: the encoder's mirror image.

The decoder is told how many codes the latent is made of, as a blurred latent of few codes asks for
another picture than a sharp one of many.
"""

import torch
from torch import Tensor, nn

from stage1_tokenizer.blocks import blocks, group_norm
from stage1_tokenizer.config import ArchitectureConfig


class Decoder(nn.Module):
    """Latents (B, D) and prefix lengths (B,) in 1..N -> images (B, 3, H, W), about in [-1, 1]."""

    def __init__(
        self, config: ArchitectureConfig, latent_shape: tuple[int, int, int], num_codes: int
    ) -> None:
        super().__init__()
        self.latent_shape = latent_shape
        width = config.widths[-1]
        self.input = nn.Conv2d(config.latent_channels, width, 3, padding=1)
        self.prefix_embedding = nn.Embedding(num_codes, width)
        nn.init.normal_(self.prefix_embedding.weight, std=0.02)
        layers: list[nn.Module] = []
        for level in reversed(range(len(config.widths))):
            width, coarsest = config.widths[level], level == len(config.widths) - 1
            layers += blocks(width, config.decoder_blocks[level], config.attention and coarsest)
            layers += [group_norm(width), nn.SiLU()]
            if coarsest:
                self.coarse_layers = len(layers)  # before the picture grows
            finer = config.widths[level - 1] if level > 0 else 3
            layers.append(nn.ConvTranspose2d(width, finer, 4, stride=2, padding=1))
        nn.init.zeros_(layers[-1].weight)  # type: ignore[bad-argument-type]
        nn.init.zeros_(layers[-1].bias)  # type: ignore[bad-argument-type]
        self.network = nn.Sequential(*layers)
        patch = config.downsampling
        self.shortcut = nn.ConvTranspose2d(config.latent_channels, 3, patch, stride=patch)

    def forward(self, latents: Tensor, prefix_lengths: Tensor) -> Tensor:
        maps = self._maps(latents)
        return self.shortcut(maps) + self.network(self._input(maps, prefix_lengths))

    def features(self, latents: Tensor, prefix_lengths: Tensor) -> Tensor:
        """What the network makes of latents before the picture grows: (B, widths[-1], h, w)."""
        hidden = self._input(self._maps(latents), prefix_lengths)
        return self.network[: self.coarse_layers](hidden)

    def _maps(self, latents: Tensor) -> Tensor:
        return latents.view(-1, *self.latent_shape).contiguous(memory_format=torch.channels_last)

    def _input(self, maps: Tensor, prefix_lengths: Tensor) -> Tensor:
        return self.input(maps) + self.prefix_embedding(prefix_lengths - 1)[:, :, None, None]
