"""The state of a run on disk: what the same command needs to go on where it was cut."""

import io
import sys
from pathlib import Path
from typing import Any

import torch

from pqvae.files import atomic_path

KEPT = 2  # a state that turns out damaged falls back to the one before


def save_state(folder: Path, step: int, state: dict[str, Any]) -> None:
    """Write the state reached after this many steps, then drop all but the newest two."""
    folder.mkdir(parents=True, exist_ok=True)
    buffer = io.BytesIO()  # torch hides what went wrong when it writes to a full disk itself
    torch.save(state, buffer)
    with atomic_path(folder / f"step-{step:08d}.pt") as temporary:
        temporary.write_bytes(buffer.getbuffer())
    for old in sorted(folder.glob("step-*.pt"))[:-KEPT]:
        old.unlink(missing_ok=True)


def load_newest_state(folder: Path) -> tuple[int, dict[str, Any]] | None:
    """The newest readable state as (steps done, state), or None; damaged files are named."""
    for path in sorted(folder.glob("step-*.pt"), reverse=True):
        data = io.BytesIO(path.read_bytes())  # so that no permission is not taken for damage
        try:
            # weights_only: tensors, numbers and containers; nothing in the file is executed.
            state = torch.load(data, map_location="cpu", weights_only=True)
        except Exception as error:  # the unpickler raises nearly anything on damaged bytes
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            print(f"{path}: damaged ({reason}); trying the one before", file=sys.stderr)
            continue
        return int(path.stem.removeprefix("step-")), state
    return None
