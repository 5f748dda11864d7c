"""A tokenizer's weights in a quarter of the bytes: whole numbers of 8 bits, and a scale a row.

Entries of codebooks, and the weights of all that one output channel sees, are a row each. What is
small or added up stays float32; half the squared norms of entries, float16; whole numbers, int32.
Of rows that are the same, as where one decoder was built upon another, only the first are stored.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

LEVELS = 127
FEW = 2048  # numbers of a tensor that stays as it is
VALUES, SCALES = ".int8", ".scales"  # ends of the names of what a tensor becomes
TWIN = ".as"  # the same, of the name of a tensor of the same values, as bytes


def pack_weights(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A state dict of float32 and int64 tensors, packed; ``unpack_weights`` reads it."""
    packed: dict[str, Tensor] = {}
    first: dict[tuple[torch.Size, bytes], str] = {}  # the first of each that is rounded
    for name, tensor in tensors.items():
        if not tensor.is_floating_point():
            packed[name] = tensor.to(torch.int32)
        elif name.endswith("biases"):
            packed[name] = tensor.half()
        elif tensor.ndim < 2 or tensor.numel() <= FEW:
            packed[name] = tensor
        elif (twin := first.setdefault((tensor.shape, _bytes(tensor)), name)) != name:
            packed[name + TWIN] = torch.tensor(list(twin.encode()), dtype=torch.uint8)
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
    tensors: dict[str, Tensor] = {}
    for name, tensor in packed.items():
        if name.endswith(VALUES):
            plain = name.removesuffix(VALUES)
            rows = _rows(tensor.float()) * packed[plain + SCALES].unsqueeze(1)
            tensors[plain] = rows.view(tensor.shape)
        elif not name.endswith((SCALES, TWIN)):
            tensors[name] = tensor.float() if tensor.is_floating_point() else tensor.long()
    for name, tensor in packed.items():
        if name.endswith(TWIN):
            tensors[name.removesuffix(TWIN)] = tensors[bytes(tensor.tolist()).decode()]
    return tensors


def _bytes(tensor: Tensor) -> bytes:
    return tensor.detach().cpu().contiguous().numpy().tobytes()


def _rows(tensor: Tensor) -> Tensor:
    """Of lists of codebooks, each entry; else what belongs to one place of the first dimension."""
    return tensor.flatten(0, 1) if tensor.ndim == 3 else tensor.flatten(1)
