"""What is printed comes out, whatever the terminal can show."""

import io
import sys

import pytest

from pqvae.cli import command
from pqvae.console import accept_all_text


@pytest.mark.parametrize(
    ("encoding", "printed"),
    [
        ("ascii", r"1 +- 2 pens\xe9e \u7d75 \udce9"),
        ("latin-1", r"1 ± 2 pensée \u7d75 \udce9"),
        ("utf-8", r"1 ± 2 pensée 絵 \udce9"),
    ],
)
def test_what_an_encoding_lacks_is_written_in_plain_characters(
    encoding: str, printed: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    buffers = {name: io.BytesIO() for name in ("stdout", "stderr")}
    for name, buffer in buffers.items():
        monkeypatch.setattr(sys, name, io.TextIOWrapper(buffer, encoding, errors="strict"))
    accept_all_text()
    # The last is a byte of a file's name that is no UTF-8.
    print("1 ± 2 pensée 絵 \udce9", flush=True)
    print("±", file=sys.stderr, flush=True)
    assert buffers["stdout"].getvalue().decode(encoding) == printed + "\n"
    assert buffers["stderr"].getvalue().decode(encoding).strip() in ("±", "+-")


def test_a_command_runs_without_a_stdout(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", None)  # as Python has it where it was closed from the start
    assert command(lambda argv: print("a line"))([]) == 0
