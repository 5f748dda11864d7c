"""Configuration: frozen dataclasses, filled from a yaml file and ``key=value`` arguments.

Precedence is default < yaml < argument. Text becomes a value by the *type of its field*, never by
how it looks: yaml alone would read ``1e-4`` as a string and ``no`` as False. Pydantic then checks
type and range, as it does for a config made in Python.
"""

import contextlib
import dataclasses
import difflib
import itertools
import re
import textwrap
import types
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import (
    TYPE_CHECKING,
    Annotated,
    Any,
    Literal,
    NamedTuple,
    TypeVar,
    Union,
    dataclass_transform,
    get_args,
    get_origin,
)

import pydantic.dataclasses
import pydantic_core
import yaml
from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from pqvae.errors import UserError

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

C = TypeVar("C")
T = TypeVar("T", bound="DataclassInstance")

FORM = "[file.yaml] [key=value ...]"
COMMAND_LINE = "command line"
HARMLESS = "harmless"  # in Annotated: a run stays the same run, whatever this field's value

_STRICT = ConfigDict(strict=True, allow_inf_nan=False)
_OVERRIDE = re.compile(r"[A-Za-z_]\w*(\.\w+)*=", re.ASCII)
_BOOLS = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}
_NULLS = {"", "~", "null", "none"}
_TYPES: dict[Any, str] = {
    int: "a whole number",
    float: "a finite number",
    bool: "true or false",
    str: "text",
    types.NoneType: "null",
}
_LISTS = {
    "a whole number": "whole numbers, as in 1,2,3",
    "a finite number": "finite numbers, as in 0.5,1",
    "text": "texts, as in a,b,c",
}
_LIMITS = {
    "ge": "at least {}",
    "gt": "above {}",
    "le": "at most {}",
    "lt": "below {}",
    "multiple_of": "a multiple of {}",
    "min_length": "at least {} long",
    "max_length": "at most {} long",
}


@dataclass_transform(
    frozen_default=True, kw_only_default=True, field_specifiers=(dataclasses.field, Field)
)
def config_class(cls: type[C]) -> type[C]:
    """Make a class a config: a frozen dataclass that refuses values of wrong type or range."""
    config = ConfigDict(extra="forbid", validate_default=True, **_STRICT)
    return pydantic.dataclasses.dataclass(frozen=True, kw_only=True, slots=True, config=config)(cls)


@dataclasses.dataclass(frozen=True)
class OneOf:
    """In Annotated: the section is of one of these config classes, told apart by ``kind``."""

    classes: Mapping[str, type]  # read at each use, so that entries may be added


class KeyDescription(NamedTuple):
    """One dotted key that a user may set; all in words."""

    key: str
    default: str | None  # as it would be typed; None: the key must be given
    description: str
    type: str
    range: str  # empty: any value of the type
    kind: str  # the kinds of its section that have the key so; empty: all


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
    layers = [] if path is None else [(str(path), _read_yaml(Path(path)))]
    for override in overrides:
        if not _OVERRIDE.match(override):
            raise UserError(f"{COMMAND_LINE}: {override!r} is not of the form key=value")
    if overrides:
        layers.append((COMMAND_LINE, dict(override.split("=", 1) for override in overrides)))
    return _build(cls, layers)


def config_from_dict(cls: type[T], values: Mapping[str, Any], source: str) -> T:
    """Build a config from nested plain values, such as ``config_to_dict`` gives.

    Args:
        cls: A config class; its fields may be config classes again.
        values: Field name (or dotted key) to value; what is missing keeps its default.
        source: What the values came from; error messages start with it.

    Raises:
        UserError: A key or a value does not fit.
    """
    return _build(cls, [(source, values)])


def config_to_dict(config: "DataclassInstance") -> dict[str, Any]:
    """The config as nested plain values, for yaml or json: tuples become lists."""
    return pydantic_core.to_jsonable_python(config, serialize_as_any=True)


def config_to_yaml(config: "DataclassInstance") -> str:
    """The whole config, defaults included, as a yaml text that ``load_config`` reads back."""
    return yaml.dump(config_to_dict(config), Dumper=_Dumper, sort_keys=False, allow_unicode=True)


def changed_keys(a: "DataclassInstance", b: "DataclassInstance") -> list[str]:
    """Dotted keys whose values differ between two configs, or that only one of them has."""
    left, right = _flat(config_to_dict(a)), _flat(config_to_dict(b))
    missing = object()
    return [key for key in left | right if left.get(key, missing) != right.get(key, missing)]


def identity_changes(a: "DataclassInstance", b: "DataclassInstance") -> list[str]:
    """The changed keys that make ``b`` another run than ``a``: those not marked HARMLESS."""
    keys = [key for config in (a, b) for key in _walk(type(config))]
    harmless = {key.name for key in keys if HARMLESS in key.info.metadata}
    harmless -= {key.name for key in keys if HARMLESS not in key.info.metadata}
    return [key for key in changed_keys(a, b) if key not in harmless]


def describe_keys(cls: type["DataclassInstance"]) -> list[KeyDescription]:
    """Every key that may be set: once, unless the kinds of its section differ in it."""
    kinds: dict[KeyDescription, list[str]] = {}
    kinds_of_section: dict[str, set[str]] = {}
    for name, info, default, kind, sections in _walk(cls):
        if not sections:
            shown = None if default is PydanticUndefined else _typed(default)
            words, limits = _in_words(info.annotation), _limits(info)
            row = KeyDescription(name, shown, info.description or "", words, limits, "")
            kinds.setdefault(row, []).append(kind)
            kinds_of_section.setdefault(_section(row), {""}).add(kind)
    return [
        row._replace(kind=", ".join(have)) if kinds_of_section[_section(row)] - {"", *have} else row
        for row, have in kinds.items()
    ]


def format_keys(keys: Sequence[KeyDescription]) -> str:
    """Lines of at most 100 columns, by section: ``key=default``, what it means, what may be given."""
    lines: list[str] = []
    for (section, kind), group in itertools.groupby(keys, lambda key: (_section(key), key.kind)):
        lines += ["", f"{section or 'top level'}{kind and f' (kind={kind})'}:"]
        for key in group:
            left = f"  {key.key}" + (" (required)" if key.default is None else f"={key.default}")
            about = f"{key.description} ({', '.join(filter(None, key[3:5]))})".strip()
            right = textwrap.wrap(about, 60, break_on_hyphens=False)
            if len(left) > 38:
                right.insert(0, "")
            lines += [
                f"{a:40}{b}".rstrip() for a, b in itertools.zip_longest([left], right, fillvalue="")
            ]
    return "\n".join(lines[1:]) + "\n"


class _Loader(yaml.SafeLoader):
    # No scalar gets a type from its looks: all arrive as text, and the field's type decides.
    yaml_implicit_resolvers = {}

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:  # yaml itself would silently keep the last
            if isinstance(key, yaml.ScalarNode):
                if key.value in seen:
                    problem = f"key {key.value!r} is given twice"
                    raise yaml.MarkedYAMLError(problem=problem, problem_mark=key.start_mark)
                seen.add(key.value)
        return super().construct_mapping(node, deep)


class _Dumper(yaml.SafeDumper):
    pass


_Dumper.add_representer(
    list,
    lambda dumper, value: dumper.represent_sequence("tag:yaml.org,2002:seq", value, True),
)


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        values = yaml.load(path.read_text(encoding="utf-8"), _Loader)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise UserError(f"{path}: no such config file") from error
    except IsADirectoryError as error:
        raise UserError(f"{path}: is a folder; a yaml file is needed") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not a text file; a yaml file is needed") from error
    except yaml.MarkedYAMLError as error:
        line = f"line {error.problem_mark.line + 1}: " if error.problem_mark else ""
        raise UserError(f"{path}: not valid yaml: {line}{error.problem}") from error
    except (yaml.YAMLError, RecursionError) as error:
        raise UserError(f"{path}: not valid yaml: {str(error).splitlines()[0]}") from error
    if values is not None and not isinstance(values, dict):
        kind = "list" if isinstance(values, list) else "single value"
        raise UserError(f"{path}: must hold 'key: value' lines, not a {kind}")
    return values or {}  # nothing but comments: the defaults


class _Key(NamedTuple):
    name: str  # dotted
    info: FieldInfo
    default: Any  # PydanticUndefined: none
    kind: str  # of the section it is in, if that is one of several
    sections: dict[str, tuple[type, Any]]  # kind -> class and default; "" for the only kind


def _fields(cls: type, owner: Any) -> Iterator[tuple[str, FieldInfo, Any, dict[str, Any]]]:
    """Name, field, default, and kind -> (class, default) of sections; see _Key."""
    if not hasattr(cls, "__pydantic_fields__"):  # a plain dataclass
        cls = pydantic.dataclasses.dataclass(frozen=True)(cls)
    for name, info in cls.__pydantic_fields__.items():
        # From the owner *instance*, as a section may start from values other than its class's.
        default = getattr(owner, name) if owner else info.get_default(call_default_factory=True)
        start = default if dataclasses.is_dataclass(default) else None
        one_of = next((mark for mark in info.metadata if isinstance(mark, OneOf)), None)
        sections: dict[str, Any] = {}
        if one_of is not None:
            for kind, section in one_of.classes.items():
                sections[kind] = (section, start if type(start) is section else None)
        elif dataclasses.is_dataclass(info.annotation):
            sections[""] = (info.annotation, start)
        yield name, info, default, sections


def _walk(cls: type, owner: Any = None, prefix: str = "", kind: str = "") -> Iterator[_Key]:
    """Every dotted key, those of sections and of each of their kinds included."""
    for name, info, default, sections in _fields(cls, owner):
        key = prefix + name
        yield _Key(key, info, default, kind, sections)
        if sections and "" not in sections:
            which = FieldInfo(annotation=Literal[tuple(sections)], description="what kind it is")
            yield _Key(f"{key}.kind", which, getattr(default, "kind", default), kind, {})
        for section_kind, (section, start) in sections.items():
            for below in _walk(section, start, f"{key}.", section_kind or kind):
                if not section_kind or below.name != f"{key}.kind":
                    yield below


def _section(row: KeyDescription) -> str:
    return row.key.rpartition(".")[0]


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in values.items():
        section = isinstance(value, dict)
        flat |= _flat(value, f"{prefix}{name}.") if section else {prefix + name: value}
    return flat


def _build(cls: type[T], layers: Sequence[tuple[str, Mapping[str, Any]]]) -> T:
    known = {key.name: bool(key.sections) for key in _walk(cls)}
    given: dict[str, list[tuple[str, Any]]] = {}
    for source, values in layers:
        seen: set[str] = set()
        for key, value in _flatten(values, known, source):
            if key in seen:
                raise UserError(f"{source}: key {key!r} is given twice")
            seen.add(key)
            given.setdefault(key, []).append((source, value))
    source = " with the ".join(source for source, _ in layers) or "defaults"
    return _make(cls, None, given, source)


def _flatten(
    values: Mapping[str, Any], known: Mapping[str, bool], source: str, prefix: str = ""
) -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        key = f"{prefix}{name}"
        if key not in known:
            raise UserError(f"{source}: unknown key {key!r} ({_suggestion(key, known)})")
        if not known[key]:
            yield key, value
        elif isinstance(value, Mapping):
            yield from _flatten(value, known, source, f"{key}.")
        elif value not in (None, ""):  # a section whose lines are all comments is empty
            example = next((each for each in known if each.startswith(f"{key}.")), key)
            raise UserError(f"{source}: {key!r} is a section; set its keys, such as {example!r}")


def _suggestion(key: str, known: Mapping[str, bool]) -> str:
    near = difflib.get_close_matches(key, known, n=1)
    if not near:  # perhaps the section is wrong or missing, and only the name is right
        by_name = {each.rpartition(".")[2]: each for each in reversed([*known])}
        names = difflib.get_close_matches(key.rpartition(".")[2], by_name, n=1)
        near = [by_name[name] for name in names]
    if near:
        return f"did you mean {near[0]!r}?"
    return f"known: {', '.join(each for each in known if '.' not in each)}"


def _make(cls: type[T], owner: T | None, given: dict[str, Any], source: str, prefix: str = "") -> T:
    arguments: dict[str, Any] = {}
    for name, info, default, sections in _fields(cls, owner):
        key = prefix + name
        if sections:
            section, start = _choose(key, default, sections, given, source)
            arguments[name] = _make(section, start, given, source, f"{key}.")
        elif key in given:
            for origin, value in given[key]:
                arguments[name] = _convert(value, info, key, origin)
        elif default is PydanticUndefined:
            words = _in_words(info.annotation)
            raise UserError(f"{source}: key {key!r} is missing; it must be {words}")
    try:
        return dataclasses.replace(owner, **arguments) if owner else cls(**arguments)
    except ValueError as error:  # from __post_init__: values that do not fit together
        if isinstance(error, ValidationError):
            message = error.errors()[0]["msg"].removeprefix("Value error, ")
        else:
            message = str(error)
        raise UserError(f"{source}: {message}") from error


def _choose(
    key: str, default: Any, sections: dict[str, Any], given: dict[str, Any], source: str
) -> tuple[type, Any]:
    """The class of a section, and the values it starts from."""
    if "" in sections:
        return sections[""]
    kind = getattr(default, "kind", None)
    for origin, kind in given.pop(f"{key}.kind", []):
        if str(kind) not in sections:
            options = ", ".join(sections)
            raise UserError(f"{origin}: '{key}.kind' must be one of {options}, not {kind!r}")
    if kind is None:
        words = f"one of {', '.join(sections)}"
        raise UserError(f"{source}: key '{key}.kind' is missing; it must be {words}")
    section, start = sections.get(kind, (type(default), default))
    names = {name for name, *_ in _fields(section, start)}
    for other, entries in given.items():
        if other.startswith(f"{key}.") and other[len(key) + 1 :].split(".")[0] not in names:
            raise UserError(f"{entries[0][0]}: unknown key {other!r} of {key}.kind={kind}")
    return section, start


def _convert(value: Any, info: FieldInfo, key: str, source: str) -> Any:
    candidate = _from_text(value, info.annotation)
    try:
        return TypeAdapter(Annotated[info.annotation, info], config=_STRICT).validate_python(
            candidate
        )
    except ValidationError as error:
        first = error.errors()[0]
        if first["type"] == "value_error":
            raise UserError(f"{source}: {key!r}: {first['ctx']['error']}") from error
        right = _in_words(info.annotation)
        if limits := _limits_in_words(first.get("ctx", {})):
            right, value = f"{limits}{' each' if first['loc'] else ''}", first["input"]
        shown = "null" if value is None else repr(value)
        raise UserError(f"{source}: {key!r} must be {right}, not {shown}") from error


def _from_text(value: Any, kind: Any) -> Any:
    """Text as its field's type reads it; what does not fit stays, for pydantic to refuse."""
    origin, inner = get_origin(kind), get_args(kind)
    if origin is Annotated:
        return _from_text(value, inner[0])
    if origin in (Union, types.UnionType):
        if value is None or (isinstance(value, str) and value.lower() in _NULLS):
            return None
        return _from_text(value, next(arm for arm in inner if arm is not types.NoneType))
    if origin is tuple:
        items = _split(value) if isinstance(value, str) else value
        if isinstance(items, str):
            return items
        items = items if isinstance(items, list | tuple) else [items]
        return tuple(_from_text(item, inner[0]) for item in items)
    if isinstance(value, str) and origin is Literal:
        return next((option for option in inner if str(option) == value), value)
    if isinstance(value, str) and kind is bool:
        return _BOOLS.get(value.lower(), value)
    if isinstance(value, str | float) and kind in (int, float):
        with contextlib.suppress(ValueError):
            if kind is int and isinstance(value, str):
                return int(value)  # a float would lose the last digits
        with contextlib.suppress(ValueError):
            number = float(value)  # "1e3" and "3.0" are whole numbers too
            return int(number) if kind is int and number.is_integer() else number
    return value


def _split(text: str) -> Any:
    if text.strip().startswith("["):
        with contextlib.suppress(yaml.YAMLError):
            return yaml.load(text, _Loader)
        return text
    return [item.strip() for item in text.split(",")] if text.strip() else []


def _in_words(kind: Any) -> str:
    """What a value of this type looks like."""
    origin, inner = get_origin(kind), get_args(kind)
    if origin is Annotated:
        return _in_words(inner[0])
    if origin in (Union, types.UnionType):
        return " or ".join(_in_words(arm) for arm in inner)
    if origin is Literal:
        return f"one of {', '.join(str(option) for option in inner)}"
    if origin is tuple:
        item = _in_words(inner[0])
        return f"a list of {_LISTS.get(item, f'values, each {item}')}"
    return _TYPES[kind]


def _limits(info: FieldInfo) -> str:
    found = {name: getattr(mark, name, None) for mark in info.metadata for name in _LIMITS}
    limits = _limits_in_words({name: value for name, value in found.items() if value is not None})
    if get_origin(info.annotation) is tuple:
        each = _limits(FieldInfo.from_annotation(get_args(info.annotation)[0]))
        limits = ", ".join(filter(None, (limits, each and f"each {each}")))
    return limits


def _limits_in_words(limits: Mapping[str, Any]) -> str:
    return " and ".join(
        words.format(_typed(limits[name])) for name, words in _LIMITS.items() if name in limits
    )


def _typed(value: Any) -> str:
    """The value as one would type it."""
    if isinstance(value, tuple):
        return ",".join(map(_typed, value))
    if isinstance(value, bool) or value is None:
        return "null" if value is None else str(value).lower()
    return str(value).removesuffix(".0") if isinstance(value, float) else str(value)
