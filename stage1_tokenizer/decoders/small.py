"""The small decoder: for a browser, which has the weights and codebooks to load first.

It sees what the first codes say along few directions, and nothing else of the latent, so that only
these have to be loaded. Every layer is a convolution of one kind or another, SiLU or a sum; there
is no normalisation, as it would be more code there and needs other numbers than the weights.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from stage1_tokenizer.config import ArchitectureConfig
from stage1_tokenizer.decoder_config import SmallConfig
from stage1_tokenizer.decoders.contract import Decoder
from stage1_tokenizer.decoders.direct import DirectDecoder


class PlainBlock(nn.Module):
    """SiLU and a 3x3 convolution, twice, added to the input; the identity at the start."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width, width, 3, padding=1)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1)
        nn.init.zeros_(self.conv2.weight)
        nn.init.zeros_(self.conv2.bias)  # type: ignore[bad-argument-type]

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv2(F.silu(self.conv1(F.silu(x))))


class SmallDecoder(Decoder):
    """Plain blocks at the latent's resolution, one after each doubling, and a linear shortcut.

    Attributes:
        directions: U, float32 (D, R), orthonormal: it is told U^T f_k.
        num_codes: Prefixes that are longer count as of so many codes.
    """

    directions: Tensor

    def __init__(
        self,
        config: SmallConfig,
        architecture: ArchitectureConfig,
        latent_shape: tuple[int, int, int],
        num_codes: int,
    ) -> None:
        super().__init__(config)
        self.latent_shape, self.num_codes = latent_shape, min(config.codes, num_codes)
        channels, width, patch = latent_shape[0], config.width, architecture.downsampling
        D = math.prod(latent_shape)
        self.register_buffer("directions", torch.zeros(D, min(config.directions, D)))
        self.input = nn.Conv2d(channels, width, 3, padding=1)
        self.prefix_embedding = nn.Embedding(self.num_codes, width)
        nn.init.normal_(self.prefix_embedding.weight, std=0.02)
        self.coarse = nn.Sequential(*[PlainBlock(width) for _ in range(config.depth)])
        doublings = len(architecture.widths)
        widths = [max(width >> level, 4) for level in range(doublings)]
        self.up = nn.ModuleList(
            nn.ConvTranspose2d(coarser, finer, 4, stride=2, padding=1)
            for coarser, finer in zip(widths, [*widths[1:], 3], strict=True)
        )
        self.fine = nn.ModuleList(PlainBlock(finer) for finer in widths[1:])
        last = self.up[-1]
        nn.init.zeros_(last.weight)  # type: ignore[bad-argument-type]
        nn.init.zeros_(last.bias)  # type: ignore[bad-argument-type]
        self.shortcut = nn.ConvTranspose2d(channels, 3, patch, stride=patch)

    def forward(
        self,
        latents: Tensor,
        prefix_lengths: Tensor,
        noise: Tensor | None = None,
        labels: Tensor | None = None,
    ) -> Tensor:
        maps = ((latents @ self.directions) @ self.directions.T).view(-1, *self.latent_shape)
        maps = maps.to(self.input.weight.dtype).contiguous(memory_format=torch.channels_last)
        told = self.prefix_embedding(prefix_lengths.clamp_max(self.num_codes) - 1)
        hidden = self.coarse(self.input(maps) + told[:, :, None, None])
        for up, block in zip(self.up, [*self.fine, nn.Identity()], strict=True):
            hidden = block(up(F.silu(hidden)))
        return hidden + self.shortcut(maps)

    def init_from_faithful(self, faithful: Decoder) -> None:
        assert isinstance(faithful, DirectDecoder)
        self.shortcut.load_state_dict(faithful.shortcut.state_dict())
