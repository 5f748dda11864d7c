"""docs/commands.md is what the commands say of themselves."""

import importlib.util
import sys
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[1] / "docs"
spec = importlib.util.spec_from_file_location("write_commands", DOCS / "write_commands.py")
assert spec is not None
assert spec.loader is not None
write_commands = importlib.util.module_from_spec(spec)
spec.loader.exec_module(write_commands)


# Python 3.13 wraps usage lines in another way.
@pytest.mark.skipif(sys.version_info[:2] != (3, 11), reason="argparse words help by its version")
def test_the_page_is_what_the_commands_say() -> None:
    written = (DOCS / "commands.md").read_text(encoding="utf-8")
    assert written == write_commands.page(), "python docs/write_commands.py writes it anew"
