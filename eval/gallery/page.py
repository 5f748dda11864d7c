"""The file: a template, its style and script, and what it shows as JSON, all in one."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pqvae.errors import UserError
from pqvae.files import atomic_path

PARTS = Path(__file__).parent
MARK = "<!-- made by sampling.gallery, which may replace it -->"  # the second line of every page


def check_replaceable(path: Path) -> None:
    """Check that nothing but an older gallery stands where the page goes.

    Raises:
        UserError: Something else does.
    """
    if path.is_file():
        with path.open("rb") as file:
            if MARK.encode() in file.read(200):
                return
    if path.exists():
        raise UserError(f"--out {path}: is there already and no gallery; give another name")


def write_page(path: Path, content: Mapping[str, Any]) -> None:
    """Write the page; equal content makes equal bytes."""
    text = (PARTS / "page.html").read_text(encoding="utf-8")
    for name in ("css", "js"):
        part = (PARTS / f"page.{name}").read_text(encoding="utf-8")
        text = text.replace(f"{{{{{name}}}}}", part.strip())
    # Names of classes may hold anything; without "<" nothing in them ends the script element.
    data = json.dumps(content, separators=(",", ":")).replace("<", "\\u003c")
    text = text.replace("{{mark}}", MARK).replace("{{data}}", data)  # last, as it may hold braces
    path.parent.mkdir(exist_ok=True)  # runs/, where nothing has been trained
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
