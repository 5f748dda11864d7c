"""What lies among the images and is not read, though its owner may think so: counted and named."""

from collections.abc import Mapping

MAX_NOTE = 200  # characters of a line


class PassedOver:
    """Files and folders that are not read, by kind."""

    def __init__(self) -> None:
        self.kinds: dict[str, tuple[int, str]] = {}  # kind -> how many, the first

    def add(self, kind: str, name: str, count: int = 1) -> None:
        """Count what is called ``name``, and so many of its kind in all."""
        before, first = self.kinds.get(kind, (0, name))
        self.kinds[kind] = before + count, first

    def update(self, kinds: Mapping[str, tuple[int, str]]) -> None:
        """Count what another one has counted."""
        for kind, (count, first) in kinds.items():
            self.add(kind, first, count)

    def text(self) -> str:
        """Such as ``passed over .heic files: 3 (IMG_1.heic)``; empty where nothing was."""
        parts = [
            f"{kind}: {count:,} ({shorten(name)})" for kind, (count, name) in self.kinds.items()
        ]
        return f"passed over {'; '.join(parts)}" if parts else ""

    def notes(self, place: str) -> tuple[str, ...]:
        """The lines that tell it."""
        return (shorten(f"{place}: {self.text()}", MAX_NOTE),) if self.kinds else ()


def shorten(text: str, length: int = 60) -> str:
    """A text that a line has room for, printable and cut in the middle."""
    shown = text if text.isprintable() else repr(text)
    half = (length - 3) // 2
    return shown if len(shown) <= length else f"{shown[:half]}...{shown[-half:]}"
