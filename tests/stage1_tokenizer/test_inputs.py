"""What users hand to a tokenizer: codes and images of other types and ranges, and its own type."""

import copy
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from stage1_tokenizer.tokenizer import Tokenizer

if TYPE_CHECKING:
    from tests.conftest import BlobImages

SIZE = 16
CASTS: dict[str, Callable[[nn.Module], nn.Module]] = {
    "half": lambda module: module.half(),
    "bfloat16": lambda module: module.to(torch.bfloat16),
    "double": lambda module: module.double(),
    "device and type": lambda module: module.to("cpu", torch.float16),
}


def cast(tokenizer: Tokenizer, name: str) -> Tokenizer:
    other = CASTS[name](copy.deepcopy(tokenizer))
    assert isinstance(other, Tokenizer)
    return other


@pytest.mark.parametrize("kind", [torch.uint8, torch.int8, torch.int16, torch.uint16, torch.int32])
def test_codes_of_any_whole_number_type_decode_alike(
    tiny_tokenizer: Tokenizer, blob_images: "BlobImages", kind: torch.dtype
) -> None:
    codes = tiny_tokenizer.encode(blob_images(8, SIZE, 1))
    assert codes.min() == 0  # which as a mask would mean something else
    for given in (codes.to(kind), codes.to(kind).numpy()):
        assert torch.equal(tiny_tokenizer.decode(given), tiny_tokenizer.decode(codes))
        assert torch.equal(tiny_tokenizer.features(given), tiny_tokenizer.features(codes))


@pytest.mark.parametrize(
    ("codes", "message"),
    [
        (torch.zeros(2, 6), "whole numbers, .* not torch.float32"),
        (torch.zeros(2, 6, dtype=torch.bool), "whole numbers, .* not torch.bool"),
        (np.zeros((2, 6)), "whole numbers, .* not float64"),
        (torch.full((2, 6), 99), r"codes must lie in \[0, K\)"),
        (torch.full((2, 6), -1, dtype=torch.int8), r"codes must lie in \[0, K\)"),
        (torch.zeros(6, dtype=torch.int64), r"codes must be \(B, k\)"),
    ],
)
def test_other_codes_are_refused_in_one_line(
    tiny_tokenizer: Tokenizer, codes: Tensor | np.ndarray, message: str
) -> None:
    for function in (tiny_tokenizer.decode, tiny_tokenizer.features):
        with pytest.raises(ValueError, match=message):
            function(codes)


@pytest.mark.parametrize("name", CASTS)
def test_a_tokenizer_of_another_type_decodes_nearly_the_same(
    tiny_tokenizer: Tokenizer, blob_images: "BlobImages", name: str
) -> None:
    images = blob_images(32, SIZE, 1)
    codes = tiny_tokenizer.encode(images)
    other = cast(tiny_tokenizer, name)
    assert other.encoder.shortcut.weight.dtype != torch.float32
    kept = tiny_tokenizer.quantizer.state_dict()
    assert all(torch.equal(t, kept[key]) for key, t in other.quantizer.state_dict().items())
    for k in (1, 6):
        decoded = other.decode(codes[:, :k])
        assert decoded.dtype == torch.float32
        assert (decoded - tiny_tokenizer.decode(codes[:, :k])).abs().max() < 0.05
    for given in (images, images.to(other.encoder.shortcut.weight.dtype)):
        # Near a border between two entries the encoder's rounding decides.
        assert (other.encode(given) == codes).float().mean() > 0.8
    assert other.encode(images[:2], beam=2, refine=1).shape == (2, 6)
    assert other.features(codes).isfinite().all()


def test_a_tokenizer_moves_between_devices_as_a_whole(tiny_tokenizer: Tokenizer) -> None:
    moved = copy.deepcopy(tiny_tokenizer).to("meta")
    assert moved.device.type == "meta"
    assert all(tensor.is_meta for tensor in moved.state_dict().values())


@pytest.mark.parametrize(
    ("low", "high", "message"),
    [
        (0, 255, "reach from 0 to 255"),
        (-1.02, 1, "reach from -1.02 to 1"),
        (-1, 1.02, "reach from -1 to 1.02"),
        (0, torch.nan, "nan"),
        (-torch.inf, 1, "reach from -inf"),
    ],
)
def test_images_of_another_range_are_refused(
    tiny_tokenizer: Tokenizer, low: float, high: float, message: str
) -> None:
    images = torch.full((1, 3, SIZE, SIZE), float(low))
    images[0, 1, 2, 3] = high
    with pytest.raises(ValueError, match=rf"images must lie in \[-1, 1\], but.*{message}"):
        tiny_tokenizer.encode(images)


def test_rounding_at_the_ends_of_the_range_is_allowed_and_integers_are_not(
    tiny_tokenizer: Tokenizer,
) -> None:
    images = torch.ones(1, 3, SIZE, SIZE)
    assert torch.equal(tiny_tokenizer.encode(images * 1.001), tiny_tokenizer.encode(images * 1.001))
    with pytest.raises(ValueError, match=r"images must be float in \[-1, 1\], not torch.uint8"):
        tiny_tokenizer.encode(images.to(torch.uint8))
