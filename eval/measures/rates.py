"""Bits and errors at every prefix length, and what each stretch of codes gains."""

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from eval.subjects.selection import Selection
from pqvae.console import Progress
from pqvae.data.batches import map_images
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


def prior_bits(prior: Prior, codes: Tensor, images: Selection) -> dict[str, Tensor]:
    """Mean bits of each position of images with these codes (n, N): float64 (N,).

    "prior", and "class_prior", which is told the classes; not one that the prior was not trained
    for, or whose classes the images lack.
    """
    rates = {}
    if not prior.class_names or prior.config.label_dropout > 0:
        rates["prior"] = position_bits(prior, codes)
    if images.labels is not None and images.dataset.class_names == prior.class_names:
        rates["class_prior"] = position_bits(prior, codes, images.labels)
    return rates


def mean_image(images: Selection) -> Tensor:
    """The best picture without any code: the mean of the images, uint8 (3, H, W)."""
    sums = map_images(images, range(len(images)), lambda batch: batch.double().sum(0, keepdim=True))
    return (sums.sum(0) / len(images)).round().to(torch.uint8)


def prefix_rows(
    psnrs: Tensor,
    rates: Mapping[str, Tensor],
    cuts: Sequence[int],
    ends: Sequence[int],
    size: int,
) -> list[dict[str, Any]]:
    """A row for no code, and for every prefix length that decodes.

    Args:
        psnrs: In dB, of no code and at every cut, float64 (n, cuts + 1).
        rates: Mean bits of each position, float64 (N,), by name.
        cuts: The prefix lengths, rising, the last one N.
        ends: Those of them where segments end, the last one N; the first segment begins at 0. Their
            gained bits stand in the rows of their ends.
        size: Height and width of the images, in pixels.
    """
    mses = (4 / 10 ** (psnrs / 10)).mean(0).tolist()  # in [-1, 1], where the peak is 2
    rows: dict[int, dict[str, Any]] = {}
    for place, k in enumerate([0, *cuts]):
        row = {"codes": k, "psnr": psnrs[:, place].mean().item(), "mse": mses[place]}
        for name, bits in rates.items():
            row[f"{name}_bits"] = bits[:k].sum().item()
            row[f"{name}_bits_per_pixel"] = row[f"{name}_bits"] / size**2
            if k:
                row[f"{name}_bits_of_last_code"] = bits[k - 1].item()
        rows[k] = row
    for begin, end in itertools.pairwise([0, *ends]):
        before, row = rows[begin], rows[end]
        row["segment_begins_after"] = begin
        row["gained_bits"] = 3 * size**2 / 2 * math.log2(before["mse"] / row["mse"])
        for name in (name for name in rates if not name.startswith(TRAIN)):
            spent = row[f"{name}_bits"] - before[f"{name}_bits"]
            # A prior can be sure of a code that is always the same.
            row[f"gained_per_{name}_bit"] = row["gained_bits"] / spent if spent else None
    return list(rows.values())
