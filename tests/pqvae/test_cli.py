"""Exit codes and error lines: bad input is one line and 2, a bug keeps its traceback."""

import argparse
import errno
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from pqvae.cli import EntryPoint, Parser, command, positive_int, wants_help
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
        (OSError(errno.EFBIG, "", "a"), 2, "error: a: the file is larger than this disk or"),
        (Stopped(2), 130, "stopped; the same command goes on from there"),
        (Stopped(15, "stopped after step 3"), 143, "stopped after step 3; the same command"),
    ],
)
def test_what_a_user_can_mend_is_one_line(
    error: BaseException, code: int, line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert raises(error)([]) == code
    (found,) = capsys.readouterr().err.splitlines()
    assert found.startswith(line)


@pytest.mark.parametrize("error", [ValueError("?"), FileNotFoundError(errno.ENOENT, "", "a")])
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


def test_a_wrong_argument_names_the_help() -> None:
    parser = Parser("eval.fid", "Score.", "  python -m eval.fid")
    parser.add_argument("--samples")
    for arguments in (["--sample", "x"], ["stray"], ["--samples"]):
        with pytest.raises(UserError, match=r"\(see python -m eval\.fid --help\)$"):
            parser.parse_args(arguments)


def test_counts_are_whole_numbers_of_at_least_one() -> None:
    assert positive_int("12") == 12
    for text in ("0", "-1", "1.0", "1e3", "", "²", "one"):
        with pytest.raises(argparse.ArgumentTypeError, match="is not a whole number of at least"):
            positive_int(text)


def test_help_is_asked_for_anywhere() -> None:
    assert wants_help(["a=1", "--help"])
    assert wants_help(["-h"])
    assert not wants_help(["help"])
