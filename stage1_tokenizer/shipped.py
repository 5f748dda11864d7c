"""Trained tokenizers that come with the package, by their names."""

from pathlib import Path

FOLDER = Path(__file__).parent / "models"


def shipped_models() -> list[str]:
    """The names of all that are shipped."""
    return sorted(path.parent.name for path in FOLDER.glob("*/config.json"))


def find_model(name: str | Path) -> Path:
    """The folder of a shipped model; any other name is that of a folder.

    A folder that is called as a shipped model is reached as ``./photos``.
    """
    return FOLDER / name if str(name) in shipped_models() else Path(name)
