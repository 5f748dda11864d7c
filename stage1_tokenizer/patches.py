"""Principal components of patches: what the linear shortcuts of both ends start from."""

import torch
from einops import rearrange
from torch import Tensor


def principal_patches(images: Tensor, side: int, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """The directions along which patches of images differ most.

    Args:
        images: float (B, 3, H, W).
        side: Pixels of a patch, height and width; H and W are multiples of it.
        count: How many directions, at most 3 side^2.

    Returns:
        The directions, orthonormal, (count, 3, side, side); the standard deviation of patches
        along them, of all together, (); and the mean patch along each, (count,).
    """
    patches = rearrange(images, "b c (h p) (w q) -> (b h w) (c p q)", p=side, q=side)
    mean = patches.mean(0)
    components = torch.linalg.eigh(torch.cov(patches.T)).eigenvectors[:, -count:].T
    scale = ((patches - mean) @ components.T).std()
    return components.view(count, 3, side, side), scale, components @ mean
