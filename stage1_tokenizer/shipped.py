"""Trained tokenizers that come with the package, by their names."""

from pathlib import Path

FOLDER = Path(__file__).parent / "models"


def shipped_models() -> list[str]:
    """The names of all that are shipped."""
    return sorted(path.parent.name for path in FOLDER.glob("*/config.json"))


def find_model(name: str | Path) -> Path:
    """The folder of a shipped model, if a text names one; anything else is a folder itself.

    A folder that is called as a shipped model is reached as "./photos", or by a ``Path``.
    """
    return FOLDER / name if isinstance(name, str) and name in shipped_models() else Path(name)
