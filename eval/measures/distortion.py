"""How far images are from their originals, image by image; PSNR is in ``pqvae.images``."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from eval.networks import lite0
from eval.networks.lite0 import Lite0
from eval.subjects.selection import Selection
from eval.subjects.tokenized import decode
from pqvae.data.batches import map_images
from pqvae.errors import UserError
from pqvae.images import to_float
from stage1_tokenizer import Tokenizer

WINDOW = 11  # pixels
SIGMA = 1.5  # pixels, of the Gaussian in the window
C1, C2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
BLOCKS = (0, 2, 4, 10, 15)  # of lite0, beside its stem: one or two from each resolution
LEAST_SIDE = 64  # pixels; of smaller images the last blocks would see a single position

Measure = Callable[[Tensor, Tensor], Tensor]  # of images and originals uint8 (B, 3, H, W): (B,)


def measure(
    tokenizer: Tokenizer,
    images: Selection,
    lengths: Sequence[int],
    measures: Mapping[str, Measure],
    beam: int = 1,
    refine: int = 0,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Encode images once, and compare what prefixes of their codes decode to with the originals.

    Args:
        tokenizer: On the device to work on.
        images: The originals.
        lengths: Prefix lengths, L.
        measures: What to measure, by name.
        beam: As in ``Tokenizer.encode``.
        refine: As in ``Tokenizer.encode``.

    Returns:
        Codes, int64 (n, N), and by name the values of each image, (n, L); all on the CPU.
    """

    def compare(originals: Tensor) -> tuple[Tensor, ...]:
        codes = tokenizer.encode(to_float(originals).to(tokenizer.device), beam, refine)
        decoded = [decode(tokenizer, codes[:, :k]) for k in lengths]
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


def lite0_distance(network: Lite0, images: Tensor, originals: Tensor) -> Tensor:
    """Perceptual distance by EfficientNet-Lite0, 0 for equal images.

    In the form of LPIPS (Zhang et al., "The unreasonable effectiveness of deep features as a
    perceptual metric", 2018), but of another network and without learned weights, so no LPIPS:
    features of the stem and of blocks 0, 2, 4, 10 and 15 are brought to unit length over the
    channels; squared differences are summed over the channels, averaged over positions and layers.

    Args:
        network: Runs where its parameters are.
        images: (B, 3, H, W), uint8, or float in [0, 255]; gradients flow to these. Images below
            64 pixels are enlarged to 64 first.
        originals: As ``images``.

    Returns:
        float32 (B,) in [0, 4].
    """
    distances = [
        (first - second).square().sum(1).mean((1, 2))
        for first, second in zip(
            _unit_layers(network, images), _unit_layers(network, originals), strict=True
        )
    ]
    return torch.stack(distances).mean(0)


def distance_facts() -> dict[str, Any]:
    """What a report must say of the perceptual distance."""
    return {
        "network": "efficientnet-lite0",
        "stem_and_blocks": BLOCKS,
        "enlarged_to_at_least": LEAST_SIDE,
        "weights": f"{lite0.PACKAGE} {lite0.PACKAGE_VERSION}",
        "sha256": lite0.WEIGHTS_SHA256,
    }


def _unit_layers(network: Lite0, images: Tensor) -> list[Tensor]:
    images = images.to(next(network.parameters()).device).float()
    scale = LEAST_SIDE / min(images.shape[2:])
    if scale > 1:
        size = [round(scale * side) for side in images.shape[2:]]
        images = F.interpolate(images, size, mode="bilinear")
    # TF32, the default of convolutions on GPUs, moves the features in the third digit.
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        stem, *blocks = network.layers(images)
    return [F.normalize(layer, dim=1) for layer in (stem, *(blocks[i] for i in BLOCKS))]
