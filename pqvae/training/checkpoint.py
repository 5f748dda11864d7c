"""Checkpoints of a run: what the same command needs to resume where it was cut.

    state/step-00000500/state.pt      torch.save of tensors, numbers and containers
                        SHA256SUMS    as sha256sum writes it, so that `sha256sum -c` checks it

A folder of that name is whole: it is written under another name, flushed, then renamed.
"""

import hashlib
import io
import re
import shutil
from collections.abc import Collection
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pqvae.console import say
from pqvae.errors import is_out_of_memory
from pqvae.files import atomic_folder

KEPT = 2  # a state that turns out damaged falls back to the one before

_NAME = re.compile(r"step-(\d{8,})")


def save_state(
    folder: Path, step: int, state: dict[str, Any], kept_steps: Collection[int] = ()
) -> None:
    """Write the state reached after this many steps, then drop the old ones.

    Args:
        folder: Holds the states of one run; made if missing.
        step: Names the state.
        state: Tensors, numbers, texts and containers of these.
        kept_steps: States to keep besides the newest two.
    """
    buffer = io.BytesIO()  # torch hides what went wrong when it writes to a full disk itself
    torch.save(state, buffer)
    digest = hashlib.sha256(buffer.getbuffer()).hexdigest()
    with atomic_folder(folder / f"step-{step:08d}") as temporary:
        (temporary / "state.pt").write_bytes(buffer.getbuffer())
        (temporary / "SHA256SUMS").write_text(f"{digest}  state.pt\n")
    for old_step, old in _states(folder)[:-KEPT]:
        if old_step not in kept_steps:
            shutil.rmtree(old, ignore_errors=True)  # what cannot be removed does no harm


def load_newest_state(folder: Path) -> tuple[int, dict[str, Any]] | None:
    """The newest intact state as (steps done, state), or None; damaged ones are named on stderr."""
    for step, path in reversed(_states(folder)):
        try:
            return step, _load(path)
        except _DamagedError as error:
            say(f"{path}: damaged ({error}); trying the one before")
    return None


class _DamagedError(Exception):
    pass


def _states(folder: Path) -> list[tuple[int, Path]]:
    found = [(_NAME.fullmatch(path.name), path) for path in folder.glob("step-*")]
    return sorted((int(match[1]), path) for match, path in found if match)


def _load(path: Path) -> dict[str, Any]:
    try:
        data = (path / "state.pt").read_bytes()
        expected = (path / "SHA256SUMS").read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        raise _DamagedError("a file is missing") from None
    if expected != f"{hashlib.sha256(data).hexdigest()}  state.pt\n".encode():
        raise _DamagedError("its checksum does not fit")
    try:
        # weights_only: tensors, numbers and containers; nothing in the file is executed.
        return torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except Exception as error:  # the unpickler raises nearly anything on what is not a state
        if is_out_of_memory(error):
            raise
        raise _DamagedError(str(error).splitlines()[0] if str(error) else "foreign") from error


def digest_of(state: Any) -> str:
    """SHA-256 over a nest of dicts, tensors and plain values: equal for equal states."""
    digest = hashlib.sha256()

    def visit(value: Any) -> None:
        if isinstance(value, dict):
            for key in sorted(value, key=str):
                digest.update(f"{key}:".encode())
                visit(value[key])
        elif isinstance(value, Tensor):
            digest.update(f"{tuple(value.shape)} {value.dtype}".encode())
            flat = value.detach().cpu().contiguous().flatten()
            digest.update(flat.view(torch.uint8).numpy().data)
        else:
            digest.update(repr(value).encode())

    visit(state)
    return digest.hexdigest()
