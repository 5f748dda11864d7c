"""A run folder belongs to one run, and to one process at a time."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from pqvae import distributed
from pqvae.config import HARMLESS, PLACE, config_to_yaml, identity_changes, load_config
from pqvae.errors import UserError
from pqvae.files import atomic_path, locked

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

C = TypeVar("C", bound="DataclassInstance")


@contextlib.contextmanager
def open_run(config: C, folder: Path) -> Iterator[None]:
    """Inside of this block the run folder is this run's alone: made, or that of the same config.

    A run of which nothing has been saved is begun anew, whatever its config was: the next try need
    not be the same. One that a UserError ends leaves the config as it was.

    Raises:
        UserError: The folder holds another run or something else, or is in use.
    """
    with contextlib.ExitStack() as stack:
        distributed.on_rank_zero(lambda: stack.enter_context(_opened_run(config, folder)))
        yield


@contextlib.contextmanager
def _opened_run(config: C, folder: Path) -> Iterator[None]:
    path = folder / "config.yaml"
    before = None  # the config of what has been saved of this run
    if path.exists():
        before = _check_same_run(config, path)
    elif folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder} exists and is not a run folder; choose another one (out=...)")
    folder.mkdir(parents=True, exist_ok=True)
    with locked(folder):
        _write(path, config_to_yaml(config))
        try:
            yield
        except UserError:
            if before is not None:
                _write(path, before)
            raise


def _check_same_run(config: "DataclassInstance", path: Path) -> str | None:
    """What the run's config.yaml says; None where nothing has been saved of the run."""
    folder, text = path.parent, path.read_bytes()
    try:
        before = load_config(type(config), path, [])
    except UserError as error:  # as another version wrote it, or damaged
        raise UserError(
            f"{error}; this run cannot be resumed: choose another folder (out=...)"
        ) from error
    # The hash of what lies at a place is in the states; without one, only the place is known.
    resumable = any(folder.glob("state/step-*"))
    changed = identity_changes(before, config, (HARMLESS, PLACE) if resumable else (HARMLESS,))
    kept = resumable or (folder / "model").exists()
    # A file that is not just as a run writes it is the user's own.
    if changed and (kept or text != config_to_yaml(before).encode()):
        raise UserError(
            f"{folder} holds a run with another {', '.join(changed)}; "
            "choose another folder (out=...) or remove it"
        )
    return text.decode() if kept else None


def _write(path: Path, text: str) -> None:
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
