"""Model folders: ``config.json`` and ``model.safetensors``, tied together by a content hash.

    config.json         kind, version, content_hash, config, provenance
    model.safetensors   the state dict

The provenance says what the model was trained on, so that the folder alone, copied anywhere, can be
sampled and scored: ``data`` (the values of a DataConfig) and ``data_hash`` of the train split; of a
prior also ``tokenizer`` (its folder) and ``codes_hash``. Paths are as they were typed; ``home`` is
the directory that they were typed in, relative to the model folder.
"""

import dataclasses
import glob
import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
import torch
import yaml
from safetensors.torch import load_file, save
from torch import Tensor

from pqvae.config import HARMLESS, config_from_dict, config_to_dict, marked_keys
from pqvae.data.config import NAMED, DataConfig
from pqvae.data.sources import SOURCES
from pqvae.errors import UserError
from pqvae.files import atomic_path, read_json, write_json

VERSION = 2  # version 1 had no provenance, and its tokenizers one decoder without a name


@dataclass(frozen=True, slots=True)
class StoredModel:
    """What a model folder holds."""

    version: int
    config: dict[str, Any]
    tensors: dict[str, Tensor]
    content_hash: str
    provenance: dict[str, Any]  # "home" is an absolute path here; empty where nothing is known


def save_model(
    folder: Path,
    kind: str,
    config: Mapping[str, Any],
    tensors: Mapping[str, Tensor],
    provenance: Mapping[str, Any],
) -> str:
    """Write a model folder and return its content hash.

    Args:
        folder: Made if missing; an older model in it is replaced.
        kind: "tokenizer" or "prior"; checked when the model is loaded.
        config: Whatever the model is built from, as plain JSON values.
        tensors: The state dict.
        provenance: What it was trained on. Its "home", where it has one, is kept; else relative
            paths in it are taken as typed in the current directory.
    """
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    content_hash = hash_model(kind, config, tensors)
    home = os.path.relpath(provenance.get("home") or os.getcwd(), folder.resolve())
    with atomic_path(folder / "model.safetensors") as temporary:
        temporary.write_bytes(save(tensors))  # save_file would hide which error a full disk is
    values = {
        "kind": kind,
        "version": VERSION,
        "content_hash": content_hash,
        "provenance": {**provenance, "home": home},
        "config": config,
    }
    write_json(folder / "config.json", values)
    return content_hash


def model_folder(folder: Path) -> Path:
    """The model folder in a run folder; any other folder is one itself."""
    return folder / "model" if (folder / "model").is_dir() else folder


def load_model(folder: Path, kind: str) -> StoredModel:
    """Read a model folder, or that of a run folder.

    Raises:
        UserError: The folder is missing, damaged, or holds another kind of model.
    """
    folder = model_folder(folder)
    if not (folder / "config.json").is_file():
        raise UserError(f"{folder}: no {kind} here (config.json is missing)")
    values = read_json(folder / "config.json")
    if not isinstance(values, dict) or not values.keys() >= {"kind", "content_hash", "config"}:
        raise UserError(f"{folder / 'config.json'}: not the config of a model")
    if values["kind"] != kind:
        raise UserError(f"{folder}: holds a {values['kind']}, but a {kind} is needed")
    version = values.get("version", 1)
    if version not in (1, VERSION):
        raise UserError(f"{folder}: of version {version}, but this program knows up to {VERSION}")
    weights = folder / "model.safetensors"
    try:
        tensors = load_file(weights)
    except FileNotFoundError:
        raise UserError(f"{weights}: no such file") from None
    except safetensors.SafetensorError:
        raise UserError(f"{weights}: damaged; train again or restore it from a copy") from None
    if hash_model(kind, values["config"], tensors) != values["content_hash"]:
        raise UserError(f"{folder}: weights and config do not belong together, or are damaged")
    provenance = _provenance_of_version_1(folder) if version == 1 else values["provenance"]
    if "home" in provenance:
        home = os.path.normpath(folder.resolve() / provenance["home"])
        provenance = {**provenance, "home": home}
    return StoredModel(version, values["config"], tensors, values["content_hash"], provenance)


def hash_model(kind: str, config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 over the config and every tensor: names, shapes, types and bytes."""
    digest = hashlib.sha256(json.dumps([kind, config], sort_keys=True).encode())
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(tensor.flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def provenance_of(data: DataConfig, content_hash: str) -> dict[str, Any]:
    """What a model's provenance says of its data: all that decides what training sees.

    Args:
        data: Where the images are, and how they are augmented.
        content_hash: Of the train split.
    """
    decisive = {field.name for field in dataclasses.fields(data)} - marked_keys(
        [HARMLESS], DataConfig
    )
    values = {key: value for key, value in config_to_dict(data).items() if key in decisive}
    return {"data": values, "data_hash": content_hash}


def recorded_places(path: str, provenance: Mapping[str, Any]) -> list[Path]:
    """Where a recorded path may lead: seen from here, and from where it was typed."""
    return [Path(path), Path(provenance.get("home", ""), path)]


def find_path(path: str, provenance: Mapping[str, Any]) -> str:
    """A recorded path or glob: as typed if it leads anywhere, else from where it was typed."""
    for candidate in recorded_places(path, provenance):
        if candidate.exists() or glob.glob(str(candidate)):
            return str(candidate)
    return path


def require_path(path: str, what: str, option: str) -> None:
    """Check that what is recorded to lie at a path is there; of a pattern nothing is said.

    Raises:
        UserError: It is not; names the option that says where it is now.
    """
    plain = path not in SOURCES and not set(path) & set("*?[{,")
    if plain and not Path(path).expanduser().exists():
        raise UserError(f"{path}: no such file or folder; say where {what} are now: {option}")


def recorded_data(
    provenance: Mapping[str, Any], model: str, given: str | None, option: str | None
) -> DataConfig:
    """The data that a model was trained on, where they are now.

    Args:
        provenance: Of the model.
        model: Its folder, for messages.
        given: Where the data are, if the user says so; all else is as recorded.
        option: What the user types to say so; None where the data are not to be opened.

    Raises:
        UserError: Nothing is recorded, or the data are not where they were.
    """
    values = provenance.get("data")
    if not isinstance(values, dict) or "path" not in values:
        if given is not None:  # how large they were, and how augmented, is not known either
            raise UserError(
                f"{model}: does not say how its images were prepared; see its run folder"
            )
        raise UserError(f"{model}: does not say which images it was trained on; pass {option}")
    path = values["path"] if given is None else given
    if given is None and path not in NAMED:
        path = find_path(path, provenance)
        if option is not None:
            require_path(path, f"the images that {model} was trained on", option)
    return config_from_dict(DataConfig, {**values, "path": path}, f"{model}: its data")


def _provenance_of_version_1(folder: Path) -> dict[str, Any]:
    """What the run folder around a model folder of version 1 tells; empty where there is none."""
    path = folder.parent / "config.yaml"
    if folder.name != "model" or not path.is_file():
        return {}
    try:
        values = yaml.load(path.read_text(encoding="utf-8"), yaml.BaseLoader)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not valid yaml; restore it from a copy") from error
    if not isinstance(values, dict):
        return {}
    provenance = {name: values[name] for name in ("data", "tokenizer") if name in values}
    out = Path(values.get("out", ""))
    if not out.is_absolute():  # the run folder is `out`, seen from where it was typed
        provenance["home"] = os.path.join(*[".."] * (len(out.parts) + 1))
    return provenance
