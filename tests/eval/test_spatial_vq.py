"""The spatial VQ-VAE of the probe: an image is counts of its codes, and nothing else."""

from typing import TYPE_CHECKING

import pytest
import torch

from pqvae.data.config import DataConfig
from pqvae.data.dataset import open_dataset
from pqvae.images import to_float
from stage1_tokenizer.config import ArchitectureConfig

if TYPE_CHECKING:
    from tests.conftest import TinyRun

pytest.importorskip("vector_quantize_pytorch")

SMALL = ArchitectureConfig(
    widths=(16, 32), encoder_blocks=(0, 1), decoder_blocks=(0, 1), latent_channels=4
)


def test_training_lowers_the_loss_and_images_are_counts_of_their_codes(
    tiny_run: "TinyRun",
) -> None:
    from eval.spatial_vq import ENTRIES, train_spatial_vq

    data = DataConfig(path=str(tiny_run.data), image_size=16)
    dataset = open_dataset(data, "train")
    images = to_float(dataset.images(range(len(dataset))))
    cpu = torch.device("cpu")
    losses, counts = [], []
    for steps in (1, 20, 20):
        model = train_spatial_vq(SMALL, data, dataset, steps, 0, cpu)
        with torch.no_grad():
            losses.append(model.loss(images).item())
        counts.append(model.histograms(images))
    assert losses[1] < 0.9 * losses[0]
    assert torch.equal(counts[1], counts[2])  # the seed decides
    model = train_spatial_vq(SMALL, data, dataset, 1, 0, cpu)
    codes = model.quantize(images)[1]
    assert codes.shape == (len(images), 16)
    expected = torch.stack([row.bincount(minlength=ENTRIES) for row in codes]).float()
    assert torch.equal(model.histograms(images), expected)
    assert torch.equal(model.histograms(images[:1]), expected[:1])  # nothing is learned any more
