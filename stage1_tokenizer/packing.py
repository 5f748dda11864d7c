"""A tokenizer's weights in a quarter of the bytes: whole numbers of 8 bits, and a scale a row.

Entries of codebooks, and the weights of all that one output channel sees, are a row each. What is
small or added up stays float32; half the squared norms of entries, float16; whole numbers, int32.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

LEVELS = 127
FEW = 2048  # numbers of a tensor that stays as it is
VALUES, SCALES = ".int8", ".scales"  # ends of the names of what a tensor becomes


def pack_weights(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A state dict of float32 and int64 tensors, packed; ``unpack_weights`` reads it."""
    packed = {}
    for name, tensor in tensors.items():
        if not tensor.is_floating_point():
            packed[name] = tensor.to(torch.int32)
        elif name.endswith("biases"):
            packed[name] = tensor.half()
        elif tensor.ndim < 2 or tensor.numel() <= FEW:
            packed[name] = tensor
        else:
            values, scales = round_to_int8(_rows(tensor), (1,))
            packed[name + VALUES] = values.view(tensor.shape)
            packed[name + SCALES] = scales.squeeze(1)
    return packed


def round_to_int8(tensor: Tensor, over: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Whole numbers of 8 bits, and the scales to multiply them by.

    Args:
        tensor: float32.
        over: The dimensions over which a scale is shared; they are 1 in the scales.
    """
    largest = tensor.abs().amax(over, keepdim=True)
    scales = (largest / LEVELS).clamp_min(torch.finfo(torch.float32).tiny)
    return (tensor / scales).round().to(torch.int8), scales


def unpack_weights(packed: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The state dict of packed weights, or of weights that never were, in float32 and int64.

    It is the same to the bit on every machine.
    """
    tensors = {}
    for name, tensor in packed.items():
        if name.endswith(VALUES):
            plain = name.removesuffix(VALUES)
            rows = _rows(tensor.float()) * packed[plain + SCALES].unsqueeze(1)
            tensors[plain] = rows.view(tensor.shape)
        elif not name.endswith(SCALES):
            tensors[name] = tensor.float() if tensor.is_floating_point() else tensor.long()
    return tensors


def _rows(tensor: Tensor) -> Tensor:
    """Of lists of codebooks, each entry; else what belongs to one place of the first dimension."""
    return tensor.flatten(0, 1) if tensor.ndim == 3 else tensor.flatten(1)
