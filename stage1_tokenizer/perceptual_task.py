"""Training a decoder by the features of a network: what is measured of it beside squared error."""

from abc import ABC
from collections.abc import Mapping

import torch
from torch import Tensor

from pqvae import lite0
from pqvae.data.batches import map_images
from pqvae.data.dataset import ImageDataset
from pqvae.images import to_float, to_levels
from stage1_tokenizer.decoder_config import COMPARED
from stage1_tokenizer.decoder_task import C, D, DecoderTask, errors
from stage1_tokenizer.prefixes import evenly_spaced_indices


class PerceptualTask(DecoderTask[C, D], ABC):
    """Trains a decoder for eyes.

    Attributes:
        network: The feature network that it is trained with.
    """

    network: lite0.Lite0
    watched: Mapping[str, int] = {"kernel": 4, "distance": 4, "psnr": 2}
    shown: Mapping[str, tuple[str, int]] = {"distance": ("distance", 4), "psnr": ("PSNR in dB", 2)}
    trained_with = f"{lite0.NAME}, trained on the labels of ImageNet"
    facts: Mapping[str, str] = {
        "distance_by": f"{lite0.PACKAGE} {lite0.PACKAGE_VERSION}, the network trained with"
    }

    def measure(self, dataset: ImageDataset, decoder: str, limit: int) -> dict[str, list[float]]:
        """Figures of held-out images at each prefix length.

        They are means of distance, squared error and PSNR, and the kernel distance of all pictures
        from all originals.
        """

        def features(images: Tensor) -> tuple[list[Tensor], Tensor]:
            layers = lite0.enlarged_layers(self.network, to_levels(images))
            return lite0.unit_lengths(layers, COMPARED), self.network.pooled(layers[-1])

        def compare(originals: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            images = to_float(originals).to(self.runtime.device)
            wanted, real = features(images)
            rows, made = [], []
            for pictures in self.pictures(images, decoder):
                found, pooled = features(pictures)
                distance = lite0.layers_distance(found, wanted)
                rows.append(torch.stack([distance, *errors(pictures, images, originals)], dim=1))
                made.append(pooled)
            return torch.stack(rows, dim=1), torch.stack(made, dim=1), real

        indices = evenly_spaced_indices(dataset, min(limit, len(dataset)))
        figures, made, real = map_images(dataset, indices, compare)  # (n, lengths, 3) ...
        means = figures.double().mean(0).T.tolist()
        kernel = [kernel_distance(made[:, place], real) for place in range(len(self.lengths))]
        return dict(zip(("distance", "mse", "psnr", "kernel"), [*means, kernel], strict=True))


def kernel_distance(made: Tensor, real: Tensor) -> float:
    """The squared distance of two sets' features, (n, F) and (m, F); about 0 where they are alike.

    The unbiased estimate by the cubic kernel, as in KID (Bińkowski et al., 2018).
    """

    def inside(one: Tensor) -> Tensor:
        kernel, n = _kernel(one, one), len(one)
        return (kernel.sum() - kernel.trace()) / max(n * (n - 1), 1)

    made, real = made.double(), real.double()
    return float(inside(made) + inside(real) - 2 * _kernel(made, real).mean())


def _kernel(first: Tensor, second: Tensor) -> Tensor:
    return (first @ second.T / first.shape[1] + 1) ** 3
