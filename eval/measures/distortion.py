"""How far images are from their originals, image by image; PSNR is in ``pqvae.images``."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from eval.subjects.selection import Selection
from eval.subjects.tokenized import decode
from pqvae import lite0
from pqvae.data.batches import map_images
from pqvae.errors import UserError
from pqvae.images import to_float
from stage1_tokenizer import Tokenizer
from stage1_tokenizer.tokenizer import FAITHFUL

WINDOW = 11  # pixels
SIGMA = 1.5  # pixels, of the Gaussian in the window
C1, C2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2

Measure = Callable[[Tensor, Tensor], Tensor]  # of images and originals uint8 (B, 3, H, W): (B,)


def measure(
    tokenizer: Tokenizer,
    images: Selection,
    lengths: Sequence[int],
    measures: Mapping[str, Measure],
    beam: int = 1,
    refine: int = 0,
    decoder: str = FAITHFUL,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Encode images once, and compare what prefixes of their codes decode to with the originals.

    Args:
        tokenizer: On the device to work on.
        images: The originals.
        lengths: Prefix lengths, L.
        measures: What to measure, by name.
        beam: As in ``Tokenizer.encode``.
        refine: As in ``Tokenizer.encode``.
        decoder: Whose pictures are measured.

    Returns:
        Codes, int64 (n, N), and by name the values of each image, (n, L); all on the CPU.
    """

    def compare(originals: Tensor) -> tuple[Tensor, ...]:
        codes = tokenizer.encode(to_float(originals).to(tokenizer.device), beam, refine)
        decoded = [decode(tokenizer, codes[:, :k], decoder) for k in lengths]
        values = ([of(image, originals).cpu() for image in decoded] for of in measures.values())
        return codes, *(torch.stack(rows, dim=1) for rows in values)

    codes, *values = map_images(images, range(len(images)), compare, "reconstructing")
    return codes, dict(zip(measures, values, strict=True))


def ssim(images: Tensor, originals: Tensor) -> Tensor:
    """Structural similarity, 1 for equal images.

    As in Wang et al., "Image quality assessment: from error visibility to structural similarity",
    2004: an 11x11 Gaussian window, everywhere where it lies inside the image; here the mean over
    the colour channels, not of the luminance.

    Args:
        images: uint8 (B, 3, H, W).
        originals: uint8 (B, 3, H, W).

    Returns:
        float64 (B,), at most 1.

    Raises:
        UserError: The images are smaller than the window.
    """
    if min(images.shape[2:]) < WINDOW:
        size = f"{images.shape[2]}x{images.shape[3]}"
        raise UserError(f"SSIM needs images of at least {WINDOW}x{WINDOW} pixels, not {size}")
    # float64: variances are small differences of large squares
    x, y = images.double(), originals.double()
    mean_x, mean_y = _blur(x), _blur(y)
    variances = _blur(x * x) - mean_x**2 + _blur(y * y) - mean_y**2
    covariance = _blur(x * y) - mean_x * mean_y
    luminance = (2 * mean_x * mean_y + C1) / (mean_x**2 + mean_y**2 + C1)
    return (luminance * (2 * covariance + C2) / (variances + C2)).mean((1, 2, 3))


def _blur(x: Tensor) -> Tensor:
    """Mean under the window, (B, C, H, W) -> (B, C, H - 10, W - 10)."""
    places = torch.arange(WINDOW).double() - WINDOW // 2
    window = torch.softmax(-places.square() / (2 * SIGMA**2), 0).tolist()  # sums to 1
    for dim in (2, 3):
        length = x.shape[dim] - WINDOW + 1
        shifted = (weight * x.narrow(dim, i, length) for i, weight in enumerate(window))
        x = sum(shifted, x.new_zeros(()))
    return x


def distance_facts() -> dict[str, Any]:
    """What a report must say of the perceptual distance."""
    return {
        "network": "efficientnet-lite0",
        "stem_and_blocks": lite0.DISTANCE_BLOCKS,
        "enlarged_to_at_least": lite0.LEAST_SIDE,
        "weights": f"{lite0.PACKAGE} {lite0.PACKAGE_VERSION}",
        "sha256": lite0.WEIGHTS_SHA256,
    }
