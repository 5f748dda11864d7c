"""The objective of the drawing decoder: pictures that look real, and vary as real ones do.

The squared error asks for the mean of all pictures that fit, which is a blur. A discriminator asks
for pictures that cannot be told from real ones of the same codes and class, but would be content
with one of each. So each is drawn twice, and the energy score (Gneiting and Raftery, "Strictly
proper scoring rules", 2007) is taken of the two a, a' and the original x,

    ( |a - x| + |a' - x| - |a - a'| ) / 2

whose mean is least for draws from the very distribution of x given the codes, of which there is but
one x each. Differences are those of features, at each place of several layers of a network that
knows pictures: EfficientNet-Lite0, which the discriminator sees by, too. It was trained on the
labels of ImageNet; so nothing that this decoder makes is a figure of unsupervised learning, or to
be judged by that network.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.func import functional_call

from pqvae import lite0
from pqvae.data.dataset import ImageDataset
from pqvae.images import to_float, to_levels
from stage1_tokenizer.decoder_config import COMPARED
from stage1_tokenizer.discriminator import BLOCKS, Discriminator, hinge_loss
from stage1_tokenizer.drawn_config import DrawnObjectiveConfig
from stage1_tokenizer.prefixes import evenly_spaced
from stage1_tokenizer.tokenizer import Tokenizer

BEYOND = 0.1  # weight of what pixels exceed black and white by, squared, lest they run away
SMOOTH = 0.01  # length of differences that count as none
MEASURED_IMAGES = 1000  # training images at most, for scales


class DrawnObjective:
    """Loss of made pictures (B, 3, H, W) in [-1, 1]; it learns to tell them from real ones.

    Attributes:
        discriminator: What is trained beside the decoder.
    """

    def __init__(self, config: DrawnObjectiveConfig, tokenizer: Tokenizer, classes: int) -> None:
        """Raises UserError where the network is not installed."""
        self.config, device = config, tokenizer.device
        self.network = lite0.fuse_norms(lite0.load_network()).to(device)
        self.discriminator = Discriminator(tokenizer.latent_shape, tokenizer.num_codes, classes)
        self.discriminator.to(device).to(memory_format=torch.channels_last)

    def start(self, dataset: ImageDataset) -> None:
        """Measure the scale of real pictures' features."""
        images = to_float(evenly_spaced(dataset, min(MEASURED_IMAGES, len(dataset))))
        with torch.no_grad():
            layers = self.layers(images.to(next(self.discriminator.parameters()).device))
            self.discriminator.start(_judged(layers))

    def losses(
        self,
        pictures: Tensor,
        images: Tensor,
        latents: Tensor,
        prefix_lengths: Tensor,
        labels: Tensor,
    ) -> dict[str, Tensor]:
        """Scalars as the training loop takes them, means over a part of a batch.

        The loss is the decoder's and the discriminator's in one: each gets its own gradient alone.

        Args:
            pictures: What the decoder made of the next three, twice: (2 B, 3, H, W).
            images: The originals, (B, 3, H, W).
            latents: f_k, float32 (B, D).
            prefix_lengths: k, int64 (B,).
            labels: The classes, int64 (B,); their number is none.
        """
        given = latents, prefix_lengths, labels
        twice = [torch.cat([each, each]) for each in given]
        with torch.autocast(images.device.type, enabled=False):  # slower on CPUs, and too coarse
            with torch.no_grad():
                real = self.layers(images)
            # Seen as they will be shown, so that flat white is not hard to make; yet what is beyond
            # white keeps its gradient.
            shown = pictures + (pictures.clamp(-1, 1) - pictures).detach()
            made = self.layers(shown)
            energy = _energy(_compared(made), _compared(real))
            colours = _energy([shown], [images])
            judged = _judged(made)
            frozen = {name: each.detach() for name, each in self.discriminator.named_parameters()}
            fooled = functional_call(self.discriminator, frozen, (judged, *twice))
            seems = torch.stack([logits.mean() for logits in fooled]).mean()
            told = hinge_loss(
                self.discriminator(_judged(real), *given),
                self.discriminator([features.detach() for features in judged], *twice),
            )
            beyond = (pictures.abs() - 1).clamp_min(0).square().mean()
            config = self.config
            near = energy + config.colours * colours
            loss = told - seems + config.energy * near + BEYOND * beyond
        return {
            "loss": loss,
            "discriminator": told.detach(),
            "energy": energy.detach(),
            "colours": colours.detach(),
        }

    def layers(self, images: Tensor) -> list[Tensor]:
        """Features of all layers, of float images (B, 3, H, W) in [-1, 1]."""
        return lite0.enlarged_layers(self.network, to_levels(images))


def _energy(made: Sequence[Tensor], real: Sequence[Tensor]) -> Tensor:
    """The energy score of maps (2 B, C, h, w) of pictures by those of originals (B, C, h, w).

    A mean over maps, places and images.
    """
    scores = []
    for drawn, original in zip(made, real, strict=True):
        first, second = drawn.chunk(2)
        near = _lengths(first - original) + _lengths(second - original)
        scores.append((near - _lengths(first - second)).mean() / 2)
    return torch.stack(scores).mean()


def _lengths(differences: Tensor) -> Tensor:
    """Of differences over the channels; smooth at 0, where two draws begin."""
    return (differences.square().sum(1) + SMOOTH**2).sqrt()


def _compared(layers: Sequence[Tensor]) -> list[Tensor]:
    return lite0.unit_lengths(layers, COMPARED)


def _judged(layers: Sequence[Tensor]) -> list[Tensor]:
    return [layers[block + 1] for block in BLOCKS]
