"""The drawing decoder's objective: two losses in one, each with its own gradient alone."""

from typing import TYPE_CHECKING

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from pqvae import lite0
from pqvae.data.config import DataConfig
from pqvae.data.dataset import open_splits
from pqvae.images import to_float
from stage1_tokenizer.discriminator import Discriminator, Head, SpectralConv2d, hinge_loss
from stage1_tokenizer.drawn_config import DrawnObjectiveConfig
from stage1_tokenizer.drawn_objective import DrawnObjective
from stage1_tokenizer.perceptual_task import kernel_distance
from stage1_tokenizer.prefixes import log_uniform
from stage1_tokenizer.tokenizer import Tokenizer

if TYPE_CHECKING:
    from tests.conftest import BlobImages, TinyRun

needs_lite0 = pytest.mark.skipif(
    lite0.installed_weights() is None, reason=f"{lite0.PACKAGE} is not installed"
)
B = 4


@pytest.fixture
def objective(tiny_tokenizer: Tokenizer) -> DrawnObjective:
    torch.manual_seed(0)
    return DrawnObjective(DrawnObjectiveConfig(), tiny_tokenizer, classes=2)


Given = tuple[Tensor, Tensor, Tensor]


@pytest.fixture
def given(tiny_tokenizer: Tokenizer, blob_images: "BlobImages") -> tuple[Tensor, Tensor, Given]:
    """Two pictures of each image, which take gradients, the images, and what they are made of."""
    images = blob_images(B, 16, 1)
    codes = tiny_tokenizer.encode(images)[:, :3]
    one = tiny_tokenizer.decode(codes)
    pictures = torch.cat([one, 0.8 * one.roll(1, 3)]).requires_grad_()
    labels = torch.tensor([0, 1, 2, 0])
    made_of = tiny_tokenizer.quantizer.decode(codes), torch.full((B,), 3), labels
    return pictures, images, made_of


def judged(objective: DrawnObjective, pictures: Tensor) -> list[Tensor]:
    layers = objective.layers(pictures)
    return [layers[place] for place in (3, 5, 11, 16)]


@needs_lite0
def test_each_of_the_two_gets_the_gradient_of_its_own_loss(
    objective: DrawnObjective, given: tuple[Tensor, Tensor, Given]
) -> None:
    pictures, images, made_of = given
    twice = [torch.cat([each, each]) for each in made_of]
    objective.losses(pictures, images, *made_of)["loss"].backward()
    assert pictures.grad is not None
    gradients = [parameter.grad for parameter in objective.discriminator.parameters()]

    # The discriminator's: of the hinge of real and made pictures, head by head.
    real = objective.discriminator(judged(objective, images), *made_of)
    made = objective.discriminator(judged(objective, pictures.detach()), *twice)
    told = torch.stack(
        [F.relu(1 - r).mean() + F.relu(1 + m).mean() for r, m in zip(real, made, strict=True)]
    ).mean()
    wanted = torch.autograd.grad(told, list(objective.discriminator.parameters()))
    for found, expected in zip(gradients, wanted, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-5)

    # The decoder's: to seem real, and to be near the original, but not near each other.
    again = pictures.detach().clone().requires_grad_()
    logits = objective.discriminator(judged(objective, again), *twice)
    seems = torch.stack([one.mean() for one in logits]).mean()

    def apart(one: Tensor, other: Tensor) -> tuple[Tensor, Tensor]:
        pairs = zip(objective.layers(one), objective.layers(other), strict=True)
        units = [(F.normalize(a, dim=1), F.normalize(b, dim=1)) for a, b in pairs]
        lengths = [
            ((units[place][0] - units[place][1]).square().sum(1) + 1e-4).sqrt().mean()
            for place in (0, 1, 3, 5, 11)
        ]
        return torch.stack(lengths).mean(), ((one - other).square().sum(1) + 1e-4).sqrt().mean()

    first, second = again.chunk(2)
    pairs = [apart(first, images), apart(second, images), apart(first, second)]
    energy, colours = ((a + b - c) / 2 for a, b, c in zip(*pairs, strict=True))
    (expected,) = torch.autograd.grad(5 * (energy + 0.5 * colours) - seems, again)
    torch.testing.assert_close(pictures.grad, expected, rtol=1e-3, atol=1e-6)


@needs_lite0
def test_the_energy_score_is_least_for_draws_that_vary_as_the_originals_do(
    objective: DrawnObjective, blob_images: "BlobImages"
) -> None:
    images = blob_images(128, 16, 1)
    none = torch.zeros(64, objective.discriminator.latent_shape[0] * 16), torch.zeros(64).long()

    def energy(pictures: Tensor) -> float:
        given = *none, torch.full((64,), 2)
        return float(objective.losses(pictures, images[:64], *given)["energy"])

    alike = energy(blob_images(128, 16, 2))  # other draws of the very distribution
    mean = blob_images(128, 16, 2).mean(0, keepdim=True).expand(128, -1, -1, -1)
    one = blob_images(1, 16, 3).expand(128, -1, -1, -1)
    noisy = blob_images(128, 16, 2) + 0.5 * torch.randn(128, 3, 16, 16)
    for other in (mean, one, noisy):
        assert alike < energy(other)


@needs_lite0
def test_what_is_beyond_white_is_judged_as_white_but_called_back(
    objective: DrawnObjective, given: tuple[Tensor, Tensor, Given]
) -> None:
    pictures, images, made_of = given
    white = torch.ones_like(pictures)
    beyond = torch.full_like(pictures, 1.5).requires_grad_()
    found = [objective.losses(one, images, *made_of) for one in (white, beyond)]
    for name in ("discriminator", "energy", "colours"):
        torch.testing.assert_close(found[0][name], found[1][name])
    more = found[1]["loss"] - found[0]["loss"]
    assert more.item() == pytest.approx(0.1 * 0.25, rel=1e-3)
    (gradient,) = torch.autograd.grad(found[1]["loss"], beyond)
    assert (gradient != 0).float().mean() > 0.9


@needs_lite0
def test_the_start_scales_what_is_judged(objective: DrawnObjective, tiny_run: "TinyRun") -> None:
    dataset = open_splits(DataConfig(path=str(tiny_run.data), image_size=16))["train"]
    objective.start(dataset)
    features = objective.layers(to_float(dataset.images(range(len(dataset)))))[3]
    head = objective.discriminator.heads[0]
    assert isinstance(head, Head)
    scaled = (features - head.mean) / head.deviation
    torch.testing.assert_close(scaled.mean((0, 2, 3)), torch.zeros(24), rtol=0, atol=1e-3)
    torch.testing.assert_close(scaled.std((0, 2, 3)), torch.ones(24), rtol=1e-3, atol=1e-3)


def test_logits_depend_on_features_codes_length_and_class() -> None:
    torch.manual_seed(0)
    judge = Discriminator((4, 4, 4), 6, classes=2)
    torch.nn.init.normal_(judge.heads[0].length.weight)  # type: ignore[bad-argument-type]
    shapes = [(24, 16), (40, 8), (112, 4), (320, 2)]
    layers = [torch.randn(1, channels, side, side) for channels, side in shapes]
    latents, two, label = torch.randn(1, 64), torch.tensor([2]), torch.tensor([0])
    first = judge(layers, latents, two, label)
    assert [each.shape[1:] for each in first] == [(8, 8), (4, 4), (4, 4), (2, 2)]
    for other in (
        judge([2 * each for each in layers], latents, two, label),
        judge(layers, 2 * latents, two, label),
        judge(layers, latents, two + 1, label),
        judge(layers, latents, two, label + 1),
    ):
        assert not torch.allclose(first[0], other[0], atol=1e-4)


def test_a_spectral_convolution_has_the_norm_one_whatever_its_weights() -> None:
    torch.manual_seed(0)
    convolution = SpectralConv2d(6, 5, 3, bias=False)
    for scale in (0.01, 1.0, 100.0):
        with torch.no_grad():
            convolution.weight.copy_(scale * torch.randn(5, 6, 3, 3))
        largest = torch.linalg.svdvals(convolution.weight.flatten(1))[0]
        x = torch.randn(2, 6, 8, 8)
        expected = F.conv2d(x, convolution.weight / largest)
        torch.testing.assert_close(convolution(x), expected, rtol=1e-4, atol=1e-5)


def test_the_hinge_is_two_where_nothing_is_known_and_zero_where_all_is() -> None:
    unknown = [torch.zeros(3, 4, 4), torch.zeros(3, 2, 2)]
    assert float(hinge_loss(unknown, unknown)) == 2
    high, low = [torch.full((3, 2, 2), 1.5)], [torch.full((6, 2, 2), -1.5)]
    assert float(hinge_loss(high, low)) == 0
    assert float(hinge_loss(low, high)) == 5


def test_short_prefixes_are_drawn_as_often_as_long_ones_by_octaves() -> None:
    chance = torch.rand(100_000, generator=torch.Generator().manual_seed(0))
    lengths = log_uniform(chance, range(1, 65))
    assert lengths.unique().tolist() == list(range(1, 65))
    shares = [((lengths >= k) & (lengths < 2 * k)).float().mean() for k in (4, 8, 16, 32)]
    assert max(shares) < 1.25 * min(shares)
    assert log_uniform(torch.tensor([0.0, 0.999999]), range(1, 65)).tolist() == [1, 64]
    assert set(log_uniform(chance, [16, 32, 64]).tolist()) == {16, 32, 64}
    assert set(log_uniform(chance, [64]).tolist()) == {64}


def test_the_kernel_distance_is_zero_for_alike_sets_and_grows_with_a_shift() -> None:
    generator = torch.Generator().manual_seed(0)
    real = torch.randn(300, 8, generator=generator)
    alike = [kernel_distance(torch.randn(300, 8, generator=generator), real) for _ in range(20)]
    assert abs(sum(alike) / 20) < 0.05
    shifted = [kernel_distance(real + by, real) for by in (0.3, 0.6, 1.0)]
    assert max(alike) < shifted[0] < shifted[1] < shifted[2]

    def kernel(a: Tensor, b: Tensor) -> float:
        return float((a @ b / 8 + 1) ** 3)

    few, others = real[:5], real[5:9]
    inside = [
        sum(kernel(a, b) for i, a in enumerate(s) for j, b in enumerate(s) if i != j)
        / (len(s) * (len(s) - 1))
        for s in (few, others)
    ]
    across = sum(kernel(a, b) for a in few for b in others) / 20
    assert kernel_distance(few, others) == pytest.approx(sum(inside) - 2 * across, rel=1e-4)
