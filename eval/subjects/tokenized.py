"""What the scores of a tokenizer share: the tokenizer, its data, images as codes and back."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from eval.subjects.real import RealImages, open_named, open_trained_on
from eval.subjects.selection import Selection
from pqvae.config import config_from_dict
from pqvae.data.batches import chunk_size, map_images
from pqvae.data.config import DataConfig
from pqvae.errors import UserError
from pqvae.images import to_float, to_uint8
from pqvae.pretrained import recorded_data
from stage1_tokenizer import Tokenizer
from stage1_tokenizer.tokenizer import FAITHFUL


def load_tokenizer(folder: Path, device: torch.device, option: str = "--tokenizer") -> Tokenizer:
    """Load a tokenizer.

    Args:
        folder: Run or model folder of stage 1.
        device: Where it is to run.
        option: That names the folder.

    Raises:
        UserError: No tokenizer there.
    """
    if not (folder / "model").is_dir() and not (folder / "config.json").is_file():
        raise UserError(
            f"{folder}: no tokenizer here; run python -m stage1_tokenizer.train, or give "
            f"{option} FOLDER"
        )
    return Tokenizer.from_pretrained(folder).to(device)


def data_of(tokenizer: Tokenizer, folder: Path, given: str | None) -> DataConfig:
    """Where images for a tokenizer are.

    Args:
        tokenizer: The tokenizer.
        folder: Where it lies, for messages.
        given: As ``data.path`` of stage 1; None for the data that the tokenizer was trained on.

    Raises:
        UserError: None are given, and there is no record of its own.
    """
    if given is not None:
        values = {"path": given, "image_size": tokenizer.config.image_size}
        return config_from_dict(DataConfig, values, "--data")
    return recorded_data(tokenizer.provenance, str(folder), None, "--data")


def real_images(tokenizer: Tokenizer, folder: Path, given: str | None) -> RealImages:
    """The splits of the images for a tokenizer; arguments and errors as of ``data_of``."""
    data = data_of(tokenizer, folder, given)
    if given is None:
        return open_trained_on(data)
    return open_named(data, tokenizer.provenance.get("data_hash"))


def asked_prefixes(asked: Sequence[int], tokenizer: Tokenizer) -> list[int]:
    """The prefix lengths of --prefixes, ascending.

    Raises:
        UserError: One does not decode.
    """
    for k in asked:
        tokenizer.quantizer.check_cut(k, f"--prefixes {k}")
    return sorted(set(asked))


def encode(tokenizer: Tokenizer, images: Selection, beam: int = 1) -> Tensor:
    """Codes of images, int64 (n, N), on the CPU."""

    def codes(batch: Tensor) -> Tensor:
        return tokenizer.encode(to_float(batch).to(tokenizer.device), beam)

    return map_images(images, range(len(images)), codes, "encoding")


def decode(tokenizer: Tokenizer, codes: Tensor, decoder: str = FAITHFUL, **drawn: Any) -> Tensor:
    """Codes (B, k) to uint8 (B, 3, H, W) on the CPU; ``drawn`` as in ``Tokenizer.decode``."""
    return to_uint8(tokenizer.decode(codes, decoder, **drawn)).cpu()


class Reconstructions:
    """What prefixes of codes decode to, as images by number: they are decoded when asked for."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        codes: Tensor,
        decoder: str = FAITHFUL,
        labels: Tensor | None = None,
    ) -> None:
        """Take codes (n, k), and the classes (n,) that a decoder that draws is told."""
        self._tokenizer, self._codes, self._decoder = tokenizer, codes, decoder
        self._labels = labels

    def __len__(self) -> int:
        return len(self._codes)

    @property
    def image_size(self) -> int:
        return self._tokenizer.config.image_size

    def images(self, indices: Sequence[int] | Tensor, /) -> Tensor:
        parts = torch.as_tensor(indices, dtype=torch.int64).split(chunk_size(self.image_size))
        return torch.cat([self._decode(part) for part in parts])

    def _decode(self, indices: Tensor) -> Tensor:
        labels = None if self._labels is None else self._labels[indices]
        codes = self._codes[indices]
        return decode(self._tokenizer, codes, self._decoder, indices=indices, labels=labels)


def tokenizer_facts(tokenizer: Tokenizer, folder: Path) -> dict[str, Any]:
    """What a report must say of a tokenizer."""
    return {"folder": str(folder), "codes": tokenizer.num_codes, "content": tokenizer.content_hash}
