"""One reading of all labels: what folders say, what files beside the images say, and a list."""

import json
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from pqvae.errors import UserError

LABEL_FILES = ("cls", "json")  # extensions of what may hold the label of the image beside it
LABEL_BYTES = 1 << 20  # a longer file holds more than a label
_KEYS = ("label", "cls")  # of a .json file


class Said(NamedTuple):
    """What is said of an image's class."""

    place: str  # for messages
    folder: str | None
    file: str | None  # a .cls or .json file beside it


def class_name(text: str) -> str:
    """A class name in the form that names are compared in: NFC, whatever the disk's is."""
    return unicodedata.normalize("NFC", text)


def parse_label(data: bytes, extension: str, place: str) -> str | None:
    """The label in a ``.cls`` file, or in a ``.json`` file that has one.

    Args:
        data: The file's content.
        extension: One of ``LABEL_FILES``.
        place: The file, for messages.

    Raises:
        UserError: There is no label in it, or none that names one class.
    """
    try:
        text = data.decode("utf-8-sig").strip()
    except UnicodeDecodeError:
        text = ""
    if extension == "json":
        try:
            values = json.loads(text)
        except (ValueError, RecursionError):
            raise UserError(f"{place}: not a JSON file; mend or remove it") from None
        found = [values[key] for key in _KEYS if key in values] if isinstance(values, dict) else []
        found = [value for value in found if not isinstance(value, list | dict | None)]
        if not found:
            return None
        names = {str(value).strip() for value in found}
        text = names.pop() if len(names) == 1 and type(found[0]) in (int, str) else ""
    if not text or not text.isprintable() or len(text) > 200:
        raise UserError(f"{place}: must hold a class number or name")
    return _number(text) or class_name(text)


def one_label(place: str, said: Mapping[str, str | None]) -> str | None:
    """The label that files beside an image agree on; None where none says one.

    Args:
        place: What stands before the first file's name in messages.
        said: What each file says, by its name.

    Raises:
        UserError: Two disagree.
    """
    labels = {name: label for name, label in said.items() if label is not None}
    if len(set(labels.values())) > 1:
        (one, first), (other, second) = list(labels.items())[:2]
        raise UserError(f"{place}{one} says {first}, {other} {second}; they must agree")
    return next(iter(labels.values()), None)


def listed_classes(path: Path) -> tuple[str, ...]:
    """The names in a ``classes.txt``, of which the first is class 0; none where there is no file.

    Raises:
        UserError: It is not a list of different names.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except FileNotFoundError:
        return ()
    except (UnicodeDecodeError, IsADirectoryError) as error:
        raise UserError(f"{path}: not a text file; one class name per line is needed") from error
    names = tuple(class_name(line.strip()) for line in lines)
    while names and not names[-1]:
        names = names[:-1]
    if len(set(names)) < len(names) or "" in names:
        raise UserError(f"{path}: an empty or repeated line; one class name per line is needed")
    return names


def settle_labels(
    said: Sequence[Said], names: tuple[str, ...], names_file: Path | None
) -> tuple[list[str | None], tuple[str, ...]]:
    """The class of each image, and the classes whose order is known.

    Numbers become names by the list. Where there is none, but folders are names and the files
    beside the images hold numbers, or the other way round, each number is the name that it comes
    with.

    Args:
        said: Of each image.
        names: The list of classes, the first being class 0, or empty.
        names_file: Where it was read.

    Raises:
        UserError: Folders and files disagree, or a number has no line in the list.
    """
    if names:
        named = [_named(one, names, names_file) for one in said]
        numbered = any(_number(label) for one in said for label in one[1:] if label)
    else:
        named, numbered = list(said), False
    both = [one for one in named if one.folder and one.file]
    both = [one for one in both if one.file not in (one.folder, _number(one.folder or ""))]
    pairs = {(one.folder or "", one.file or "") for one in both}
    by_number: dict[str, str] = {}
    for folder, file in sorted(pairs):
        number, name = (folder, file) if _number(folder) else (file, folder)
        if _number(number) is None or _number(name) is not None:
            _disagree(both, folder, file)
        if by_number.setdefault(number, name) != name:
            _disagree(both, folder, file, f", and {number} is also {by_number[number]}")
    if len(set(by_number.values())) < len(by_number):
        folder, file = sorted(pairs)[-1]
        _disagree(both, folder, file, ", and one name has two numbers")
    labels = [
        label and by_number.get(label, label) for label in (one.folder or one.file for one in named)
    ]
    order = tuple(by_number[number] for number in sorted(by_number, key=int))
    return labels, names if numbered else order


def _named(one: Said, names: tuple[str, ...], names_file: Path | None) -> Said:
    labels: list[str | None] = []
    for label in (one.folder, one.file):
        number = _number(label or "")
        if number is not None and int(number) >= len(names):
            raise UserError(
                f"{one.place}: label {label} has no line in {names_file} "
                f"(its {len(names)} lines are labels 0 to {len(names) - 1})"
            )
        labels.append(label if number is None else names[int(number)])
    return Said(one.place, *labels)


def _disagree(both: Iterable[Said], folder: str, file: str, more: str = "") -> None:
    place = next(one.place for one in both if (one.folder, one.file) == (folder, file))
    raise UserError(
        f"{place}: its folder says {folder}, the file beside it {file}{more}; "
        "make them agree, or remove one"
    )


def _number(label: str) -> str | None:
    return str(int(label)) if label.isascii() and label.isdecimal() else None
