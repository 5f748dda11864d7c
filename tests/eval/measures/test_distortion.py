import io
import itertools
import math
from collections.abc import Callable

import pytest
import torch
from PIL import Image
from torch import Tensor

from eval.measures.distortion import ssim
from pqvae import lite0
from pqvae.errors import UserError
from pqvae.images import decode_image, to_uint8
from pqvae.lite0 import DISTANCE_BLOCKS, Lite0, lite0_distance, load_network

needs_lite0 = pytest.mark.skipif(
    lite0.installed_weights() is None, reason=f"{lite0.PACKAGE} is not installed"
)


def random_pixels(n: int, height: int, width: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (n, 3, height, width), dtype=torch.uint8, generator=generator)


def constant(value: int, size: int = 12) -> Tensor:
    return torch.full((1, 3, size, size), value, dtype=torch.uint8)


def slow_ssim(first: Tensor, second: Tensor) -> float:
    """The paper's formula, window by window; both (3, H, W)."""
    weights = torch.tensor(
        [[math.exp(-(a * a + b * b) / 4.5) for a in range(-5, 6)] for b in range(-5, 6)]
    ).double()
    weights /= weights.sum()
    values = []
    for x, y in zip(first.double(), second.double(), strict=True):
        for top in range(x.shape[0] - 10):
            for left in range(x.shape[1] - 10):
                a, b = (z[top : top + 11, left : left + 11] for z in (x, y))
                mean_a, mean_b = (weights * a).sum(), (weights * b).sum()
                variance_a = (weights * (a - mean_a) ** 2).sum()
                variance_b = (weights * (b - mean_b) ** 2).sum()
                covariance = (weights * (a - mean_a) * (b - mean_b)).sum()
                values.append(
                    ((2 * mean_a * mean_b + 2.55**2) * (2 * covariance + 7.65**2))
                    / ((mean_a**2 + mean_b**2 + 2.55**2) * (variance_a + variance_b + 7.65**2))
                )
    return torch.stack(values).mean().item()


def test_ssim_is_the_papers_formula() -> None:
    images = random_pixels(3, 14, 12)
    noise = random_pixels(3, 14, 12, seed=1).int() // 8
    originals = (images.int() + noise).clamp(0, 255).to(torch.uint8)
    expected = [slow_ssim(a, b) for a, b in zip(images, originals, strict=True)]
    assert ssim(images, originals).tolist() == pytest.approx(expected, abs=1e-10)


def test_ssim_of_equal_images_is_one_and_of_constants_the_closed_formula() -> None:
    images = random_pixels(2, 16, 16)
    assert ssim(images, images).tolist() == pytest.approx([1, 1], abs=1e-12)
    expected = (2 * 200 * 50 + 2.55**2) / (200**2 + 50**2 + 2.55**2)
    assert ssim(constant(200), constant(50)).item() == pytest.approx(expected, abs=1e-9)


def test_ssim_of_an_image_depends_on_that_image_alone() -> None:
    images, originals = random_pixels(5, 20, 20), random_pixels(5, 20, 20, seed=1)
    together = ssim(images, originals)
    order = [3, 0, 4]
    assert torch.equal(ssim(images[order], originals[order]), together[order])
    torch.testing.assert_close(ssim(originals, images), together)


def test_ssim_of_images_below_the_window_is_refused() -> None:
    with pytest.raises(UserError, match="at least 11x11 pixels, not 10x16"):
        ssim(random_pixels(1, 10, 16), random_pixels(1, 10, 16))


@pytest.fixture(scope="module")
def random_network() -> Lite0:
    """The network with random weights."""
    torch.manual_seed(0)
    return Lite0().eval().requires_grad_(False)


def slow_distance(network: Lite0, first: Tensor, second: Tensor) -> float:
    """The mean over layers of the mean over places of |a / |a| - b / |b||^2; both (1, 3, H, W)."""
    sides = [network.layers(images) for images in (first, second)]
    distances = []
    for index in (0, *(1 + block for block in DISTANCE_BLOCKS)):
        a, b = (layers[index][0] for layers in sides)
        places = [(y, x) for y in range(a.shape[1]) for x in range(a.shape[2])]
        of_places = [
            (a[:, y, x] / a[:, y, x].norm() - b[:, y, x] / b[:, y, x].norm()).square().sum()
            for y, x in places
        ]
        distances.append(sum(of_places) / len(places))
    return float(sum(distances)) / len(distances)


def test_lite0_distance_is_its_formula(random_network: Lite0) -> None:
    images, originals = random_pixels(2, 64, 70), random_pixels(2, 64, 70, seed=1)
    found = lite0_distance(random_network, images, originals)
    expected = [
        slow_distance(random_network, images[i : i + 1], originals[i : i + 1]) for i in range(2)
    ]
    assert found.tolist() == pytest.approx(expected, rel=1e-4)
    same = lite0_distance(random_network, originals, images)
    torch.testing.assert_close(same, found)
    assert lite0_distance(random_network, images, images).tolist() == [0, 0]


def test_lite0_distance_sees_small_images_enlarged(random_network: Lite0) -> None:
    small, others = random_pixels(2, 16, 16), random_pixels(2, 16, 16, seed=1)
    enlarged = [
        torch.nn.functional.interpolate(images.float(), (64, 64), mode="bilinear")
        for images in (small, others)
    ]
    found = lite0_distance(random_network, small, others)
    torch.testing.assert_close(found, lite0_distance(random_network, enlarged[0], enlarged[1]))
    alone = lite0_distance(random_network, small[1:], others[1:])
    torch.testing.assert_close(alone, found[1:], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("start", ["black", "same"])
def test_lite0_distance_has_finite_gradients(random_network: Lite0, start: str) -> None:
    originals = random_pixels(1, 32, 32)
    images = originals.float() if start == "same" else torch.zeros(1, 3, 32, 32)
    images.requires_grad_()
    lite0_distance(random_network, images, originals).sum().backward()
    assert images.grad is not None
    assert images.grad.isfinite().all()
    assert images.grad.any() == (start == "black")


def jpeg(image: Tensor, quality: int) -> Tensor:
    buffer = io.BytesIO()
    picture = Image.fromarray(image.permute(1, 2, 0).numpy())
    picture.save(buffer, "JPEG", quality=quality)
    return decode_image(buffer.getvalue(), image.shape[-1])


def blur(image: Tensor, repeats: int) -> Tensor:
    blurred = image.float()
    for _ in range(repeats):
        blurred = torch.nn.functional.avg_pool2d(blurred, 3, 1, 1, count_include_pad=False)
    return blurred.round().to(torch.uint8)


def noise(image: Tensor, deviation: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    disturbed = image + deviation * torch.randn(image.shape, generator=generator)
    return disturbed.round().clamp(0, 255).to(torch.uint8)


@needs_lite0
@pytest.mark.parametrize(
    ("distort", "strengths"), [(jpeg, (90, 40, 10)), (blur, (1, 3, 9)), (noise, (3, 10, 30))]
)
@torch.inference_mode()
def test_lite0_distance_grows_with_every_distortion(
    blob_images: Callable[[int, int, int], Tensor],
    distort: Callable[[Tensor, int], Tensor],
    strengths: tuple[int, ...],
) -> None:
    network, originals = load_network(), to_uint8(blob_images(4, 64, 1))
    stripes = torch.arange(64) // 4 % 2 * 90
    originals = (originals // 2 + stripes.to(torch.uint8)).contiguous()
    distances = [
        lite0_distance(network, torch.stack([distort(x, s) for x in originals]), originals)
        for s in strengths
    ]
    for weaker, stronger in itertools.pairwise(distances):
        assert (weaker < stronger).all()
    assert (distances[-1] < 4).all()
