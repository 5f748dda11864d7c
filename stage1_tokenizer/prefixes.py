"""What prefixes of codes keep: lengths that are shown, reconstructions, PSNR, the strip."""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from pqvae.data.batches import map_images
from pqvae.data.dataset import ImageDataset
from pqvae.images import psnr, save_grid, to_float, to_uint8
from stage1_tokenizer.tokenizer import FAITHFUL, Tokenizer


def prefix_grid(cuts: Sequence[int]) -> list[int]:
    """The prefix lengths that are reported, of those that decode: 1, 2, 4, 8 ... and the last.

    Where cuts are few, as with a code for each place, all of them.
    """
    N = cuts[-1]
    powers = [2**i for i in range(N.bit_length()) if 2**i < N]
    return [k for k in (powers if len(cuts) == N else cuts) if k < N] + [N]


def log_uniform(chance: Tensor, cuts: Sequence[int]) -> Tensor:
    """Lengths int64 (B,) among the cuts, as often in 1..2 as in 3..6 or 7..14, of chance in [0, 1).

    As what a code adds to a picture gets less the more there are.
    """
    places = (0.5 * (2 * len(cuts) + 1) ** chance.double()).round().long().clamp(1, len(cuts))
    return torch.tensor(cuts)[places - 1]


@torch.inference_mode()
def reconstruct(
    tokenizer: Tokenizer,
    images: Tensor,
    lengths: Sequence[int],
    decoder: str = FAITHFUL,
    beam: int = 1,
    refine: int = 0,
) -> Tensor:
    """Images decoded from prefixes of their codes: uint8 (B, 3, H, W) -> (lengths, B, 3, H, W)."""
    codes = tokenizer.encode(to_float(images).to(tokenizer.device), beam, refine)
    return torch.stack([to_uint8(tokenizer.decode(codes[:, :k], decoder)).cpu() for k in lengths])


def save_prefix_grid(
    path: Path, tokenizer: Tokenizer, images: Tensor, lengths: Sequence[int], decoded: Tensor
) -> None:
    """Draw images, a row each, as ``reconstruct`` gave them at these lengths, the original last.

    Args:
        path: A PNG file.
        tokenizer: Whose codes have these bits.
        images: The originals, uint8 (B, 3, H, W).
        lengths: Prefix lengths.
        decoded: uint8 (lengths, B, 3, H, W).
    """
    bits = torch.tensor(tokenizer.quantizer.bits).cumsum(0)
    captions = [f"k={k}, {bits[k - 1]:.0f} bits" for k in lengths]
    columns = torch.stack([*decoded, images], dim=1).flatten(0, 1)
    zoom = max(1, 96 // images.shape[-1])
    save_grid(path, columns, len(lengths) + 1, captions=[*captions, "original"], zoom=zoom)


def evenly_spaced_indices(dataset: ImageDataset, count: int) -> Tensor:
    """Indices of this many images from all over a data set, int64 (count,)."""
    return torch.linspace(0, len(dataset) - 1, count).long()


def evenly_spaced(dataset: ImageDataset, count: int) -> Tensor:
    """This many images from all over a data set, uint8 (count, 3, H, W)."""
    return dataset.images(evenly_spaced_indices(dataset, count))


def measure_psnr(
    tokenizer: Tokenizer,
    dataset: ImageDataset,
    lengths: Sequence[int],
    limit: int,
    beam: int = 1,
    refine: int = 0,
) -> list[float]:
    """Mean PSNR in dB over the data set's images (at most ``limit``) at each prefix length."""

    def of_images(originals: Tensor) -> Tensor:
        decoded = reconstruct(tokenizer, originals, lengths, FAITHFUL, beam, refine)
        return torch.stack([psnr(images, originals) for images in decoded], dim=1)

    indices = evenly_spaced_indices(dataset, min(limit, len(dataset)))
    return map_images(dataset, indices, of_images).T.contiguous().mean(1).tolist()


@torch.inference_mode()
def residual_shares(tokenizer: Tokenizer, dataset: ImageDataset, limit: int) -> list[float]:
    """Mean |r_k|^2 over mean |f|^2 at every cut: what prefixes leave of a data set's latents.

    Less on training images than on held-out ones: entries that saw too few images.
    """
    quantizer = tokenizer.quantizer

    def left(images: Tensor) -> Tensor:
        latents = tokenizer.latents(to_float(images).to(tokenizer.device))
        return quantizer.describe_by(latents, quantizer.encode(latents)).left().T

    indices = evenly_spaced_indices(dataset, min(limit, len(dataset)))
    energies = map_images(dataset, indices, left).sum(0)
    return (energies[1:] / energies[0]).tolist()
