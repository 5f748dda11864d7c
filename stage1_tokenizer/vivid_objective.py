"""The objective of the vivid decoder: what pictures are compared by, one by one and all together.

The squared error asks for the mean of all pictures that fit, which is a blur. A distance by the
features of a network that knows pictures (in the form of LPIPS, Zhang et al., 2018) asks for one
that looks like them. Still each picture alone errs to the safe side, and all together vary less
than real ones; so in the end the distance of all made pictures from all real ones counts as well.
That network, EfficientNet-Lite0, was trained on the labels of ImageNet; so nothing that this
decoder makes is a figure of unsupervised learning, or to be judged by it.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from pqvae import distributed, lite0
from pqvae.data.batches import map_images
from pqvae.data.dataset import ImageDataset
from pqvae.images import to_levels
from stage1_tokenizer.decoder_config import COMPARED, VividObjectiveConfig
from stage1_tokenizer.frechet import FrechetLoss
from stage1_tokenizer.prefixes import evenly_spaced_indices

SUMMARIZED = (2, 4, 10)  # whose summaries are matched, beside the pooled features
LAST = len(lite0.BLOCKS) - 1
REAL_IMAGES = 10_000  # training images at most, whose summaries are the aim


class VividObjective:
    """Loss of made pictures (B, 3, H, W) in [-1, 1] against their originals."""

    def __init__(self, config: VividObjectiveConfig, device: torch.device) -> None:
        """Raises UserError where the network is not installed."""
        self.config = config
        self.network = lite0.fuse_norms(lite0.load_network()).to(device)
        sizes = lite0.summary_sizes(SUMMARIZED) if config.frechet else []
        self.terms = [FrechetLoss(D).to(device) for D in sizes]
        self._summaries: list[list[Tensor]] = []  # of the step's parts

    def start(self, dataset: ImageDataset) -> None:
        """Measure real pictures, which all made ones together are to resemble."""

        def summarize(images: Tensor) -> tuple[Tensor, ...]:
            layers = lite0.enlarged_layers(self.network, images)
            return tuple(lite0.summaries(self.network, layers, SUMMARIZED))

        indices = evenly_spaced_indices(dataset, min(REAL_IMAGES, len(dataset)))
        columns = map_images(dataset, indices, summarize) if self.terms else ()
        for term, real in zip(self.terms, columns, strict=True):
            term.start(real)

    def losses(self, pictures: Tensor, images: Tensor, progress: float) -> dict[str, Tensor]:
        """Scalars as the training loop takes them, means over a part of a batch.

        The distance of all from all counts after a share of the training, ``progress`` in [0, 1).
        """
        matches = bool(self.terms) and progress >= self.config.frechet_after
        with torch.autocast("cpu", enabled=False):  # there it slows these small convolutions down
            with torch.no_grad():
                wanted = self.layers(images)
            last = LAST if matches else max(COMPARED)
            made = lite0.enlarged_layers(self.network, to_levels(pictures), last)
            distance = lite0.layers_distance(lite0.unit_lengths(made, COMPARED), wanted).mean()
            mse = F.mse_loss(pictures, images)
            loss = distance + self.config.squared_error * mse
            if matches:
                loss = loss + self.config.frechet * self._match(made)
        scalars = {"loss": loss, "distance": distance.detach(), "mse": mse.detach()}
        if self.terms:
            scalars["frechet"] = self.frechet_distance()
        return scalars

    def _match(self, layers: Sequence[Tensor]) -> Tensor:
        summaries = [each.float() for each in lite0.summaries(self.network, layers, SUMMARIZED)]
        self._summaries.append([each.detach() for each in summaries])
        pairs = zip(self.terms, summaries, strict=True)
        return torch.stack([term(each) for term, each in pairs]).mean()

    def learn(self, step: int, finite: Tensor, first: int, batch_size: int) -> None:
        """Account for the pictures of a step, of which this process's begin with the first."""
        parts, self._summaries = self._summaries, []
        for term, rows in zip(self.terms, zip(*parts, strict=True), strict=False):
            term.learn(distributed.gather(torch.cat(rows), first, batch_size), step, finite)

    def layers(self, images: Tensor) -> list[Tensor]:
        """What the distance compares, of float images (B, 3, H, W) in [-1, 1]."""
        return lite0.unit_layers(self.network, to_levels(images), COMPARED)

    def frechet_distance(self) -> Tensor:
        """How far all made pictures are from all real ones, a mean over what is matched."""
        return torch.stack([term.distance for term in self.terms]).mean()

    def score(self, distances: Sequence[float], errors: Sequence[float]) -> float:
        """The loss of held-out images, by prefix length, with what is known of all together.

        Without that, steps before it counted would be kept, as it costs each picture something.
        """
        weight, pairs = self.config.squared_error, zip(distances, errors, strict=True)
        alone = sum(distance + weight * error for distance, error in pairs) / len(distances)
        together = float(self.frechet_distance()) if self.terms else 0.0
        return alone + self.config.frechet * together

    def state_dict(self) -> list[dict[str, Any]]:
        """What it has learned from real and made pictures."""
        return [term.state_dict() for term in self.terms]

    def load_state_dict(self, state: list[dict[str, Any]]) -> None:
        for term, buffers in zip(self.terms, state, strict=True):
            term.load_state_dict(buffers)
