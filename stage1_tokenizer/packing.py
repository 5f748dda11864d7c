"""A tokenizer's weights in a quarter of the bytes: whole numbers of 8 bits, and a scale a row.

Entries of codebooks, and the weights of all that one output channel sees, are a row each. Entries
of learned codebooks lie near few directions: they are stored along these, where that is shorter.
What is small or added up stays float32; half the squared norms of entries, float16, or left out
where they follow; whole numbers, int32.

What is unpacked is the same to the bit on every machine: whole numbers are added up exactly, and
all else is done number by number.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

LEVELS = 127
FEW = 2048  # numbers of a tensor that stays as it is
LEFT_OUT = 0.01  # share of the energy of entries that their directions may leave out
VALUES, SCALES = ".int8", ".scales"  # ends of the names of what a tensor becomes
LEFT, RIGHT = ".left", ".right"  # instead of the values: two matrices whose product these are
SHARED = "shared."  # before the names of the codebook whose biases follow


def pack_weights(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A state dict of float32 and int64 tensors, packed; ``unpack_weights`` reads it."""
    packed = {}
    for name, tensor in tensors.items():
        if name.endswith(SHARED + "biases"):
            continue
        if not tensor.is_floating_point():
            packed[name] = tensor.to(torch.int32)
        elif name.endswith("biases"):
            packed[name] = tensor.half()
        elif tensor.ndim < 2 or tensor.numel() <= FEW:
            packed[name] = tensor
        elif tensor.ndim == 3 and (factors := _factored(_rows(tensor))):
            left, packed[name + RIGHT], packed[name + SCALES] = factors
            packed[name + LEFT] = left.view(*tensor.shape[:2], -1)
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


def _factored(rows: Tensor) -> tuple[Tensor, Tensor, Tensor] | None:
    """Matrices int8 (n, r) and (r, D), by whose product scales (n,) make rows (n, D).

    None where this is no shorter than the rows.
    """
    norms = torch.linalg.vector_norm(rows, dim=1, keepdim=True)
    unit = rows / norms.clamp_min(torch.finfo(torch.float32).tiny)
    left, spread, right = torch.linalg.svd(unit, full_matrices=False)
    energy = spread.square().cumsum(0)
    rank = int((energy < (1 - LEFT_OUT) * energy[-1]).sum()) + 1
    if rank * sum(rows.shape) >= rows.numel():
        return None
    directions, steps = round_to_int8(right[:rank], (1,))
    along, scales = round_to_int8(left[:, :rank] * spread[:rank] * steps.T * norms, (1,))
    return along, directions, scales.squeeze(1)


def unpack_weights(packed: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The state dict of packed weights, or of weights that never were, in float32 and int64."""
    tensors = {}
    for name, tensor in packed.items():
        if name.endswith(VALUES):
            plain = name.removesuffix(VALUES)
            tensors[plain] = _scaled(tensor, packed[plain + SCALES])
        elif name.endswith(LEFT):
            plain = name.removesuffix(LEFT)
            whole = tensor.int() @ packed[plain + RIGHT].int()
            tensors[plain] = _scaled(whole, packed[plain + SCALES])
        elif not name.endswith((SCALES, RIGHT)):
            tensors[name] = tensor.float() if tensor.is_floating_point() else tensor.long()
    for name in list(tensors):
        prefix, _, last = name.rpartition(SHARED)
        if last == "vectors" and (biases := f"{prefix}{SHARED}biases") not in tensors:
            tensors[biases] = _half_norms(tensors[name], tensors[f"{prefix}{SHARED}spreads"])
    return tensors


def _scaled(values: Tensor, scales: Tensor) -> Tensor:
    return (_rows(values.float()) * scales.unsqueeze(1)).view(values.shape)


def _half_norms(vectors: Tensor, spreads: Tensor) -> Tensor:
    """Half the squared norms (M, K) of vectors (K, n), spread out at each of M positions (M, n)."""
    half = spreads.new_zeros(len(spreads), len(vectors))
    for spread, vector in zip(spreads.square().T, vectors.square().T, strict=True):
        half += spread.unsqueeze(1) * vector / 2
    return half


def _rows(tensor: Tensor) -> Tensor:
    """Of lists of codebooks, each entry; else what belongs to one place of the first dimension."""
    return tensor.flatten(0, 1) if tensor.ndim == 3 else tensor.flatten(1)
