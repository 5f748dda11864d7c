"""What a source of images says of itself: its samples by split; a sample is one encoded image."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pqvae.images import ImageError

Split = Literal["train", "val", "test"]
SPLITS: tuple[Split, ...] = ("train", "val", "test")

# Of operating systems and storage boxes, which keep thumbnails and what was thrown away in them.
_SYSTEM_FOLDERS = frozenset(
    (
        "__MACOSX",
        "@eaDir",
        "@Recycle",
        "#recycle",
        "#snapshot",
        "$RECYCLE.BIN",
        "lost+found",
        "System Volume Information",
        "__pycache__",
    )
)


@dataclass(frozen=True, slots=True)
class Sample:
    """One encoded image, read when it is asked for."""

    key: str
    label: str | None
    source: Path | bytes  # the file or shard that holds the encoded image; or the encoded image
    offset: int
    size: int  # bytes; negative where there are none to read

    @property
    def place(self) -> str:  # for messages
        # No member of a tar lies at offset 0, where its first header is.
        shard = self.source.name if isinstance(self.source, Path) and self.offset else ""
        key = self.key if self.key.isprintable() else repr(self.key)
        return f"{shard}: {key}" if shard else key

    def read(self) -> bytes:
        if isinstance(self.source, bytes):
            return self.source
        if self.size < 0:
            raise ImageError("a link or a sparse file, which is not read in a shard")
        try:
            with open(self.source, "rb") as file:
                file.seek(self.offset)
                data = file.read(self.size)
        except OSError as error:
            raise ImageError(error.strerror or str(error)) from error
        if len(data) < self.size:
            raise ImageError("shorter than when it was listed")
        return data


@dataclass(frozen=True, slots=True)
class Listing:
    """What a source holds.

    Attributes:
        samples: By split, and only of the splits that the source has of its own: others are carved
            from train. A source without splits is all train.
        class_names: Classes whose order the source knows; others follow, sorted.
        no_flip_classes: Classes that a mirror would falsify.
        notes: Lines that the user should see.
    """

    samples: Mapping[Split, Sequence[Sample]]
    class_names: tuple[str, ...] = ()
    no_flip_classes: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


# Of the value of ``data.path``: what is there, or None where the path is not this source's; raises
# UserError where it is, but something is wrong there.
Source = Callable[[str], Listing | None]


def is_visible(name: str) -> bool:
    """Whether a file or folder of this name counts; hidden ones and those of systems do not."""
    return not name.startswith(".") and name not in _SYSTEM_FOLDERS
