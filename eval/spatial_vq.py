"""A small spatial VQ-VAE to compare with: the tokenizer's networks around a code for each place.

van den Oord et al., "Neural discrete representation learning", 2017; the codebook is that of
vector-quantize-pytorch (k-means start, moving averages, revival).
"""

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F
from vector_quantize_pytorch import VectorQuantize  # type: ignore[missing-import]

from pqvae.console import Progress
from pqvae.data.batches import TrainingImages
from pqvae.data.config import DataConfig
from pqvae.data.dataset import ImageDataset
from pqvae.training.optim import adamw, learning_rate
from stage1_tokenizer.config import ArchitectureConfig, Config, QuantizerConfig, TokenizerConfig
from stage1_tokenizer.task import PATCH_IMAGES
from stage1_tokenizer.tokenizer import Tokenizer

ENTRIES = 512
CLUSTERED_IMAGES = 256  # by the library's k-means, which is slow
OBJECTIVE, TRAINER = Config().objective, Config().trainer
REVIVE_BELOW = Config().quantizer.revive_below


def vector_quantizer(dim: int, places: int) -> VectorQuantize:
    """The library's vector quantization, of so many vectors an image.

    Gradients pass straight through: the library's default, the rotation trick, ended 2.4 dB lower
    in a spatial VQ-VAE after 250 steps on emoji. An entry is revived when used less than a tenth as
    often as the mean, as ours is; the customary two uses a batch are the mean of a 4x4 map.
    """
    return VectorQuantize(
        dim=dim,
        codebook_size=ENTRIES,
        decay=0.99,
        kmeans_init=True,
        threshold_ema_dead_code=REVIVE_BELOW * TRAINER.batch_size * places / ENTRIES,
        commitment_weight=OBJECTIVE.commitment,
        rotation_trick=False,
    )


class SpatialVQ(nn.Module):
    """A code for each place of the encoder's map, one codebook for all."""

    def __init__(self, architecture: ArchitectureConfig, image_size: int) -> None:
        super().__init__()
        # Of this tokenizer only the networks are used; its decoder knows one length.
        config = TokenizerConfig(
            image_size=image_size,
            architecture=architecture,
            quantizer=QuantizerConfig(num_codes=1, codebook_sizes=(2,)),
        )
        self.networks = Tokenizer(config)
        self.channels, height, width = architecture.latent_shape(image_size)
        self.places = height * width
        self.quantizer = vector_quantizer(self.channels, self.places)

    @torch.no_grad()
    def start(self, images: Tensor) -> None:
        """Set the shortcuts and the codebook from images, float (B, 3, H, W) in [-1, 1]."""
        self.networks.init_from_images(images)
        self.quantize(images[:CLUSTERED_IMAGES])

    def quantize(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Quantized latents (B, places, C), codes int64 (B, places), the weighted commitment."""
        latents = rearrange(self.networks.encoder(images), "b (c p) -> b p c", c=self.channels)
        return self.quantizer(latents)

    def loss(self, images: Tensor) -> Tensor:
        """Squared error and commitment of images, float (B, 3, H, W) in [-1, 1]."""
        quantized, _, commitment = self.quantize(images)
        lengths = torch.ones(len(images), dtype=torch.int64, device=images.device)
        decoded = self.networks.decoder(rearrange(quantized, "b p c -> b (c p)"), lengths)
        return F.mse_loss(decoded, images) + commitment.sum()

    @torch.no_grad()
    def histograms(self, images: Tensor) -> Tensor:
        """How often each entry is used by images (B, 3, H, W) in [-1, 1]: float32 (B, ENTRIES)."""
        codes = self.quantize(images)[1]
        counts = torch.zeros(len(codes), ENTRIES, device=codes.device)
        return counts.scatter_add_(1, codes, torch.ones_like(codes, dtype=counts.dtype))


def train_spatial_vq(
    architecture: ArchitectureConfig,
    data: DataConfig,
    dataset: ImageDataset,
    steps: int,
    seed: int,
    device: torch.device,
) -> SpatialVQ:
    """Train a spatial VQ-VAE as stage 1 trains a tokenizer: its batches, optimizer and rate.

    Args:
        architecture: Of the encoder and decoder.
        data: How images are augmented.
        dataset: The training images.
        steps: At least 1.
        seed: Of weights, clusters, order and augmentation.
        device: Where to train.

    Returns:
        The model, in evaluation mode.
    """
    torch.manual_seed(seed)
    model = SpatialVQ(architecture, data.image_size).to(device)
    batches = TrainingImages(dataset, data, TRAINER.batch_size, seed)
    first = range(-(-PATCH_IMAGES // TRAINER.batch_size))
    model.start(torch.cat([batches(step) for step in first]).to(device))
    optimizer = adamw(model, TRAINER.weight_decay, TRAINER.beta2)
    progress = Progress("training the spatial VQ-VAE", steps * TRAINER.batch_size)
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(TRAINER.learning_rate, step / steps, TRAINER.warmup)
        loss = model.loss(batches(step).to(device))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), TRAINER.clip_norm)
        optimizer.step()
        progress.advance(TRAINER.batch_size)
    progress.close()
    return model.eval()
