"""Files are whole or not there; a locked folder has one process at a time."""

import contextlib
import errno
import fcntl
import signal
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from pqvae.errors import UserError
from pqvae.files import atomic_path, locked, one_process, read_json, write_json

if TYPE_CHECKING:
    from tests.conftest import Start


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("kind", [ValueError, OSError, KeyboardInterrupt])
def test_failed_write_keeps_the_old_file_and_removes_the_temporary_one(
    tmp_path: Path, kind: type[BaseException]
) -> None:
    path = tmp_path / "file.json"
    write_json(path, {"old": 1})
    with pytest.raises(kind), atomic_path(path) as temporary:
        temporary.write_text("half of")
        assert read_json(path) == {"old": 1}
        raise kind
    assert read_json(path) == {"old": 1}
    assert names(tmp_path) == ["file.json"]


def test_new_file_appears_whole_and_alone(tmp_path: Path) -> None:
    path = tmp_path / "file.txt"
    with atomic_path(path) as temporary:
        temporary.write_text("all of it")
        assert not path.exists()
    assert path.read_text() == "all of it"
    assert names(tmp_path) == ["file.txt"]


def test_error_without_a_file_name_gets_one(tmp_path: Path) -> None:
    path = tmp_path / "file.txt"
    with pytest.raises(OSError) as caught, atomic_path(path):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert caught.value.filename == str(path)


# Holds a folder, with a file half written in it, until it is killed.
HOLDER = """
import time
from pathlib import Path
from pqvae.files import atomic_path, locked
with locked(Path(".")), atomic_path(Path("model")) as temporary:
    temporary.write_text("half")
    Path("held").touch()
    time.sleep(100)
"""


def test_a_folder_has_one_process_at_a_time_and_is_free_after_its_kill(
    start: "Start", tmp_path: Path
) -> None:
    holder = start(tmp_path, "-c", HOLDER)
    holder.wait_until((tmp_path / "held").exists)
    with (
        pytest.raises(UserError, match="another process is at work in this folder; wait for it"),
        locked(tmp_path),
    ):
        pass
    assert len(list(tmp_path.glob("model.tmp*"))) == 1  # it is that process's
    holder.send(signal.SIGKILL)
    holder.end()
    with locked(tmp_path):
        assert not list(tmp_path.glob("model*"))  # nobody's any more
    with locked(tmp_path), contextlib.suppress(UserError), locked(tmp_path):
        pytest.fail("locked twice")


def test_one_process_waits_for_the_other(tmp_path: Path) -> None:
    entered = threading.Event()

    def enter() -> None:
        with one_process(tmp_path / "lock"):
            entered.set()

    other = threading.Thread(target=enter)
    with one_process(tmp_path / "lock"):
        other.start()
        assert not entered.wait(0.3)
    assert entered.wait(10)  # it looks 20 times a second
    other.join()


@pytest.mark.parametrize("code", [errno.ENOLCK, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_does_without(
    code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> None:
        raise OSError(code, "no locks here")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with locked(tmp_path), one_process(tmp_path / "another"):
        (tmp_path / "file").touch()
    assert (tmp_path / "file").exists()
