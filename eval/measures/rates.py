"""Bits and errors at every prefix length, and what each stretch of codes gains."""

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from eval.subjects.tokenized import chunk_size, decode
from pqvae.console import Progress
from pqvae.data.dataset import ImageDataset
from pqvae.images import psnr
from stage1_tokenizer import Tokenizer
from stage2_prior import Prior

CHUNK = 256  # sequences at once
TRAIN = "train_"  # begins the names of rates on training images


def position_bits(prior: Prior, codes: Tensor, labels: Tensor | None = None) -> Tensor:
    """Mean bits of each position under a prior.

    Args:
        prior: On any device.
        codes: int64 (n, N).
        labels: Classes, int64 (n,); None for "no class".

    Returns:
        float64 (N,), on the CPU; their sum is what an image costs.
    """
    progress = Progress("bits", len(codes))
    device = prior.device
    total = torch.zeros(codes.shape[1], dtype=torch.float64)
    with torch.inference_mode():
        for chunk in torch.arange(len(codes)).split(CHUNK):
            classes = None if labels is None else labels[chunk].to(device)
            total += prior.bits(codes[chunk].to(device), classes).cpu().double().sum(0)
            progress.advance(len(chunk))
    progress.close()
    return total / len(codes)


def prior_bits(
    prior: Prior, codes: Tensor, dataset: ImageDataset, indices: Sequence[int]
) -> dict[str, Tensor]:
    """Mean bits of each position, float64 (N,): "prior", and "class_prior", told the classes.

    One that the prior was not trained for, or whose classes the images lack, is left out.
    """
    rates = {}
    if not prior.class_names or prior.config.label_dropout > 0:
        rates["prior"] = position_bits(prior, codes)
    if dataset.labels is not None and dataset.class_names == prior.class_names:
        rates["class_prior"] = position_bits(prior, codes, dataset.labels[indices])
    return rates


def mean_image(dataset: ImageDataset, indices: Sequence[int]) -> Tensor:
    """The best picture without any code: the mean of the images named, uint8 (3, H, W)."""
    chunks = torch.tensor(indices).split(chunk_size(dataset.image_size))
    total = torch.stack([dataset.images(chunk).double().sum(0) for chunk in chunks]).sum(0)
    return (total / len(indices)).round().to(torch.uint8)


def measure_psnr(
    tokenizer: Tokenizer,
    dataset: ImageDataset,
    indices: Sequence[int],
    codes: Tensor,
    start: Tensor,
) -> Tensor:
    """PSNR of each image at every prefix length.

    Args:
        tokenizer: Decodes the prefixes, on its device.
        dataset: The originals.
        indices: Which of them the codes are of.
        codes: int64 (n, N).
        start: What stands for an image of which no code is known, uint8 (3, H, W).

    Returns:
        float64 (n, N + 1) in dB, from no code to all of them.
    """
    progress = Progress("decoding", len(indices))
    parts = []
    for chunk in torch.arange(len(codes)).split(chunk_size(dataset.image_size)):
        originals = dataset.images([indices[place] for place in chunk.tolist()])
        values = [psnr(start, originals)]
        for k in range(1, codes.shape[1] + 1):
            values.append(psnr(decode(tokenizer, codes[chunk, :k]), originals))
        parts.append(torch.stack(values, dim=1))
        progress.advance(len(chunk))
    progress.close()
    return torch.cat(parts)


def prefix_rows(
    psnrs: Tensor, rates: Mapping[str, Tensor], lengths: Sequence[int], size: int
) -> list[dict[str, Any]]:
    """A row for every prefix length, 0 to N.

    Args:
        psnrs: In dB, float64 (n, N + 1).
        rates: Mean bits of each position, float64 (N,), by name.
        lengths: Where segments end, rising, the last one N; the first segment begins at 0. Their
            gained bits stand in the rows of their ends.
        size: Height and width of the images, in pixels.
    """
    mses = (4 / 10 ** (psnrs / 10)).mean(0).tolist()  # in [-1, 1], where the peak is 2
    rows: list[dict[str, Any]] = []
    for k, mse in enumerate(mses):
        row = {"codes": k, "psnr": psnrs[:, k].mean().item(), "mse": mse}
        for name, bits in rates.items():
            row[f"{name}_bits"] = bits[:k].sum().item()
            row[f"{name}_bits_per_pixel"] = row[f"{name}_bits"] / size**2
            if k:
                row[f"{name}_bits_of_last_code"] = bits[k - 1].item()
        rows.append(row)
    for begin, end in itertools.pairwise([0, *lengths]):
        row = rows[end]
        row["segment_begins_after"] = begin
        row["gained_bits"] = 3 * size**2 / 2 * math.log2(mses[begin] / mses[end])
        for name in (name for name in rates if not name.startswith(TRAIN)):
            spent = row[f"{name}_bits"] - rows[begin][f"{name}_bits"]
            # A prior can be sure of a code that is always the same.
            row[f"gained_per_{name}_bit"] = row["gained_bits"] / spent if spent else None
    return rows
