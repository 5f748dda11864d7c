"""Run states: round trip, the newest two kept, fallback past damage, faults while writing."""

import contextlib
import errno
import random
import resource
import signal
import subprocess
import sys
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest
import torch

from pqvae.training.checkpoint import digest_of, load_newest_state, save_state


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


def test_newest_two_states_and_the_named_ones_are_kept(tmp_path: Path) -> None:
    for step in (9, 10, 100, 1_000_000, 123_456_789):  # as numbers, 9 < 10; as text, 10 < 9
        save_state(tmp_path, step, state_of(step), kept_steps={10})
    assert names(tmp_path) == ["step-00000010", "step-01000000", "step-123456789"]
    assert load(tmp_path)[0] == 123_456_789


def test_checksum_is_one_that_sha256sum_checks(tmp_path: Path) -> None:
    save_state(tmp_path, 1, state_of(1))
    check = ["sha256sum", "--check", "--strict", "SHA256SUMS"]
    subprocess.run(check, cwd=tmp_path / "step-00000001", check=True)


def test_damaged_newest_state_falls_back_to_the_one_before_and_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_state(tmp_path, 1, state_of(1))
    save_state(tmp_path, 2, state_of(2))
    newest = tmp_path / "step-00000002"
    dice = random.Random(0)
    for name in ("state.pt", "SHA256SUMS"):
        good = (newest / name).read_bytes()
        damaged = [good[:cut] for cut in (0, 1, 10, len(good) // 2, len(good) - 1)]
        damaged += [dice.randbytes(dice.choice((1, 10, 100, 1000))) for _ in range(30)]
        damaged += [b"not a state", bytes(1000)]
        for _ in range(300):  # one bit, anywhere: in a weight, too
            data = bytearray(good)
            data[dice.randrange(len(data))] ^= 1 << dice.randrange(8)
            damaged.append(bytes(data))
        for data in damaged:
            (newest / name).write_bytes(data)
            step, state = load(tmp_path)
            assert step == 1
            assert torch.equal(state["task"]["weight"], torch.ones(50, 50))
            message = capsys.readouterr().err
            assert message == (
                f"{newest}: damaged (its checksum does not fit); trying the one before\n"
            )
        (newest / name).unlink()
        assert load(tmp_path)[0] == 1
        assert "a file is missing" in capsys.readouterr().err
        (newest / name).write_bytes(good)
    assert load(tmp_path)[0] == 2


def test_full_disk_leaves_the_states_before_and_nothing_half_written(tmp_path: Path) -> None:
    save_state(tmp_path, 1, state_of(1))
    save_state(tmp_path, 2, state_of(2))
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with no_file_above(5000), pytest.raises(OSError) as caught:
        save_state(tmp_path, 3, state_of(3))
    # An OSError, which commands turn into one line; torch alone would raise a RuntimeError.
    assert caught.value.errno == errno.EFBIG
    assert caught.value.filename == str(tmp_path / "step-00000003")
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
    assert names(tmp_path) == ["step-00000001", "step-00000002"]
    assert load(tmp_path)[0] == 2


def test_state_of_a_step_is_replaced_by_a_later_one_of_it(tmp_path: Path) -> None:
    save_state(tmp_path, 2, state_of(1))
    save_state(tmp_path, 2, state_of(2))
    assert torch.equal(load(tmp_path)[1]["task"]["weight"], torch.full((50, 50), 2.0))
    assert names(tmp_path) == ["step-00000002"]


# Saves in child processes that are killed at random moments, 50 times. Forked from one process, as
# importing torch takes seconds.
KILLS = """
import os, random, select, signal, sys, time
from pathlib import Path
import torch
from pqvae.training.checkpoint import digest_of, load_newest_state, save_state
torch.set_num_threads(1)
folder = Path(sys.argv[1])
dice = random.Random(0)
weight = torch.rand(100_000)
killed_while_saving = 0
for _ in range(50):
    newest = load_newest_state(folder)
    first = newest[0] if newest else 0
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        for step in range(first + 1, first + 1000):
            os.write(writing, b"s")
            save_state(folder, step, {"weight": weight * step})
            os.write(writing, b"d")
    os.close(writing)
    os.read(reading, 1)
    time.sleep(dice.uniform(0, 0.03))
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    told = b"s"
    while more := os.read(reading, 4096):
        told += more
    os.close(reading)
    killed_while_saving += told.endswith(b"s")
    saved = first + told.count(b"d")
    newest = load_newest_state(folder)
    step, state = newest if newest else (0, {})
    assert saved <= step <= saved + 1, (saved, step)  # renamed, but not yet told
    assert not step or torch.equal(state["weight"], weight * step)
assert killed_while_saving > 20, killed_while_saving
"""


def test_kills_at_random_moments_never_lose_more_than_one_save(tmp_path: Path) -> None:
    run = subprocess.run(
        [sys.executable, "-W", "error", "-c", KILLS, str(tmp_path)], capture_output=True, text=True
    )
    assert (run.returncode, run.stderr) == (0, "")  # no state was found damaged, either


def test_nothing_in_a_state_is_executed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    class Payload:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return Path.touch, (tmp_path / "executed",)  # type: ignore[bad-return]

    save_state(tmp_path, 1, {"task": Payload()})
    assert load_newest_state(tmp_path) is None
    assert not (tmp_path / "executed").exists()
    assert "step-00000001: damaged (Weights only load failed" in capsys.readouterr().err


def test_digest_tells_states_apart_by_names_values_shapes_and_types() -> None:
    state = {"a": torch.arange(6.0), "b": {"c": 1, "d": "x"}}
    others = [
        {"a": torch.arange(6.0) + 1e-6, "b": {"c": 1, "d": "x"}},
        {"a": torch.arange(6.0).view(2, 3), "b": {"c": 1, "d": "x"}},
        {"a": torch.arange(6.0).int(), "b": {"c": 1, "d": "x"}},
        {"a": torch.arange(6.0), "b": {"c": 2, "d": "x"}},
        {"a": torch.arange(6.0), "b": {"c": 1, "e": "x"}},
    ]
    assert len({digest_of(other) for other in (state, *others)}) == 6
    reordered = {"b": {"d": "x", "c": 1}, "a": torch.arange(12.0).view(6, 2)[:, 0] / 2}
    assert digest_of(reordered) == digest_of(state)
