"""What the scores of a tokenizer share: the tokenizer, its own data, and the codes of a split."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pqvae.cli import UserError
from pqvae.config import config_from_dict, load_config
from pqvae.datasets import DataConfig, ImageDataset
from pqvae.shards import cache_root
from stage1_tokenizer import Tokenizer
from stage1_tokenizer.training import Config as TokenizerRunConfig
from stage2_prior.codes import encode_dataset

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


def codes_of(tokenizer: Tokenizer, dataset: ImageDataset) -> Tensor:
    """Codes int64 (n, N) of a whole data set, greedy; kept in the cache for the next score."""
    folder = cache_root() / "codes"
    return encode_dataset(tokenizer, dataset, None, 1, 0, folder).codes[0].long()


def subset(total: int, n: int | None) -> list[int]:
    """The first n of a fixed random order (None: all): a larger subset begins with the smaller."""
    order = torch.randperm(total, generator=torch.Generator().manual_seed(SUBSET_SEED))
    return order[:n].tolist()


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
