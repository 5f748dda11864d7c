"""A run folder belongs to one run, and to one process at a time."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from pqvae import distributed
from pqvae.config import config_to_yaml, identity_changes, load_config
from pqvae.errors import UserError
from pqvae.files import atomic_path, locked

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

C = TypeVar("C", bound="DataclassInstance")


@contextlib.contextmanager
def open_run(config: C, folder: Path) -> Iterator[None]:
    """Inside of this block the run folder is this run's alone: made, or that of the same config.

    Raises:
        UserError: The folder holds another run or something else, or is in use.
    """
    with contextlib.ExitStack() as stack:
        distributed.on_rank_zero(lambda: stack.enter_context(_opened_run(config, folder)))
        yield


@contextlib.contextmanager
def _opened_run(config: C, folder: Path) -> Iterator[None]:
    path = folder / "config.yaml"
    if path.exists():
        try:
            before = load_config(type(config), path, [])
        except UserError as error:  # as another version wrote it, or damaged
            raise UserError(
                f"{error}; this run cannot be resumed: choose another folder (out=...)"
            ) from error
        if changed := identity_changes(before, config):
            raise UserError(
                f"{folder} holds a run with another {', '.join(changed)}; "
                "choose another folder (out=...) or remove it"
            )
    elif folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder} exists and is not a run folder; choose another one (out=...)")
    folder.mkdir(parents=True, exist_ok=True)
    with locked(folder):
        with atomic_path(path) as temporary:
            temporary.write_text(config_to_yaml(config))
        yield
