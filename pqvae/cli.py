"""What every command shares: one clear line for bad input (exit code 2), a traceback for a bug."""

import argparse
import errno
import functools
import os
import re
import reprlib
import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn, Protocol, TypeVar

from pqvae import distributed
from pqvae.config import FORM, load_config, parse_config_arguments
from pqvae.config_help import describe_keys, format_keys
from pqvae.console import accept_all_text
from pqvae.errors import UserError, is_out_of_memory
from pqvae.signals import Stopped, StopRequest

_DIGITS = 30  # of a number at most: Python itself refuses to read thousands
SIGNALLED = 128  # a shell's exit code is this plus the number of the signal

# Errors of the machine that a user can mend; everything else keeps its traceback.
_MACHINE_ERRORS = {
    errno.ENOSPC: "no space left on the disk",
    errno.EDQUOT: "the disk quota is used up",
    errno.EFBIG: "the file is larger than this disk or a limit of this account allows",
    errno.EACCES: "no permission",
    errno.EPERM: "no permission",
    errno.EROFS: "the file system is read-only",
    errno.ENOTDIR: "a file stands where a folder is needed",
    errno.EISDIR: "a folder stands where a file is needed",
    errno.ENAMETOOLONG: "the name is too long",
}
_ASKED = re.compile(r"allocate (\d+(?:\.\d+)?) ?(bytes|[KMGT]iB)")

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

C = TypeVar("C", bound="DataclassInstance")


class EntryPoint(Protocol):
    def __call__(self, argv: Sequence[str] | None = None) -> int: ...


def command(main: Callable[[Sequence[str] | None], None], saves_memory: str = "") -> EntryPoint:
    """Turn ``main(argv)`` into an entry point that returns the exit code: 0, or 2 for bad input.

    Args:
        main: The command.
        saves_memory: What a user can do where the memory does not suffice, if anything.
    """

    @functools.wraps(main)
    def run(argv: Sequence[str] | None = None) -> int:
        accept_all_text()
        try:
            with StopRequest(hold_back=False):
                main(argv)
            if sys.stdout is not None:  # as where it was closed from the start
                sys.stdout.flush()  # here, so that a closed pipe is met below and not at exit
        except UserError as error:
            print(f"error: {error}", file=sys.stderr)
            return 2
        except BrokenPipeError:  # `... | head` closed our stdout: nothing is wrong
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 0
        except Exception as error:
            line = _mendable(error, saves_memory)
            if line is None:
                raise
            print(f"error: {line}", file=sys.stderr)
            return 2
        except Stopped as stopped:
            if distributed.is_rank_zero():
                print(f"{stopped}; the same command resumes from there", file=sys.stderr)
            return SIGNALLED + stopped.signum
        return 0

    return run


def _mendable(error: Exception, saves_memory: str) -> str | None:
    """One line on an error of the machine that a user can mend; None for any other."""
    if isinstance(error, OSError) and error.errno in _MACHINE_ERRORS:
        return f"{error.filename or 'output'}: {_MACHINE_ERRORS[error.errno]}"
    if not is_out_of_memory(error):
        return None
    asked = _ASKED.search(str(error))
    size = f" for {asked[1]} {asked[2]} more" if asked else ""
    if asked and asked[2] == "bytes":
        size = f" for {int(asked[1]) / 2**20:,.1f} MiB more"
    return f"the memory does not suffice{size}" + (saves_memory and f"; {saves_memory}")


def train_command(
    module: str, summary: str, examples: str, config: type[C], run: Callable[[C], None]
) -> EntryPoint:
    """The entry point of a trainer, ``python -m MODULE [config.yaml] [key=value ...]``.

    Args:
        module: What to type after ``python -m``.
        summary: What ``--help`` says above the examples ...
        examples: ... which are indented lines, one command each ...
        config: ... and above every key of this config class.
        run: Does the work; only here may torch be imported.
    """

    def main(argv: Sequence[str] | None = None) -> None:
        arguments = list(sys.argv[1:] if argv is None else argv)
        if {"-h", "--help"} & set(arguments):
            print(f"usage: python -m {module} {FORM}\n\n{summary}\n\nexamples:\n{examples}\n")
            print("keys, each with its default, in the yaml file or as key=value:\n")
            print(format_keys(describe_keys(config)), end="")
            return
        run(load_config(config, *parse_config_arguments(arguments)))

    saves_memory = "a larger trainer.accumulate or a smaller trainer.batch_size takes less"
    return command(main, saves_memory)


class Parser(argparse.ArgumentParser):
    """An argument parser whose ``--help`` starts with examples, and whose errors are one line."""

    def __init__(self, module: str, summary: str, examples: str) -> None:
        super().__init__(
            prog=f"python -m {module}",
            usage="%(prog)s [options]",
            description=f"{summary}\n\nexamples:\n{examples}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message} (see {self.prog} --help)")


def whole_number(least: int, most: int) -> Callable[[str], int]:
    """An argparse type: a whole number in this range, ends included."""

    def parse(text: str) -> int:
        digits = text.isascii() and text.isdecimal() and len(text) <= _DIGITS
        if not digits or not least <= int(text) <= most:
            raise argparse.ArgumentTypeError(
                f"{reprlib.repr(text)} is not a whole number of at least {least} and at most {most}"
            )
        return int(text)

    return parse


positive_int = whole_number(1, 10**9)


def positive_ints(text: str) -> tuple[int, ...]:
    """An argparse type: a list of whole numbers, as in 2,4,8."""
    return tuple(positive_int(part) for part in text.split(","))


def next_command(module: str, *arguments: str | Path) -> str:
    """A command to print for the user to copy, such as ``python -m eval.fid --samples 'my runs'``.

    Each argument is quoted where a shell needs it, and loses the slash at its end.
    """
    words = [str(argument).rstrip("/") or "/" for argument in arguments]
    return shlex.join(["python", "-m", module, *words])
