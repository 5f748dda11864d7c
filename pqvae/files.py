"""Files that are whole or not there: written under another name, flushed, renamed."""

import contextlib
import errno
import json
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from pqvae.errors import UserError

_TEMPORARY = re.compile(r".*\.tmp\d+")
# What file systems answer that know no locks.
_NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EINVAL}


@contextlib.contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """A temporary path beside ``path``; becomes ``path`` when the block ends well."""
    temporary = path.with_name(f"{path.name}.tmp{os.getpid()}")
    with _named_in_errors(path):
        try:
            yield temporary
            _flush(temporary)
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """A new temporary folder beside ``path``; becomes ``path`` when the block ends well.

    What stood at ``path`` is replaced. The files lie directly in the folder.
    """
    temporary = path.with_name(f"{path.name}.tmp{os.getpid()}")
    with _named_in_errors(path):
        try:
            shutil.rmtree(temporary, ignore_errors=True)
            temporary.mkdir(parents=True)
            yield temporary
            for file in temporary.iterdir():
                _flush(file)
            _flush(temporary)
            shutil.rmtree(path, ignore_errors=True)
            temporary.replace(path)
            _flush(path.parent)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


@contextlib.contextmanager
def _named_in_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        error.filename = error.filename or str(path)  # a full disk names no file by itself
        raise


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Inside of this block, no other process may enter it for the same folder.

    The lock ends with the process, however that ends. What a killed one left half written is
    removed.

    Raises:
        UserError: Another process is in it.
    """
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(_lock(folder / "lock", wait=False))
        except Timeout:
            raise UserError(
                f"{folder}: another process is at work in this folder; wait for it, or choose "
                "another folder (out=...)"
            ) from None
        for left in [path for path in folder.rglob("*.tmp*") if _TEMPORARY.fullmatch(path.name)]:
            shutil.rmtree(left) if left.is_dir() else left.unlink(missing_ok=True)
        yield


@contextlib.contextmanager
def one_process(path: Path) -> Iterator[None]:
    """Wait until no other process is in this block with the same lock file."""
    with _lock(path, wait=True):
        yield


@contextlib.contextmanager
def _lock(path: Path, *, wait: bool) -> Iterator[None]:
    """Hold this lock file, which the system lets go of when the process ends, even by a kill.

    Raises:
        Timeout: Another process holds it, and we do not wait.
    """
    lock = FileLock(path, timeout=-1 if wait else 0)
    try:
        lock.acquire()
    except NotImplementedError:
        pass  # how older versions of filelock put ENOSYS
    except OSError as error:  # a Timeout, too
        if error.errno not in _NO_LOCKS:
            raise
    try:
        yield
    finally:
        lock.release()


def write_json(path: Path, values: Any) -> None:
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(values, indent=2) + "\n")


def read_json(path: Path) -> Any:
    """Raises UserError, naming the file, when it is missing or not JSON."""
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except (json.JSONDecodeError, UnicodeDecodeError):
        raise UserError(f"{path}: not a JSON file; it is damaged or foreign") from None


def is_same_file(a: Path, b: Path) -> bool:
    """Whether two paths lead to one file that is there, also by links or other spellings."""
    return a.is_file() and b.is_file() and a.samefile(b)


def cache_root() -> Path:
    """The folder for what can be made anew: ``$XDG_CACHE_HOME/pqvae``, by default in ``~/.cache``.

    Raises:
        UserError: The user has no home folder, as in some containers.
    """
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "pqvae")
    except RuntimeError as error:
        raise UserError("there is no home folder; set XDG_CACHE_HOME to a folder") from error
