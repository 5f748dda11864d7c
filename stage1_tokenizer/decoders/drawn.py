"""The drawing decoder: what the codes say, and, drawn from noise, what they leave unsaid.

Many pictures fit few codes, and their mean is a blur. This decoder gives one of them, another for
each noise, in one pass, for every prefix. It starts from what the faithful decoder, which stays as
it is, makes of the codes. Where there are none, and the class alone is said, it makes that of a
latent drawn from the normal distribution that has the mean and the covariance of real ones.
"""

import math
from collections.abc import Mapping

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from stage1_tokenizer.blocks import AttentionBlock
from stage1_tokenizer.config import ArchitectureConfig
from stage1_tokenizer.decoder_config import DirectConfig, DrawnConfig
from stage1_tokenizer.decoders.contract import Decoder
from stage1_tokenizer.decoders.direct import DirectDecoder

GLOBAL_NOISE = 64  # numbers that all layers see
MAP_NOISE = 16  # channels of noise on the coarsest map
LATENT_NOISE = 128  # axes at most, along which a latent is drawn
CONDITION = 256  # numbers that say the prefix length, the class and the noise
FREQUENCIES = 8  # of the prefix length's logarithm


class DrawnDecoder(Decoder):
    """Modulated residual blocks over the faithful decoder's coarse map, and its picture beside it.

    Prefix lengths and classes scale and shift every layer, as in BigGAN (Brock et al., 2019);
    finer layers get noise of their own, as in StyleGAN (Karras et al., 2019).
    """

    mean: Tensor
    axes: Tensor
    unsaid: Tensor

    def __init__(
        self,
        config: DrawnConfig,
        architecture: ArchitectureConfig,
        latent_shape: tuple[int, int, int],
        num_codes: int,
    ) -> None:
        super().__init__(config)
        self.latent_shape = channels, height, width = latent_shape
        self.direct = DirectDecoder(DirectConfig(), architecture, latent_shape, num_codes)
        self.direct.requires_grad_(False)
        axes = min(LATENT_NOISE, math.prod(latent_shape))
        self.register_buffer("mean", torch.zeros(math.prod(latent_shape)))
        self.register_buffer("axes", torch.zeros(axes, math.prod(latent_shape)))
        self.register_buffer("unsaid", torch.ones(num_codes + 1))
        ups = len(architecture.widths)
        widths = [min(config.width, config.full_width << level) for level in reversed(range(ups))]
        coarse = architecture.widths[-1]
        self.noise_shapes = [
            (GLOBAL_NOISE,),
            (axes,),
            (MAP_NOISE, height, width),
            *[(1, height << level, width << level) for level in range(1, ups + 1)],
        ]
        self.noise_size = sum(math.prod(shape) for shape in self.noise_shapes)
        self.class_names = config.class_names
        self.class_embedding = nn.Embedding(len(config.class_names) + 1, CONDITION)
        nn.init.normal_(self.class_embedding.weight, std=0.5)
        self.length = nn.Linear(2 * FREQUENCIES, CONDITION)
        self.noise = nn.Linear(GLOBAL_NOISE, CONDITION)
        self.condition = nn.Linear(CONDITION, CONDITION)
        self.input = nn.Conv2d(channels + coarse + MAP_NOISE, config.width, 3, padding=1)
        self.places = nn.Parameter(0.02 * torch.randn(config.width, height, width))
        self.blocks = nn.ModuleList()
        for _ in range(config.depth):
            self.blocks += [ModulatedBlock(config.width), ModulatedBlock(config.width)]
            self.blocks.append(AttentionBlock(config.width))
        self.ups = nn.ModuleList(
            UpBlock(*pair) for pair in zip([config.width, *widths], widths, strict=False)
        )
        self.beside = nn.Conv2d(3, widths[-1], 3, padding=1)  # the faithful picture
        self.output = nn.Sequential(
            nn.SiLU(),
            nn.GroupNorm(widths[-1] // 16, widths[-1]),
            nn.Conv2d(widths[-1], widths[-1], 3, padding=1),
            nn.SiLU(),
            nn.Conv2d(widths[-1], 3, 3, padding=1),
        )
        nn.init.zeros_(self.output[-1].weight)  # type: ignore[bad-argument-type]
        nn.init.zeros_(self.output[-1].bias)  # type: ignore[bad-argument-type]

    def forward(
        self,
        latents: Tensor,
        prefix_lengths: Tensor,
        noise: Tensor | None = None,
        labels: Tensor | None = None,
    ) -> Tensor:
        noise = latents.new_zeros(len(latents), self.noise_size) if noise is None else noise
        # Noise in proportion to what is left to say: it should not outshout many codes.
        noise = noise * self.unsaid[prefix_lengths].unsqueeze(1)
        pieces = noise.split([math.prod(shape) for shape in self.noise_shapes], dim=1)
        for_all, for_latents, for_map, *for_ups = (
            piece.unflatten(1, shape)
            for piece, shape in zip(pieces, self.noise_shapes, strict=True)
        )
        drawn = self.mean + for_latents @ self.axes
        latents = torch.where((prefix_lengths > 0).unsqueeze(1), latents, drawn)
        with torch.no_grad():
            coarse = self.features(latents, prefix_lengths)
            picture = self.direct.grow(coarse, latents)
        condition = self._condition(prefix_lengths, for_all, labels)
        maps = latents.view(-1, *self.latent_shape)
        hidden = (
            self.input(torch.cat([maps, for_map, coarse], dim=1).to(coarse.dtype)) + self.places
        )
        hidden = hidden.contiguous(memory_format=torch.channels_last)
        for block in self.blocks:
            modulated = isinstance(block, ModulatedBlock)
            hidden = block(hidden, condition) if modulated else block(hidden)
        for up, each in zip(self.ups, for_ups, strict=True):
            hidden = up(hidden, condition, each.to(hidden.dtype))
        return picture + self.output(hidden + self.beside(picture))

    def features(self, latents: Tensor, prefix_lengths: Tensor) -> Tensor:
        return self.direct.features(latents, prefix_lengths.clamp_min(1))

    def init_from_faithful(self, faithful: Decoder) -> None:
        self.direct.load_state_dict(faithful.state_dict())

    def init_from_latents(self, latents: Tensor, left: Mapping[int, float]) -> None:
        """Take mean and covariance of training images' latents f, float32 (n, D).

        And the share of |f|^2 that k codes leave, for each k that decodes.
        """
        for k, share in left.items():
            self.unsaid[k] = share**0.5
        values, vectors = torch.linalg.eigh(torch.cov(latents.double().cpu().T))
        axes = vectors.T * values.clamp_min(0).sqrt().unsqueeze(1)
        self.mean.copy_(latents.mean(0))
        self.axes.copy_(axes[-len(self.axes) :])

    def _condition(self, prefix_lengths: Tensor, noise: Tensor, labels: Tensor | None) -> Tensor:
        no_class = len(self.class_names)
        labels = torch.full_like(prefix_lengths, no_class) if labels is None else labels
        kind = self.length.weight.dtype
        told = self.length(length_waves(prefix_lengths).to(kind)) + self.noise(noise.to(kind))
        told = told + self.class_embedding(labels)
        return F.silu(self.condition(F.silu(told)))


class Modulation(nn.Module):
    """Group norm whose scale and shift a condition (B, CONDITION) gives."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(width // 16, width, affine=False)
        self.of = nn.Linear(CONDITION, 2 * width)
        nn.init.normal_(self.of.weight, std=0.02)
        nn.init.zeros_(self.of.bias)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        scale, shift = rearrange(self.of(condition), "b (t c) -> t b c 1 1", t=2)
        return torch.addcmul(shift, self.norm(x), 1 + scale)


class ModulatedBlock(nn.Module):
    """A residual block at one resolution; the identity at the start."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = Modulation(width), Modulation(width)
        self.conv1 = nn.Conv2d(width, width, 3, padding=1)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1)
        nn.init.zeros_(self.conv2.weight)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        hidden = self.conv1(F.silu(self.norm1(x, condition)))
        return x + self.conv2(F.silu(self.norm2(hidden, condition)))


class UpBlock(nn.Module):
    """A residual block that doubles the resolution, and takes noise (B, 1, 2 h, 2 w)."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = Modulation(inputs), Modulation(outputs)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, padding=1)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1)
        self.skip = nn.Conv2d(inputs, outputs, 1)
        self.noise = nn.Parameter(torch.full((outputs, 1, 1), 0.05))

    def forward(self, x: Tensor, condition: Tensor, noise: Tensor) -> Tensor:
        grown = F.interpolate(F.silu(self.norm1(x, condition)), scale_factor=2.0)
        hidden = self.conv1(grown) + self.noise * noise
        hidden = self.conv2(F.silu(self.norm2(hidden, condition)))
        return F.interpolate(self.skip(x), scale_factor=2.0) + hidden


def length_waves(prefix_lengths: Tensor) -> Tensor:
    """Prefix lengths (B,) from 0 as waves of their logarithm, float32 (B, 2 x FREQUENCIES).

    So near lengths look alike, and those that training met seldom are no strangers.
    """
    octaves = (prefix_lengths.float() + 1).log2().unsqueeze(1)
    angles = octaves * torch.pi / 2 ** torch.arange(FREQUENCIES, device=octaves.device)
    return torch.cat([angles.sin(), angles.cos()], dim=1)
