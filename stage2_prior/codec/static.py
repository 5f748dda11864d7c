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

    FILE = "tables.safetensors"  # in a model folder: counts - 1 as uint16, row after row of K_i

    def __init__(self, sums: Sequence[Sequence[int]]) -> None:
        """Take cumulated counts of all N positions, K_i + 1 each."""
        self.sums = sums

    @classmethod
    def of_codes(cls, codes: Tensor, sizes: Sequence[int]) -> "StaticCoder":
        """Count codes (n, N) of training images; each counts once more, so that none is 0.

        Raises:
            UserError: A codebook is too large.
        """
        if max(sizes) > MOST_CODES:
            raise UserError(f"tables are of at most {MOST_CODES} codes, but here are {max(sizes)}")
        columns = zip(codes.T, sizes, strict=True)
        return cls([cumulated_counts(torch.bincount(c, minlength=K) + 1.0) for c, K in columns])

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
        rows = torch.cat([torch.tensor(sums).diff() - 1 for sums in self.sums])
        tensors = {"counts": rows.to(torch.uint16)}
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
                counts = file.get_tensor("counts").long() + 1
            rows = counts.split(list(sizes))
        except (safetensors.SafetensorError, RuntimeError):
            raise UserError(f"{path}: damaged; count again: pqvae tables") from None
        if theirs != codes_hash:
            raise UserError(f"{path}: of another model; count again: pqvae tables")
        return cls([[0, *row.cumsum(0).tolist()] for row in rows])
