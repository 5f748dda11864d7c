"""Expected distortion over prefix lengths: the loss whose minimum orders the codes by usefulness.

    I(X; Z_1..k) >= H(X) + E[log p(x | z_1..k)]    and    H(Z_1..k) <= log2 K_1 + ... + log2 K_k

With a Gaussian decoder the first bound rises as the squared error of image_k falls, so the error
averaged over prefix lengths k raises the information about the image at every description length at
once. Every image is decoded at one length: mostly the full one, else one drawn uniformly (decoding
each image at both costs half as much again and gains less at equal time). Short prefixes have large
errors, which drown the others if drawn too often; without any, the full length is worse, too.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from stage1_tokenizer.config import ObjectiveConfig
from stage1_tokenizer.quantizers.contract import Description
from stage1_tokenizer.tokenizer import Tokenizer


def draw_prefix_lengths(
    batch_size: int, cuts: Sequence[int], full_share: float, generator: torch.Generator
) -> Tensor:
    """A prefix length for each image, int64 (B,) of the cuts: N for some, else uniform."""
    drawn = torch.randint(len(cuts), (batch_size,), generator=generator)
    full = torch.rand(batch_size, generator=generator) < full_share
    return torch.tensor(cuts)[drawn].masked_fill_(full, cuts[-1])


def prefix_loss(
    tokenizer: Tokenizer,
    config: ObjectiveConfig,
    description: Description,
    images: Tensor,
    lengths: Tensor,
) -> dict[str, Tensor]:
    """The loss of images decoded from prefixes: "loss", and scalars to be logged.

    Normalized latents have unit variance, so the commitment needs no scale. Every loss is a mean
    over images: those of the parts of a batch average to that of the batch.

    Args:
        tokenizer: Its faithful decoder is trained, and through it the encoder.
        config: Weights.
        description: Of the images' latents.
        images: float (B, 3, H, W) in [-1, 1].
        lengths: int64 (B,), how many codes each is decoded from.
    """
    distortion, scalars = tokenizer.decoder().loss(description.prefix(lengths), lengths, images)
    with torch.no_grad():
        whole = description.prefix(torch.full_like(lengths, tokenizer.num_codes))
        # |r_N|^2 / |f|^2: the share of the latent that the codes leave undescribed.
        left = (description.latents - whole).square().sum(1)
        scalars["residual"] = (left / description.latents.square().sum(1)).mean()
    commitment = F.mse_loss(description.latents, whole)
    loss = distortion + config.commitment * commitment
    if description.loss is not None:
        loss = loss + description.loss
    return {"loss": loss, **scalars, **description.scalars}
