"""Run states: round trip, the newest two kept, fallback past damage, faults while writing."""

import contextlib
import errno
import random
import resource
import signal
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest
import torch

from pqvae.checkpoint import load_newest_state, save_state
from pqvae.files import atomic_path, read_json, write_json


def state_of(step: int) -> dict[str, Any]:
    """The kinds of values that a run keeps."""
    return {
        "task": {"weight": torch.full((50, 50), float(step)), "count": torch.tensor(step)},
        "optimizer": {"state": {0: {"step": torch.tensor(1.5)}}, "groups": [{"lr": 0.1}]},
        "best": float("inf"),
        "waited": step,
    }


def load(folder: Path) -> tuple[int, dict[str, Any]]:
    newest = load_newest_state(folder)
    assert newest is not None
    return newest


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@contextlib.contextmanager
def no_file_above(size: int) -> Generator[None]:
    """The system refuses to let a file grow beyond this, as a full disk would."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)


def test_state_comes_back_as_it_was(tmp_path: Path) -> None:
    save_state(tmp_path / "state", 7, state_of(7))
    step, state = load(tmp_path / "state")
    expected = state_of(7)
    assert step == 7
    assert state.keys() == expected.keys()
    assert torch.equal(state["task"]["weight"], expected["task"]["weight"])
    assert torch.equal(state["task"]["count"], expected["task"]["count"])
    assert torch.equal(state["optimizer"]["state"][0]["step"], torch.tensor(1.5))
    assert state["optimizer"]["groups"] == [{"lr": 0.1}]
    assert (state["best"], state["waited"]) == (float("inf"), 7)


def test_no_state_is_none(tmp_path: Path) -> None:
    assert load_newest_state(tmp_path / "missing") is None
    assert load_newest_state(tmp_path) is None


def test_newest_two_states_are_kept(tmp_path: Path) -> None:
    for step in (9, 10, 100, 1_000_000):  # as numbers, 9 < 10 < 100; as text, 10 < 100 < 9
        save_state(tmp_path, step, state_of(step))
    assert names(tmp_path) == ["step-00000100.pt", "step-01000000.pt"]
    assert load(tmp_path)[0] == 1_000_000


def test_damaged_newest_state_falls_back_to_the_one_before_and_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_state(tmp_path, 1, state_of(1))
    save_state(tmp_path, 2, state_of(2))
    newest = tmp_path / "step-00000002.pt"
    good = newest.read_bytes()
    dice = random.Random(0)
    damaged = [good[:cut] for cut in (0, 1, 10, len(good) // 2, len(good) - 1)]
    damaged += [dice.randbytes(dice.choice((1, 10, 100, 1000))) for _ in range(300)]
    damaged += [b"not a state", bytes(1000)]
    for data in damaged:
        newest.write_bytes(data)
        step, state = load(tmp_path)
        assert step == 1
        assert torch.equal(state["task"]["weight"], torch.ones(50, 50))
        message = capsys.readouterr().err
        assert message.startswith(f"{newest}: damaged (")
        assert message.endswith("; trying the one before\n")
        assert message.count("\n") == 1


def test_bit_flips_in_the_structure_of_a_state_never_crash_the_load(tmp_path: Path) -> None:
    # What torch does not notice (a flip in a weight) loads; all else falls back to none here.
    save_state(tmp_path, 1, state_of(1))
    path = tmp_path / "step-00000001.pt"
    good = path.read_bytes()
    dice = random.Random(0)
    refused = 0
    for _ in range(300):
        data = bytearray(good)
        start = dice.choice((0, len(good) - 3000))  # the pickle, and the zip directory
        data[start + dice.randrange(3000)] ^= 1 << dice.randrange(8)
        path.write_bytes(data)
        refused += load_newest_state(tmp_path) is None
    assert refused > 30


def test_full_disk_leaves_the_states_before_and_nothing_half_written(tmp_path: Path) -> None:
    save_state(tmp_path, 1, state_of(1))
    save_state(tmp_path, 2, state_of(2))
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with no_file_above(5000), pytest.raises(OSError) as caught:
        save_state(tmp_path, 3, state_of(3))
    # An OSError, which commands turn into one line; torch alone would raise a RuntimeError.
    assert caught.value.errno == errno.EFBIG
    assert caught.value.filename == str(tmp_path / "step-00000003.pt")
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    assert load(tmp_path)[0] == 2


def test_what_a_kill_left_half_written_is_no_state(tmp_path: Path) -> None:
    save_state(tmp_path, 1, state_of(1))
    data = (tmp_path / "step-00000001.pt").read_bytes()
    with pytest.raises(KeyboardInterrupt), atomic_path(tmp_path / "step-00000002.pt") as temporary:
        temporary.write_bytes(data[:1000])
        # What would lie there after a kill that no clean-up survives:
        left = tmp_path / f"{temporary.name}9"
        left.write_bytes(data[:1000])
        raise KeyboardInterrupt
    assert names(tmp_path) == ["step-00000001.pt", left.name]
    assert load(tmp_path)[0] == 1


def test_nothing_in_a_state_is_executed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    class Payload:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return Path.touch, (tmp_path / "executed",)  # type: ignore[bad-return]

    torch.save({"task": Payload()}, tmp_path / "step-00000001.pt")
    assert load_newest_state(tmp_path) is None
    assert not (tmp_path / "executed").exists()
    assert "step-00000001.pt: damaged" in capsys.readouterr().err


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
