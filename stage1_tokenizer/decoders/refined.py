"""The refined decoder: the direct one's picture, and what finer layers add to it.

The direct decoder grows its picture from the coarse map by transposed convolutions, one layer for
each doubling. On the grid that these leave, and on edges finer than it, only layers at the finer
resolutions have a hold.
"""

import torch
from torch import Tensor, nn

from stage1_tokenizer.blocks import ResidualBlock, group_norm
from stage1_tokenizer.config import ArchitectureConfig
from stage1_tokenizer.decoder_config import DirectConfig, RefinedConfig
from stage1_tokenizer.decoders.contract import Decoder
from stage1_tokenizer.decoders.direct import DirectDecoder


class RefinedDecoder(Decoder):
    """A direct decoder, and a branch from its coarse map; at the start the branch adds nothing."""

    def __init__(
        self,
        config: RefinedConfig,
        architecture: ArchitectureConfig,
        latent_shape: tuple[int, int, int],
        num_codes: int,
    ) -> None:
        super().__init__(config)
        self.direct = DirectDecoder(DirectConfig(), architecture, latent_shape, num_codes)
        coarse, half, full = architecture.widths[-1], config.half_width, config.full_width
        grown = architecture.downsampling // 2
        self.to_half = nn.Sequential(
            ResidualBlock(coarse),
            nn.Conv2d(coarse, half * grown**2, 3, padding=1),
            nn.PixelShuffle(grown),
            ResidualBlock(half),
            nn.Conv2d(half, full * 4, 3, padding=1),
            nn.PixelShuffle(2),
        )
        self.to_full = nn.Sequential(
            nn.Conv2d(full + 3, full, 3, padding=1),
            ResidualBlock(full),
            group_norm(full),
            nn.SiLU(),
            nn.Conv2d(full, 3, 3, padding=1),
        )
        nn.init.zeros_(self.to_full[-1].weight)  # type: ignore[bad-argument-type]
        nn.init.zeros_(self.to_full[-1].bias)  # type: ignore[bad-argument-type]

    def forward(
        self,
        latents: Tensor,
        prefix_lengths: Tensor,
        noise: Tensor | None = None,
        labels: Tensor | None = None,
    ) -> Tensor:
        coarse = self.direct.features(latents, prefix_lengths)
        picture = self.direct.grow(coarse, latents)
        return picture + self.to_full(torch.cat([self.to_half(coarse), picture], dim=1))

    def features(self, latents: Tensor, prefix_lengths: Tensor) -> Tensor:
        return self.direct.features(latents, prefix_lengths)

    def init_from_patches(self, components: Tensor, scale: Tensor, colours: Tensor) -> None:
        self.direct.init_from_patches(components, scale, colours)

    def init_from_faithful(self, faithful: Decoder) -> None:
        self.direct.load_state_dict(faithful.state_dict())
