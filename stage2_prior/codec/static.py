"""Codes by how frequent they are: for each position a table of counts, stored beside the model."""

import hashlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import safetensors
import torch
from safetensors.torch import save
from torch import Tensor

from pqvae.errors import UserError
from pqvae.files import atomic_path
from pqvae.pretrained import model_folder
from stage2_prior.codec.arithmetic import MOST_CODES, Interval, cumulated_counts


class StaticCoder:
    """Codes <-> bytes, by the counts of each position."""

    FILE = "tables.safetensors"  # in a model folder: weights - 1 as uint8, row after row of K_i
    LARGEST = 256  # weight of a position

    def __init__(self, weights: Sequence[Tensor]) -> None:
        """Take the weights of all N positions: int64 (K_i,), 1 to 256, in proportion to counts."""
        self.weights = weights
        self.sums = [cumulated_counts(each.double()) for each in weights]

    @classmethod
    def of_codes(cls, codes: Tensor, sizes: Sequence[int]) -> "StaticCoder":
        """Count codes (n, N) of training images.

        Raises:
            UserError: A codebook is too large.
        """
        if max(sizes) > MOST_CODES:
            raise UserError(f"tables are of at most {MOST_CODES} codes, but here are {max(sizes)}")
        columns = zip(codes.T, sizes, strict=True)
        counts = [torch.bincount(column, minlength=K) for column, K in columns]
        shares = [each * cls.LARGEST / each.max().clamp_min(1) for each in counts]
        return cls([share.round().long().clamp_min(1) for share in shares])

    def payloads(self, codes: Sequence[int]) -> Iterator[bytes]:
        """The payload of the first code, of the first two, and so on."""
        interval = Interval()
        for code, sums in zip(codes, self.sums[: len(codes)], strict=True):
            interval.write(sums, code)
            yield interval.payload()

    def read(self, payload: bytes) -> list[int]:
        """As many codes as are certain, whatever would follow; N at most."""
        interval, codes = Interval(), []
        for sums in self.sums:
            code = interval.read(sums, payload)
            if code is None:
                break
            codes.append(code)
        return codes

    @property
    def content_hash(self) -> str:
        """SHA-256 of the tables."""
        return hashlib.sha256(json.dumps(self.sums).encode()).hexdigest()

    def save(self, folder: Path, codes_hash: str) -> None:
        """Write the tables into a model folder, or that of a run folder."""
        tensors = {"weights": (torch.cat(list(self.weights)) - 1).to(torch.uint8)}
        with atomic_path(model_folder(folder) / self.FILE) as temporary:
            temporary.write_bytes(save(tensors, {"codes_hash": codes_hash}))

    @classmethod
    def load(cls, folder: Path, codes_hash: str, sizes: Sequence[int]) -> "StaticCoder | None":
        """The tables of a model or run folder; None where there are none.

        Raises:
            UserError: They are damaged, or of another model.
        """
        path = model_folder(folder) / cls.FILE
        if not path.is_file():
            return None
        try:
            with safetensors.safe_open(path, "pt") as file:
                theirs = (file.metadata() or {}).get("codes_hash")
                weights = file.get_tensor("weights").long() + 1
            rows = weights.split(list(sizes))
        except (safetensors.SafetensorError, RuntimeError):
            raise UserError(f"{path}: damaged; count again: pqvae tables") from None
        if theirs != codes_hash:
            raise UserError(f"{path}: of another model; count again: pqvae tables")
        return cls(rows)
