"""Every key of a config in words, for ``--help``."""

import itertools
import textwrap
from collections.abc import Sequence
from typing import NamedTuple

from pydantic_core import PydanticUndefined

from pqvae.config import kinds_of, walk_keys
from pqvae.config_text import as_typed, in_words, range_in_words


class KeyDescription(NamedTuple):
    """One dotted key that a user may set; all in words."""

    key: str
    default: str | None  # as it would be typed; None: the key must be given
    description: str
    type: str
    range: str  # empty: any value of the type
    kind: str  # the kinds of its section that have the key so; empty: all

    @property
    def section(self) -> str:
        """The key without its last part."""
        return self.key.rpartition(".")[0]


def describe_keys(cls: type) -> list[KeyDescription]:
    """Every key that may be set: once, unless the kinds of its section differ in it."""
    having: dict[KeyDescription, list[str]] = {}
    kinds: dict[str, set[str]] = {}  # of each section
    for name, info, default, kind in walk_keys(cls):
        if not kinds_of(info):
            typed = None if default is PydanticUndefined else as_typed(default)
            about, words = info.description or "", in_words(info.annotation)
            row = KeyDescription(name, typed, about, words, range_in_words(info), "")
            having.setdefault(row, []).append(kind)
            kinds.setdefault(row.section, {""}).add(kind)
    return [
        row._replace(kind=", ".join(some)) if kinds[row.section] - {"", *some} else row
        for row, some in having.items()
    ]


def format_keys(keys: Sequence[KeyDescription]) -> str:
    """Lines of at most 100 columns, by section: ``key=default``, meaning, type and range."""
    lines: list[str] = []
    for (section, kind), group in itertools.groupby(keys, lambda key: (key.section, key.kind)):
        lines += ["", f"{section or 'top level'}{kind and f', kind={kind}'}:"]
        for key in group:
            left = f"  {key.key}" + (" (required)" if key.default is None else f"={key.default}")
            limits = f"{key.type}, {key.range}" if key.range else key.type
            right = textwrap.wrap(f"{key.description} ({limits})".strip(), 60)
            if len(left) > 38:
                right.insert(0, "")
            pairs = itertools.zip_longest([left], right, fillvalue="")
            lines += [f"{start:40}{end}".rstrip() for start, end in pairs]
    return "\n".join(lines[1:]) + "\n"
