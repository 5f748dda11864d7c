"""What the scores of a tokenizer share: the tokenizer, its data, images as codes and back."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pqvae.config import config_from_dict, load_config
from pqvae.console import Progress
from pqvae.data.config import DataConfig
from pqvae.data.dataset import ImageDataset
from pqvae.errors import UserError
from pqvae.images import to_float, to_uint8
from stage1_tokenizer import Tokenizer
from stage1_tokenizer.config import Config as TokenizerRunConfig

CHUNK_PIXELS = 1 << 18  # of the images that are in work at once
SUBSET_SEED = 0  # fixed, so that every run draws the same images and finds what is cached of them


def open_tokenizer(
    folder: Path, data: str | None, device: torch.device
) -> tuple[Tokenizer, DataConfig]:
    """Load a tokenizer, and say where images for it are.

    Args:
        folder: Run or model folder of stage 1.
        data: As ``data.path`` of stage 1; None for the data that the tokenizer was trained on.
        device: Where the tokenizer is to run.

    Raises:
        UserError: No tokenizer there, or no record of its data.
    """
    if not (folder / "config.yaml").is_file() and not (folder / "config.json").is_file():
        raise UserError(
            f"{folder}: no tokenizer here; run python -m stage1_tokenizer.train, or give "
            "--tokenizer FOLDER"
        )
    tokenizer = Tokenizer.from_pretrained(folder).to(device)
    if data is not None:
        values = {"path": data, "image_size": tokenizer.config.image_size}
        return tokenizer, config_from_dict(DataConfig, values, "--data")
    config = folder / "config.yaml"
    if not config.is_file():
        raise UserError(f"{folder}: no config.yaml that names the data; pass --data")
    return tokenizer, load_config(TokenizerRunConfig, config, []).data


def encode(
    tokenizer: Tokenizer,
    dataset: ImageDataset,
    indices: Sequence[int],
    beam: int = 1,
) -> Tensor:
    """Codes of the images named, int64 (n, N), on the CPU."""
    progress = Progress("encoding", len(indices))
    device = tokenizer.device
    parts = []
    for chunk in torch.tensor(indices).split(chunk_size(dataset.image_size)):
        images = to_float(dataset.images(chunk)).to(device)
        parts.append(tokenizer.encode(images, beam).cpu())
        progress.advance(len(chunk))
    progress.close()
    return torch.cat(parts)


def decode(tokenizer: Tokenizer, codes: Tensor) -> Tensor:
    """Codes (B, k) to uint8 (B, 3, H, W) on the CPU."""
    return to_uint8(tokenizer.decode(codes.to(tokenizer.device))).cpu()


class Reconstructions:
    """What prefixes of codes decode to, as images by number: they are decoded when asked for."""

    def __init__(self, tokenizer: Tokenizer, codes: Tensor) -> None:
        self._tokenizer, self._codes = tokenizer, codes

    def __len__(self) -> int:
        return len(self._codes)

    def images(self, indices: Sequence[int], /) -> Tensor:
        parts = self._codes[list(indices)].split(chunk_size(self._tokenizer.config.image_size))
        return torch.cat([decode(self._tokenizer, part) for part in parts])


def chunk_size(image_size: int) -> int:
    """How many images of this height and width are in work at once."""
    return max(8, CHUNK_PIXELS // image_size**2)


def subset(total: int, n: int | None) -> list[int]:
    """The first n of a fixed random order (None: all): a larger subset begins with the smaller."""
    order = torch.randperm(total, generator=torch.Generator().manual_seed(SUBSET_SEED))
    return order[:n].tolist()


def asked_subset(dataset: ImageDataset, n: int | None, option: str) -> list[int]:
    """A subset of a data set, of the size that an option of the command asks for.

    Raises:
        UserError: The data set is smaller.
    """
    if n is not None and n > len(dataset):
        raise UserError(f"{option} {n}: {dataset.name} holds {len(dataset)} images")
    return subset(len(dataset), n)


def data_facts(dataset: ImageDataset, indices: Sequence[int]) -> dict[str, Any]:
    """What a report must say of the images that were used."""
    total, n = len(dataset), len(indices)
    return {
        "data": dataset.name,
        "images": n,
        "of": total if n < total else None,
        "subset_seed": SUBSET_SEED if n < total else None,
        "content": dataset.content_hash,
    }


def tokenizer_facts(tokenizer: Tokenizer, folder: Path) -> dict[str, Any]:
    """What a report must say of a tokenizer."""
    return {"folder": str(folder), "codes": tokenizer.num_codes, "content": tokenizer.content_hash}
