"""Configuration: frozen dataclasses, filled from a yaml file and ``key=value`` arguments.

Precedence is default < yaml < argument. Text becomes a value by the *type of its field*, never by
how it looks: yaml alone would read ``1e-4`` as a string and ``no`` as False. Pydantic then checks
type and range, as it does for a config made in Python.
"""

import dataclasses
import difflib
import json
import re
import types
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import (
    TYPE_CHECKING,
    Any,
    Literal,
    NamedTuple,
    NoReturn,
    TypeVar,
    cast,
    dataclass_transform,
)

import pydantic.dataclasses
import yaml
from pydantic import ConfigDict, Field, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from pqvae.config_text import STRICT, Dumper, convert, in_words, read_yaml
from pqvae.errors import UserError

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

C = TypeVar("C")
T = TypeVar("T", bound="DataclassInstance")

FORM = "[file.yaml] [key=value ...]"
COMMAND_LINE = "command line"
# In Annotated: a run stays the same run, whatever this field's value; or as long as what lies at
# the place that it names is the same by its hash.
HARMLESS, PLACE = "harmless", "place"

_Layer = tuple[str, Any]  # source, values
_OVERRIDE = re.compile(r"[A-Za-z_]\w*(\.\w+)*=", re.ASCII)


@dataclass_transform(
    frozen_default=True, kw_only_default=True, field_specifiers=(dataclasses.field, Field)
)
def config_class(cls: type[C]) -> type[C]:
    """Make a class a config: a frozen dataclass that refuses values of wrong type or range.

    Fields are written ``steps: int = Field(default=2000, ge=1, description="optimizer steps")``,
    with ``default=``, as type checkers take any other first argument for a required field. A field
    of another config class is a section; it may start from other values than its class's.
    """
    config = ConfigDict(extra="forbid", validate_default=True, **STRICT)
    decorate: Any = pydantic.dataclasses.dataclass
    return decorate(frozen=True, kw_only=True, slots=True, config=config)(cls)


@dataclasses.dataclass(frozen=True)
class OneOf:
    """In Annotated: the section is of one of these config classes, told apart by ``kind``."""

    classes: Mapping[str, type]  # kind -> class; read at each use, so that entries may be added


def parse_config_arguments(arguments: Sequence[str]) -> tuple[Path | None, list[str]]:
    """Split ``[file.yaml] [key=value ...]`` into the file, if any, and the overrides.

    Raises:
        UserError: An argument is neither, or there are two files.
    """
    path: Path | None = None
    overrides: list[str] = []
    for argument in arguments:
        if _OVERRIDE.match(argument):
            overrides.append(argument)
        elif argument.startswith("-") or not argument.endswith((".yaml", ".yml")):
            raise UserError(f"{argument!r} is neither a yaml file nor key=value (form: {FORM})")
        elif path is not None:
            raise UserError(f"two config files, {path} and {argument}; give one (form: {FORM})")
        else:
            path = Path(argument)
    return path, overrides


def load_config(cls: type[T], path: str | Path | None, overrides: Sequence[str]) -> T:
    """Build a config from its defaults, then the yaml file, then the overrides.

    Args:
        cls: A config class; its fields may be config classes again.
        path: A yaml file that holds differences from the defaults, or None.
        overrides: ``dotted.key=value``, later ones win.

    Raises:
        UserError: The file cannot be read, or a key or a value does not fit.
    """
    layers = [] if path is None else [(str(path), read_yaml(Path(path)))]
    for override in overrides:
        if not _OVERRIDE.match(override):
            raise UserError(f"{COMMAND_LINE}: {override!r} is not of the form key=value")
    if overrides:
        layers.append((COMMAND_LINE, dict(override.split("=", 1) for override in overrides)))
    source = " with the ".join(name for name, _ in layers) or "defaults"
    return _Builder(cls, source).build(cls, None, layers)


def config_from_dict(cls: type[T], values: Mapping[str, Any], source: str) -> T:
    """Build a config from nested plain values, such as ``config_to_dict`` gives.

    Args:
        cls: A config class; its fields may be config classes again.
        values: Field name (or dotted key) to value; what is missing keeps its default.
        source: What the values came from; error messages start with it.

    Raises:
        UserError: A key or a value does not fit.
    """
    return _Builder(cls, source).build(cls, None, [(source, values)])


def config_to_dict(config: "DataclassInstance") -> dict[str, Any]:
    """The config as nested plain values, for yaml or json: tuples become lists."""
    return json.loads(json.dumps(dataclasses.asdict(config)))


def config_to_yaml(config: "DataclassInstance") -> str:
    """The whole config, defaults included, as a yaml text that ``load_config`` reads back."""
    return yaml.dump(config_to_dict(config), Dumper=Dumper, sort_keys=False, allow_unicode=True)


def changed_keys(a: "DataclassInstance", b: "DataclassInstance") -> list[str]:
    """Dotted keys whose values differ between two configs, or that only one of them has."""
    left, right = _flat(config_to_dict(a)), _flat(config_to_dict(b))
    missing = object()
    return [key for key in left | right if left.get(key, missing) != right.get(key, missing)]


def identity_changes(
    a: "DataclassInstance", b: "DataclassInstance", marks: Sequence[str] = (HARMLESS,)
) -> list[str]:
    """The changed keys that make ``b`` another run than ``a``: those without one of the marks."""
    same = marked_keys(marks, type(a), type(b))
    return [key for key in changed_keys(a, b) if key not in same]


def marked_keys(marks: Sequence[str], *classes: type) -> set[str]:
    """The dotted keys of config classes that bear one of these marks wherever they occur."""
    found: dict[bool, set[str]] = {True: set(), False: set()}
    for key in (key for cls in classes for key in walk_keys(cls)):
        found[any(mark in key.info.metadata for mark in marks)].add(key.name)
    return found[True] - found[False]


class _Key(NamedTuple):
    name: str  # dotted
    info: FieldInfo
    default: Any  # PydanticUndefined: none
    kind: str  # of the section it is in, if that is one of several


def _fields(cls: Any) -> dict[str, FieldInfo]:
    return cls.__pydantic_fields__


def _default(name: str, info: FieldInfo, owner: Any) -> Any:
    # From the owner *instance*, as a section may start from values other than its class's.
    return info.get_default(call_default_factory=True) if owner is None else getattr(owner, name)


def kinds_of(info: FieldInfo) -> Mapping[str, Any]:
    """Kind -> class of a section; "" is the kind of a plain one. Empty: not a section."""
    for mark in info.metadata:
        if isinstance(mark, OneOf):
            return mark.classes
    return {"": info.annotation} if dataclasses.is_dataclass(info.annotation) else {}


def walk_keys(cls: type, owner: Any = None, prefix: str = "", kind: str = "") -> Iterator[_Key]:
    """Every dotted key, those of sections and of each of their kinds included."""
    for name, info in _fields(cls).items():
        key, default, kinds = prefix + name, _default(name, info, owner), kinds_of(info)
        yield _Key(key, info, default, kind)
        if kinds and "" not in kinds:
            choice = cast(Any, Literal)[tuple(kinds)]
            about = FieldInfo(annotation=choice, description=info.description)
            yield _Key(f"{key}.kind", about, getattr(default, "kind", default), kind)
        for each, section in kinds.items():
            start = default if type(default) is section else None
            for below in walk_keys(section, start, f"{key}.", each or kind):
                if not each or below.name != f"{key}.kind":
                    yield below


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in values.items():
        section = isinstance(value, dict)
        flat |= _flat(value, f"{prefix}{name}.") if section else {prefix + name: value}
    return flat


@dataclasses.dataclass(frozen=True)
class _Builder:
    root: Any  # the whole config's class
    source: str  # of all values together

    def build(self, cls: Any, owner: Any, layers: Sequence[_Layer], prefix: str = "") -> Any:
        """A config of values from ``owner`` (None: the class's defaults), then from the layers."""
        fields = _fields(cls)
        given: dict[str, list[_Layer]] = {name: [] for name in fields}
        for source, values in layers:
            for key, value in values.items():
                name, _, rest = str(key).partition(".")
                if name not in fields or (rest and not kinds_of(fields[name])):
                    raise UserError(f"{source}: unknown key {self._hint(f'{prefix}{key}')}")
                given[name].append((source, {rest: value} if rest else value))
        arguments: dict[str, Any] = {}
        for name, info in fields.items():
            key, default = prefix + name, _default(name, info, owner)
            if kinds_of(info):
                arguments[name] = self._section(info, default, given[name], key)
            elif given[name]:
                if len(dict(given[name])) < len(given[name]):
                    raise UserError(f"{given[name][-1][0]}: key {key!r} is given twice")
                for source, value in given[name]:
                    arguments[name] = convert(value, info, f"{source}: {key!r}")
            elif default is PydanticUndefined:
                self._missing(key, in_words(info.annotation))
        try:
            return cls(**arguments) if owner is None else dataclasses.replace(owner, **arguments)
        except ValueError as error:  # from __post_init__: values that do not fit together
            detail = error.errors()[0]["msg"] if isinstance(error, ValidationError) else str(error)
            raise UserError(f"{self.source}: {detail.removeprefix('Value error, ')}") from error

    def _section(self, info: FieldInfo, default: Any, given: Sequence[_Layer], key: str) -> Any:
        # A section whose lines are all comments is empty.
        layers = [(source, value) for source, value in given if value not in (None, "")]
        for source, value in layers:
            if not isinstance(value, Mapping):
                example = next(k.name for k in walk_keys(self.root) if k.name.startswith(f"{key}."))
                right = f"set its keys, such as {example!r}"
                raise UserError(f"{source}: {key!r} is a section; {right}")
        kinds, cls = kinds_of(info), info.annotation
        owner = None if default is PydanticUndefined else default
        if "" not in kinds:
            cls, right = type(owner), f"one of {', '.join(kinds)}"
            for source, value in layers:
                if (kind := value.get("kind")) is not None:
                    if str(kind) not in kinds:
                        raise UserError(f"{source}: '{key}.kind' must be {right}, not {kind!r}")
                    cls = kinds[kind]
            if cls is types.NoneType:
                self._missing(f"{key}.kind", right)
            owner = owner if type(owner) is cls else None
            layers = [(s, {k: v for k, v in value.items() if k != "kind"}) for s, value in layers]
        return self.build(cls, owner, layers, f"{key}.")

    def _missing(self, key: str, right: str) -> NoReturn:
        raise UserError(f"{self.source}: key {key!r} is missing; it must be {right}")

    def _hint(self, key: str) -> str:
        known = {each.name: each for each in reversed([*walk_keys(self.root)])}
        if key in known:
            section, _, _ = key.rpartition(".")
            return f"{key!r}: only {section}.kind={known[key].kind} has it"
        near = difflib.get_close_matches(key, known, n=1)
        if not near:  # perhaps the section is wrong or missing, and only the name is right
            by_name = {name.rpartition(".")[2]: name for name in known}
            names = difflib.get_close_matches(key.rpartition(".")[2], by_name, n=1)
            near = [by_name[name] for name in names]
        if near:
            return f"{key!r} (did you mean {near[0]!r}?)"
        return f"{key!r} (known: {', '.join(_fields(self.root))})"
