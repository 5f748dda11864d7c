"""Model folders: ``config.json`` and ``model.safetensors``, tied together by a content hash."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors
import torch
from safetensors.torch import load_file, save
from torch import Tensor

from pqvae.errors import UserError
from pqvae.files import atomic_path, read_json, write_json


def save_model(
    folder: Path, kind: str, config: Mapping[str, Any], tensors: Mapping[str, Tensor]
) -> str:
    """Write a model folder and return its content hash.

    Args:
        folder: Made if missing; an older model in it is replaced.
        kind: "tokenizer" or "prior"; checked when the model is loaded.
        config: Whatever the model is built from, as plain JSON values.
        tensors: The state dict.
    """
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    content_hash = hash_model(kind, config, tensors)
    with atomic_path(folder / "model.safetensors") as temporary:
        temporary.write_bytes(save(tensors))  # save_file would hide which error a full disk is
    values = {"kind": kind, "content_hash": content_hash, "config": config}
    write_json(folder / "config.json", values)
    return content_hash


def load_model(folder: Path, kind: str) -> tuple[dict[str, Any], dict[str, Tensor], str]:
    """Read a model folder, or that of a run folder: config, state dict and content hash.

    Raises:
        UserError: The folder is missing, damaged, or holds another kind of model.
    """
    folder = folder / "model" if (folder / "model").is_dir() else folder
    if not (folder / "config.json").is_file():
        raise UserError(f"{folder}: no {kind} here (config.json is missing)")
    values = read_json(folder / "config.json")
    if not isinstance(values, dict) or not values.keys() >= {"kind", "content_hash", "config"}:
        raise UserError(f"{folder / 'config.json'}: not the config of a model")
    if values["kind"] != kind:
        raise UserError(f"{folder}: holds a {values['kind']}, but a {kind} is needed")
    weights = folder / "model.safetensors"
    try:
        tensors = load_file(weights)
    except FileNotFoundError:
        raise UserError(f"{weights}: no such file") from None
    except safetensors.SafetensorError:
        raise UserError(f"{weights}: damaged; train again or restore it from a copy") from None
    if hash_model(kind, values["config"], tensors) != values["content_hash"]:
        raise UserError(f"{folder}: weights and config do not belong together, or are damaged")
    return values["config"], tensors, values["content_hash"]


def hash_model(kind: str, config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 over the config and every tensor: names, shapes, types and bytes."""
    digest = hashlib.sha256(json.dumps([kind, config], sort_keys=True).encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(tensor.contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()
