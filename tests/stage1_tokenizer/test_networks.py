"""Encoder and decoder: the linear start, attention, and sizes that do not fit."""

from typing import TYPE_CHECKING

import pytest
import torch
from torch import Tensor

from stage1_tokenizer.config import ArchitectureConfig, ResidualConfig, TokenizerConfig
from stage1_tokenizer.tokenizer import Tokenizer

if TYPE_CHECKING:
    from tests.conftest import BlobImages

SIZE = 16


def test_untrained_network_reconstructs_as_well_as_principal_components(
    blob_images: "BlobImages",
) -> None:
    patch, channels = 4, 5
    architecture = ArchitectureConfig(
        widths=(16, 16), encoder_blocks=(1, 1), decoder_blocks=(1, 1), latent_channels=channels
    )
    torch.manual_seed(0)
    tokenizer = Tokenizer(TokenizerConfig(image_size=SIZE, architecture=architecture))
    images = blob_images(64, SIZE, 3)
    tokenizer.init_from_images(images)
    with torch.no_grad():
        latents = tokenizer.encoder(images)
        decoded = tokenizer.decoder()(latents, torch.ones(64, dtype=torch.int64))
    error = float((decoded - images).square().mean())

    patches = []  # the reference: every patch by itself, projected by an SVD in float64
    for image in images.double():
        for top in range(0, SIZE, patch):
            for left in range(0, SIZE, patch):
                patches.append(image[:, top : top + patch, left : left + patch].flatten())
    rows = torch.stack(patches)
    centred = rows - rows.mean(0)
    basis = torch.linalg.svd(centred, full_matrices=False).Vh[:channels]
    reference = float((centred @ basis.T @ basis - centred).square().mean())

    # The only difference allowed: the mean patch is replaced by its mean colour.
    colours = rows.mean(0).view(3, -1).mean(1, keepdim=True).expand(3, patch**2).flatten()
    lost = rows.mean(0) - colours
    lost = float((lost - lost @ basis.T @ basis).square().mean())
    assert reference <= error * 1.0001
    assert error <= (reference + lost) * 1.01
    assert error < 0.2 * float(centred.square().mean())  # five of 48 numbers say a lot
    assert float(latents.std()) == pytest.approx(1, abs=0.05)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"widths": (16, 32), "encoder_blocks": (1,)}, "equally long"),
        ({"widths": (16, 24)}, "multiple of 16"),
        ({"widths": (16, 16), "decoder_blocks": (0, -1)}, "greater than or equal to 0"),
        ({"widths": (16, 16), "latent_channels": 49}, "a patch has 48 numbers"),
    ],
)
def test_impossible_architectures_are_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ArchitectureConfig(**settings)  # type: ignore[bad-argument-type]


def test_image_size_that_cannot_be_halved_so_often_is_refused() -> None:
    architecture = ArchitectureConfig(widths=(16, 16), latent_channels=4)
    with pytest.raises(ValueError, match="image_size 18 must be a multiple of 4"):
        Tokenizer(TokenizerConfig(image_size=18, architecture=architecture))


def test_attention_looks_at_the_whole_map_and_keeps_rows_apart() -> None:
    architecture = ArchitectureConfig(
        widths=(16, 32),
        encoder_blocks=(0, 1),
        decoder_blocks=(0, 1),
        attention=True,
        latent_channels=4,
    )
    torch.manual_seed(0)
    config = TokenizerConfig(
        image_size=SIZE,
        architecture=architecture,
        quantizer=ResidualConfig(num_codes=2, codebook_sizes=(4,)),
    )
    encoder = Tokenizer(config).encoder
    for parameter in encoder.parameters():  # the zero starts would hide what the blocks do
        torch.nn.init.normal_(parameter, std=0.2)
    images = torch.rand(3, 3, SIZE, SIZE) * 2 - 1
    changed = images.clone()
    changed[1, :, :4, :4] += 0.5  # one corner of one image

    def difference(a: Tensor, b: Tensor) -> Tensor:
        return (a - b).abs().view(3, 4, 4, 4).amax(1)

    with torch.no_grad():
        moved = difference(encoder(images), encoder(changed))
    assert (moved[1] > 1e-6).all()  # felt at every place of its map
    assert moved[[0, 2]].max() == 0
