"""What tells made pictures from real ones, by the features of a network that knows pictures.

Projected GANs (Sauer et al., "Projected GANs converge faster", 2021): small heads on several layers
of a frozen network, here EfficientNet-Lite0, through fixed random projections. A head is also shown
what the decoder was given, codes and class, so that a picture must not only look real, but fit.
The spectral norm bounds what a layer makes of a difference, so that it cannot run away.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pqvae import lite0

BLOCKS = (2, 4, 10, 15)  # of lite0: of 64 pixels maps of 16, 8, 4 and 2 on a side
HALVED = (2, 4)  # the finer ones, before they are judged
WIDTH = 64
SLOPE = 0.2


class Discriminator(nn.Module):
    """Features of pictures, and what they were made of -> logits, high where they look real."""

    def __init__(self, latent_shape: tuple[int, int, int], num_codes: int, classes: int) -> None:
        super().__init__()
        self.latent_shape = latent_shape
        self.heads = nn.ModuleList(
            Head(lite0.BLOCKS[block][0], block in HALVED, latent_shape[0], num_codes, classes)
            for block in BLOCKS
        )

    @torch.no_grad()
    def start(self, layers: Sequence[Tensor]) -> None:
        """Learn the scale of real pictures' features, those of ``BLOCKS``."""
        for head, features in zip(self.heads, layers, strict=True):
            head.start(features)  # type: ignore[not-callable]

    def forward(
        self, layers: Sequence[Tensor], latents: Tensor, prefix_lengths: Tensor, labels: Tensor
    ) -> list[Tensor]:
        """Judge.

        Args:
            layers: Features of each of ``BLOCKS``, (B, C, h, w).
            latents: f_k, float32 (B, D), zeros where k is 0.
            prefix_lengths: k, int64 (B,) in 0..N.
            labels: int64 (B,), the class; their number stands for none.

        Returns:
            Logits (B, h', w') of each head.
        """
        maps = latents.view(-1, *self.latent_shape)
        pairs = zip(self.heads, layers, strict=True)
        return [head(features, maps, prefix_lengths, labels) for head, features in pairs]


class Head(nn.Module):
    """Judges the features of one layer, place by place; classes by projection (Miyato & Koyama)."""

    mean: Tensor
    deviation: Tensor
    projection: Tensor

    def __init__(
        self, channels: int, halves: bool, latent_channels: int, num_codes: int, classes: int
    ) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(channels, 1, 1))
        self.register_buffer("deviation", torch.ones(channels, 1, 1))
        projection = torch.randn(WIDTH, channels, 1, 1) / channels**0.5
        self.register_buffer("projection", projection)
        halve = SpectralConv2d(WIDTH, WIDTH, 4, stride=2, padding=1)
        self.halve = nn.Sequential(halve, nn.LeakyReLU(SLOPE)) if halves else nn.Identity()
        self.latents = nn.Conv2d(latent_channels, WIDTH, 1)
        self.length = nn.Embedding(num_codes + 1, WIDTH)
        nn.init.zeros_(self.length.weight)
        self.conv1 = SpectralConv2d(WIDTH, WIDTH, 3, padding=1)
        self.conv2 = SpectralConv2d(WIDTH, WIDTH, 3, padding=1)
        self.judge = SpectralConv2d(WIDTH, 1, 1)
        self.classes = nn.Embedding(classes + 1, WIDTH)

    def start(self, features: Tensor) -> None:
        self.mean.copy_(features.mean((0, 2, 3)).view_as(self.mean))
        self.deviation.copy_(features.std((0, 2, 3)).view_as(self.deviation))

    def forward(
        self, features: Tensor, latents: Tensor, prefix_lengths: Tensor, labels: Tensor
    ) -> Tensor:
        scaled = (features - self.mean) / self.deviation
        hidden = self.halve(F.conv2d(scaled, self.projection))
        given = self.latents(F.adaptive_avg_pool2d(latents, (hidden.shape[2], hidden.shape[3])))
        hidden = hidden + given + self.length(prefix_lengths)[:, :, None, None]
        hidden = F.leaky_relu(self.conv1(hidden), SLOPE)
        hidden = F.leaky_relu(self.conv2(hidden), SLOPE)
        classes = F.normalize(self.classes(labels), dim=1)
        return self.judge(hidden)[:, 0] + (hidden * classes[:, :, None, None]).sum(1)


class SpectralConv2d(nn.Conv2d):
    """A convolution divided by the largest singular value of its filters (Miyato et al., 2018).

    Found anew each time, which these few filters allow, so that there is no state to keep.
    """

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002
        filters = self.weight.flatten(1)
        largest = torch.linalg.eigvalsh(filters @ filters.T)[-1].sqrt()
        return F.conv2d(input, self.weight / largest, self.bias, self.stride, self.padding)


def hinge_loss(real: Sequence[Tensor], made: Sequence[Tensor]) -> Tensor:
    """The discriminator's loss, a mean over heads, places and images; 2 where it knows nothing."""
    pairs = zip(real, made, strict=True)
    return torch.stack([F.relu(1 - r).mean() + F.relu(1 + m).mean() for r, m in pairs]).mean()
