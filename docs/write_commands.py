"""Write docs/commands.md from what every command says for ``--help``."""

import importlib
import os
import subprocess
import sys
import tomllib
from pathlib import Path

PAGE = Path(__file__).with_name("commands.md")
PROJECT = tomllib.loads(PAGE.parents[1].joinpath("pyproject.toml").read_text(encoding="utf-8"))
MODULES = tuple(entry.removesuffix(":main") for entry in PROJECT["project"]["scripts"].values())
HEAD = """# Every option of every command

What each command prints for `--help`; `python docs/write_commands.py` writes this page.
"""


def help_of(command: str) -> str:
    """What the command prints, 100 columns wide."""
    return subprocess.run(
        [sys.executable, "-m", *command.split(), "--help"],
        cwd=PAGE.parents[1],
        env={**os.environ, "COLUMNS": "100"},
        capture_output=True,
        text=True,
        check=True,
    ).stdout


def commands() -> list[str]:
    """Every command; one that has commands of its own is followed by these."""
    found = []
    for module in MODULES:
        own = getattr(importlib.import_module(module), "COMMANDS", ())
        found += [module, *(f"{module} {name}" for name in own)]
    return found


def page() -> str:
    """The whole page."""
    sys.path.insert(0, str(PAGE.parents[1]))
    parts = [f"\n## python -m {c}\n\n```\n{help_of(c).rstrip()}\n```\n" for c in commands()]
    return HEAD + "".join(parts)


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
