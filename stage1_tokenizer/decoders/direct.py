"""The faithful decoder, in one pass: the encoder's mirror image, the mean of all that fits."""

import torch
from torch import Tensor, nn

from stage1_tokenizer.blocks import blocks, group_norm
from stage1_tokenizer.config import ArchitectureConfig
from stage1_tokenizer.decoder_config import DirectConfig
from stage1_tokenizer.decoders.contract import Decoder


class DirectDecoder(Decoder):
    """Convolutions, and a linear shortcut beside them; told how many codes a latent is made of."""

    def __init__(
        self,
        config: DirectConfig,
        architecture: ArchitectureConfig,
        latent_shape: tuple[int, int, int],
        num_codes: int,
    ) -> None:
        super().__init__(config)
        self.latent_shape = latent_shape
        widths, patch = architecture.widths, architecture.downsampling
        self.input = nn.Conv2d(architecture.latent_channels, widths[-1], 3, padding=1)
        self.prefix_embedding = nn.Embedding(num_codes, widths[-1])
        nn.init.normal_(self.prefix_embedding.weight, std=0.02)
        layers: list[nn.Module] = []
        for level in reversed(range(len(widths))):
            width, coarsest = widths[level], level == len(widths) - 1
            count = architecture.decoder_blocks[level]
            layers += blocks(width, count, architecture.attention and coarsest)
            layers += [group_norm(width), nn.SiLU()]
            if coarsest:
                self.coarse_layers = len(layers)  # before the picture grows
            finer = widths[level - 1] if level > 0 else 3
            layers.append(nn.ConvTranspose2d(width, finer, 4, stride=2, padding=1))
        nn.init.zeros_(layers[-1].weight)  # type: ignore[bad-argument-type]
        nn.init.zeros_(layers[-1].bias)  # type: ignore[bad-argument-type]
        self.network = nn.Sequential(*layers)
        self.shortcut = nn.ConvTranspose2d(architecture.latent_channels, 3, patch, stride=patch)

    def forward(
        self,
        latents: Tensor,
        prefix_lengths: Tensor,
        noise: Tensor | None = None,
        labels: Tensor | None = None,
    ) -> Tensor:
        return self.grow(self.features(latents, prefix_lengths), latents)

    def features(self, latents: Tensor, prefix_lengths: Tensor) -> Tensor:
        """The coarse map that the picture grows from: (B, widths[-1], h, w)."""
        hidden = self._input(self._maps(latents), prefix_lengths)
        return self.network[: self.coarse_layers](hidden)

    def grow(self, coarse: Tensor, latents: Tensor) -> Tensor:
        """The picture that grows from a coarse map of these latents."""
        return self.shortcut(self._maps(latents)) + self.network[self.coarse_layers :](coarse)

    def init_from_patches(self, components: Tensor, scale: Tensor, colours: Tensor) -> None:
        self.shortcut.weight.copy_(components * scale)
        # One bias per colour: the mean of a patch is nearly the same all over it.
        self.shortcut.bias.copy_(colours)  # type: ignore[union-attr]

    def _maps(self, latents: Tensor) -> Tensor:
        maps = latents.view(-1, *self.latent_shape).to(self.input.weight.dtype)
        return maps.contiguous(memory_format=torch.channels_last)

    def _input(self, maps: Tensor, prefix_lengths: Tensor) -> Tensor:
        return self.input(maps) + self.prefix_embedding(prefix_lengths - 1)[:, :, None, None]
