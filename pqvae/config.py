"""Configuration: frozen dataclasses, filled from a yaml file and ``key=value`` arguments.

Precedence is default < yaml < argument. Text becomes a value by the *type of its field*, never by
how it looks: yaml alone would read ``1e-4`` as a string and ``no`` as False. Pydantic then checks
type and range, as it does for a config made in Python.
"""

import contextlib
import dataclasses
import difflib
import functools
import itertools
import json
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
    NoReturn,
    TypeVar,
    Union,
    cast,
    dataclass_transform,
    get_args,
    get_origin,
)

import pydantic.dataclasses
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

_Layer = tuple[str, Any]  # source, values
_STRICT = ConfigDict(strict=True, allow_inf_nan=False)
_OVERRIDE = re.compile(r"[A-Za-z_]\w*(\.\w+)*=", re.ASCII)
_BOOLS = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}
_NULLS = {"", "~", "null", "none"}
_TYPES: dict[Any, str] = {int: "a whole number", float: "a finite number", str: "text"}
_TYPES |= {bool: "true or false", types.NoneType: "null"}
_LISTS: dict[Any, str] = {int: "whole numbers, as in 1,2,3", str: "texts, as in a,b,c"}
_LISTS |= {float: "finite numbers, as in 0.5,1"}
_RANGES = {"ge": "at least {}", "gt": "above {}", "le": "at most {}", "lt": "below {}"}
_RANGES |= {"min_length": "at least {} long", "max_length": "at most {} long"}
_RANGES |= {"multiple_of": "a multiple of {}"}


@dataclass_transform(
    frozen_default=True, kw_only_default=True, field_specifiers=(dataclasses.field, Field)
)
def config_class(cls: type[C]) -> type[C]:
    """Make a class a config: a frozen dataclass that refuses values of wrong type or range.

    Fields are written ``steps: int = Field(default=2000, ge=1, description="optimizer steps")``,
    with ``default=``, as type checkers take any other first argument for a required field. A field
    of another config class is a section; it may start from other values than its class's.
    """
    config = ConfigDict(extra="forbid", validate_default=True, **_STRICT)
    decorate: Any = pydantic.dataclasses.dataclass
    return decorate(frozen=True, kw_only=True, slots=True, config=config)(cls)


@dataclasses.dataclass(frozen=True)
class OneOf:
    """In Annotated: the section is of one of these config classes, told apart by ``kind``."""

    classes: Mapping[str, type]  # kind -> class; read at each use, so that entries may be added


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


def describe_keys(cls: type) -> list[KeyDescription]:
    """Every key that may be set: once, unless the kinds of its section differ in it."""
    having: dict[KeyDescription, list[str]] = {}
    kinds: dict[str, set[str]] = {}  # of each section
    for name, info, default, kind in _walk(cls):
        if not _kinds(info):
            typed = None if default is PydanticUndefined else _typed(default)
            about, words = info.description or "", _in_words(info.annotation)
            row = KeyDescription(name, typed, about, words, _range(info), "")
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


@functools.cache
def _fields(cls: Any) -> dict[str, FieldInfo]:
    if not hasattr(cls, "__pydantic_fields__"):  # a plain dataclass
        cls = pydantic.dataclasses.dataclass(frozen=True)(cls)
    return cls.__pydantic_fields__


def _default(name: str, info: FieldInfo, owner: Any) -> Any:
    # From the owner *instance*, as a section may start from values other than its class's.
    return info.get_default(call_default_factory=True) if owner is None else getattr(owner, name)


def _kinds(info: FieldInfo) -> Mapping[str, Any]:
    """Kind -> class of a section; "" is the kind of a plain one. Empty: not a section."""
    for mark in info.metadata:
        if isinstance(mark, OneOf):
            return mark.classes
    return {"": info.annotation} if dataclasses.is_dataclass(info.annotation) else {}


def _walk(cls: type, owner: Any = None, prefix: str = "", kind: str = "") -> Iterator[_Key]:
    """Every dotted key, those of sections and of each of their kinds included."""
    for name, info in _fields(cls).items():
        key, default, kinds = prefix + name, _default(name, info, owner), _kinds(info)
        yield _Key(key, info, default, kind)
        if kinds and "" not in kinds:
            choice = cast(Any, Literal)[tuple(kinds)]
            about = FieldInfo(annotation=choice, description=info.description)
            yield _Key(f"{key}.kind", about, getattr(default, "kind", default), kind)
        for each, section in kinds.items():
            start = default if type(default) is section else None
            for below in _walk(section, start, f"{key}.", each or kind):
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
                if name not in fields or (rest and not _kinds(fields[name])):
                    raise UserError(f"{source}: unknown key {self._hint(f'{prefix}{key}')}")
                given[name].append((source, {rest: value} if rest else value))
        arguments: dict[str, Any] = {}
        for name, info in fields.items():
            key, default = prefix + name, _default(name, info, owner)
            if _kinds(info):
                arguments[name] = self._section(info, default, given[name], key)
            elif given[name]:
                if len(dict(given[name])) < len(given[name]):
                    raise UserError(f"{given[name][-1][0]}: key {key!r} is given twice")
                for source, value in given[name]:
                    arguments[name] = _convert(value, info, f"{source}: {key!r}")
            elif default is PydanticUndefined:
                self._missing(key, _in_words(info.annotation))
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
                example = next(k.name for k in _walk(self.root) if k.name.startswith(f"{key}."))
                right = f"set its keys, such as {example!r}"
                raise UserError(f"{source}: {key!r} is a section; {right}")
        kinds, cls = _kinds(info), info.annotation
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
        known = {each.name: each for each in reversed([*_walk(self.root)])}
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


def _convert(value: Any, info: FieldInfo, where: str) -> Any:
    checked = cast(Any, Annotated)[(info.annotation, *(info.metadata or [None]))]
    candidate = _from_text(value, info.annotation)
    try:
        return TypeAdapter(checked, config=_STRICT).validate_python(candidate)
    except ValidationError as error:
        first = error.errors()[0]
        limits = first.get("ctx", {})
        if first["type"] == "value_error":
            raise UserError(f"{where}: {limits['error']}") from error
        right = _in_words(info.annotation)
        if _RANGES.keys() & limits.keys():
            right, value = _range(info), first["input"]
        shown = "null" if value is None else repr(value)
        raise UserError(f"{where} must be {right}, not {shown}") from error


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
        if not isinstance(items, list | tuple | str):
            items = [items]
        return items if isinstance(items, str) else tuple(_from_text(i, inner[0]) for i in items)
    if not isinstance(value, str):
        return int(value) if kind is int and isinstance(value, float) and value % 1 == 0 else value
    if origin is Literal:
        return next((option for option in inner if str(option) == value), value)
    if kind is bool:
        return _BOOLS.get(value.lower(), value)
    if kind in (int, float):
        with contextlib.suppress(ValueError):
            return kind(value)
        with contextlib.suppress(ValueError):  # "1e3" and "3.0" are whole numbers too
            return _from_text(float(value), kind)
    return value


def _split(text: str) -> Any:
    if not text.strip().startswith("["):
        return [item.strip() for item in text.split(",")] if text.strip() else []
    with contextlib.suppress(yaml.YAMLError, RecursionError):
        return yaml.load(text, _Loader)
    return text


def _in_words(kind: Any) -> str:
    origin, inner = get_origin(kind), get_args(kind)
    if origin is Annotated:
        return _in_words(inner[0])
    if origin in (Union, types.UnionType):
        return " or ".join(_in_words(arm) for arm in inner)
    if origin is Literal:
        return f"one of {', '.join(map(str, inner))}"
    if origin is tuple:
        item = get_args(inner[0])[0] if get_origin(inner[0]) is Annotated else inner[0]
        return f"a list of {_LISTS.get(item) or f'values, each {_in_words(item)}'}"
    return _TYPES[kind]


def _range(info: FieldInfo) -> str:
    limits = [
        words.format(_typed(getattr(mark, name)))
        for name, words in _RANGES.items()
        for mark in info.metadata
        if hasattr(mark, name)
    ]
    if get_origin(info.annotation) is tuple:
        each = _range(FieldInfo.from_annotation(get_args(info.annotation)[0]))
        limits += [f"each {each}"] if each else []
    return " and ".join(limits)


def _typed(value: Any) -> str:
    """The value as one would type it."""
    if isinstance(value, tuple):
        return ",".join(map(_typed, value))
    if isinstance(value, bool):
        return str(value).lower()
    text = "null" if value is None else str(value)
    return text.removesuffix(".0") if isinstance(value, float) else text
