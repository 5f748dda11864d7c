"""Exit codes and error lines: bad input is one line and 2, a bug keeps its traceback."""

import argparse
import errno
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from pydantic import Field

from pqvae.cli import (
    EntryPoint,
    Parser,
    command,
    next_command,
    positive_int,
    train_command,
    whole_number,
)
from pqvae.config import config_class
from pqvae.data.batches import Prefetcher
from pqvae.errors import UserError
from pqvae.signals import Stopped


def raises(error: BaseException) -> EntryPoint:
    @command
    def main(argv: Sequence[str] | None = None) -> None:
        raise error

    return main


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (UserError("x.yaml: wrong"), 2, "error: x.yaml: wrong"),
        (OSError(errno.ENOSPC, "", "a.png"), 2, "error: a.png: no space left on the disk"),
        (OSError(errno.ENOSPC, ""), 2, "error: output: no space left on the disk"),
        (PermissionError(errno.EACCES, "", "a"), 2, "error: a: no permission"),
        (NotADirectoryError(errno.ENOTDIR, "", "a/b"), 2, "error: a/b: a file stands where a fol"),
        (OSError(errno.EISDIR, "", "a"), 2, "error: a: a folder stands where a file is needed"),
        (OSError(errno.ENAMETOOLONG, "", "a"), 2, "error: a: the name is too long"),
        (OSError(errno.EFBIG, "", "a"), 2, "error: a: the file is larger than this disk or"),
        (Stopped(2), 130, "stopped; the same command resumes from there"),
        (Stopped(15, "stopped after step 3"), 143, "stopped after step 3; the same command"),
    ],
)
def test_what_a_user_can_mend_is_one_line(
    error: BaseException, code: int, line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert raises(error)([]) == code
    (found,) = capsys.readouterr().err.splitlines()
    assert found.startswith(line)


TORCH = (
    "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: you "
    "tried to allocate 50331648 bytes. Error code 12 (Cannot allocate memory)"
)
NUMPY = "Unable to allocate 7.45 GiB for an array with shape (1000000000,) and data type float64"
GPU = "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 139 GiB"


@pytest.mark.parametrize(
    ("error", "size"),
    [
        (RuntimeError(TORCH), " for 48.0 MiB more"),
        (MemoryError(NUMPY), " for 7.45 GiB more"),
        (RuntimeError(GPU), " for 2.00 GiB more"),
        (RuntimeError("MPS backend out of memory (MPS allocated: 1 GB)"), ""),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: not enough memory: you tried"), ""),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), ""),
        (MemoryError(), ""),
    ],
)
def test_a_lack_of_memory_is_one_line_with_the_size_and_the_remedy(
    error: Exception, size: str, capsys: pytest.CaptureFixture[str]
) -> None:
    def main(argv: Sequence[str] | None = None) -> None:
        raise error

    assert command(main, saves_memory="a smaller --batch-size takes less")([]) == 2
    line = f"error: the memory does not suffice{size}; a smaller --batch-size takes less\n"
    assert capsys.readouterr().err == line
    assert raises(error)([]) == 2
    assert capsys.readouterr().err == f"error: the memory does not suffice{size}\n"


def test_a_real_lack_of_memory_is_known_also_in_a_thread(
    capsys: pytest.CaptureFixture[str],
) -> None:
    def load(step: int, part: slice) -> torch.Tensor:
        return torch.empty(2**50, dtype=torch.uint8)  # a petabyte

    @command
    def train(argv: Sequence[str] | None = None) -> None:
        Prefetcher(load, [slice(0, 1)], workers=1)(0, slice(0, 1))

    assert train([]) == 2
    line = "error: the memory does not suffice for 1,073,741,824.0 MiB more\n"
    assert capsys.readouterr().err == line


@pytest.mark.parametrize(
    "error",
    [ValueError("?"), FileNotFoundError(errno.ENOENT, "", "a"), RuntimeError("shapes differ")],
)
def test_a_bug_keeps_its_traceback(error: Exception) -> None:
    with pytest.raises(type(error)):
        raises(error)([])


def test_a_reader_that_has_left_is_no_error() -> None:
    # As in `... | head`: what is printed goes to a pipe that nobody reads from any more.
    program = """
import sys
from pqvae.cli import command
@command
def main(argv):
    print("a line")
sys.exit(main([]))
"""
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "w") as pipe:
        done = subprocess.run(
            [sys.executable, "-c", program],
            cwd=Path(__file__).parents[2],
            stdout=pipe,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    assert (done.returncode, done.stderr) == (0, "")


WORK = """
import sys
from pqvae.cli import command
from pqvae.console import say
@command
def main(argv):
    say("begun")
    open(sys.argv[1], "w").write("done")
    print("made caf\u00e9")
sys.exit(main([]))
"""


@pytest.mark.parametrize(
    ("redirection", "code"),
    [
        (">&-", 0),
        ("2>&-", 0),
        ("2>/dev/full", 0),
        (">/dev/full", 2),
        ("| true", 0),
        ("2>&1 >/dev/null | true", 0),
    ],
)
def test_what_cannot_be_said_does_not_undo_what_was_done(
    redirection: str, code: int, tmp_path: Path
) -> None:
    script = f'set -o pipefail; "$0" -c "$1" "$2" {redirection}'
    done = subprocess.run(
        ["bash", "-c", script, sys.executable, WORK, tmp_path / "result"],
        cwd=Path(__file__).parents[2],
        env={**os.environ, "PYTHONIOENCODING": "ascii"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    assert (tmp_path / "result").read_text() == "done"


def test_a_wrong_argument_names_the_help() -> None:
    parser = Parser("eval.fid", "Score.", "  python -m eval.fid")
    parser.add_argument("--samples")
    for arguments in (["--sample", "x"], ["stray"], ["--samples"]):
        with pytest.raises(UserError, match=r"\(see python -m eval\.fid --help\)$"):
            parser.parse_args(arguments)


def test_counts_are_whole_numbers_of_at_least_one() -> None:
    assert positive_int("12") == 12
    assert whole_number(0, 2**63 - 1)(str(2**63 - 1)) == 2**63 - 1
    for text in (
        "0",
        "-1",
        "nan",
        "inf",
        "1e30",
        "9" * 100,
        "9" * 5000,
        "1.0",
        "1e3",
        "",
        "²",
        "one",
    ):
        with pytest.raises(argparse.ArgumentTypeError, match="is not a whole number of at least"):
            positive_int(text)


@config_class
class StubConfig:
    out: str = Field(default="runs/x", description="the run folder")
    steps: int = Field(default=20, ge=1, description="of the optimizer")


def trainer(ran: list[StubConfig]) -> EntryPoint:
    examples = "  python -m stub.train\n  python -m stub.train steps=30"
    return train_command("stub.train", "Train a stub.", examples, StubConfig, ran.append)


@pytest.mark.parametrize("arguments", [["--help"], ["-h"], ["steps=3", "--help"]])
def test_a_trainers_help_shows_usage_examples_and_every_key(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    ran: list[StubConfig] = []
    assert trainer(ran)(arguments) == 0
    assert ran == []
    text = capsys.readouterr().out
    parts = [
        "usage: python -m stub.train [",
        "Train a stub.",
        "examples:\n  python -m stub.train\n",
    ]
    parts += ["out=runs/x", "the run folder", "steps=20", "of the optimizer (a whole number, at l"]
    places = [text.index(part) for part in parts]
    assert places == sorted(places)


def test_a_trainer_runs_the_config_that_it_is_given(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ran: list[StubConfig] = []
    file = tmp_path / "stub.yaml"
    file.write_text("steps: 5\nout: a\n")
    assert trainer(ran)([str(file), "out=b"]) == 0
    assert ran == [StubConfig(out="b", steps=5)]
    assert trainer(ran)(["help"]) == 2
    assert len(ran) == 1
    assert capsys.readouterr().err.startswith("error: 'help' is neither a yaml file nor key=value")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], []),
        (["--samples", Path("runs/a")], ["--samples", "runs/a"]),
        (
            ["--n", "10000", "runs/photos/", "out=runs//"],
            ["--n", "10000", "runs/photos", "out=runs"],
        ),
        (["tokenizer=my runs/it's/"], ["tokenizer=my runs/it's"]),
        ([Path("$HOME"), "*.png", "/"], ["$HOME", "*.png", "/"]),
    ],
)
def test_a_next_command_means_to_a_shell_what_it_says(
    arguments: list[str | Path], words: list[str]
) -> None:
    line = next_command("eval.fid", *arguments)
    echo = subprocess.run(
        ["sh", "-c", f'for word in {line.removeprefix("python ")}; do echo "$word"; done'],
        capture_output=True,
        text=True,
        check=True,
    )
    assert echo.stdout.splitlines() == ["-m", "eval.fid", *words]
    if not arguments:
        assert line == "python -m eval.fid"
