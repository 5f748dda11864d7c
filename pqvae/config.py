"""Configuration: frozen dataclasses, filled from a yaml file and ``key=value`` arguments.

Precedence is default < yaml < argument. Text becomes a value by the *type of its field*, never by
how it looks: yaml alone would read ``1e-4`` as a string and ``no`` as False.
"""

import dataclasses
import difflib
import math
import re
import types
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import (
    TYPE_CHECKING,
    Any,
    Literal,
    TypeGuard,
    TypeVar,
    Union,
    get_args,
    get_origin,
    get_type_hints,
)

import yaml

from pqvae.errors import UserError

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

T = TypeVar("T", bound="DataclassInstance")

FORM = "[file.yaml] [key=value ...]"
COMMAND_LINE = "command line"

_OVERRIDE = re.compile(r"[A-Za-z_]\w*(\.\w+)*=", re.ASCII)
_BOOLS = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}
_NULLS = {"", "~", "null", "none"}


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
        cls: A dataclass; its fields may be dataclasses again.
        path: A yaml file that holds differences from the defaults, or None.
        overrides: ``dotted.key=value``, later ones win.

    Raises:
        UserError: The file cannot be read, or a key or a value does not fit.
    """
    changes: dict[str, Any] = {}
    sources: list[str] = []
    if path is not None:
        sources.append(str(path))
        changes.update(_converted(cls, _read_yaml_file(Path(path)), str(path)))
    if overrides:
        sources.append(COMMAND_LINE)
    for override in overrides:
        if not _OVERRIDE.match(override):
            raise UserError(f"{COMMAND_LINE}: {override!r} is not of the form key=value")
        key, _, text = override.partition("=")
        changes.update(_converted(cls, {key: text}, COMMAND_LINE))
    return _build(cls, changes, " with the ".join(sources) or "defaults")


def config_from_dict(cls: type[T], values: Mapping[str, Any], source: str) -> T:
    """Build a config from nested plain values, such as ``config_to_dict`` gives.

    Args:
        cls: A dataclass; its fields may be dataclasses again.
        values: Field name (or dotted key) to value; what is missing keeps its default.
        source: What the values came from; error messages start with it.

    Raises:
        UserError: A key or a value does not fit.
    """
    return _build(cls, _converted(cls, values, source), source)


def config_to_dict(config: "DataclassInstance") -> dict[str, Any]:
    """The config as nested plain values, for yaml or json: tuples become lists."""
    plain: dict[str, Any] = {}
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            value = config_to_dict(value)
        plain[field.name] = list(value) if isinstance(value, tuple) else value
    return plain


def config_to_yaml(config: "DataclassInstance") -> str:
    """The whole config, defaults included, as a yaml text that ``load_config`` reads back."""
    return yaml.dump(config_to_dict(config), Dumper=_Dumper, sort_keys=False, allow_unicode=True)


def changed_keys(a: "DataclassInstance", b: "DataclassInstance") -> list[str]:
    """Dotted keys whose values differ between two configs, or that only one of them has."""
    left, right = _flat(config_to_dict(a)), _flat(config_to_dict(b))
    missing = object()
    keys = [*left, *(key for key in right if key not in left)]
    return [key for key in keys if left.get(key, missing) != right.get(key, missing)]


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


def _read_yaml(text: str, source: str) -> Any:
    try:
        return yaml.load(text, _Loader)
    except yaml.MarkedYAMLError as error:
        line = f"line {error.problem_mark.line + 1}: " if error.problem_mark else ""
        raise UserError(f"{source}: not valid yaml: {line}{error.problem}") from error
    except (yaml.YAMLError, RecursionError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"{source}: not valid yaml: {reason}") from error


def _read_yaml_file(path: Path) -> Mapping[str, Any]:
    try:
        text = path.read_text(encoding="utf-8")
    except (FileNotFoundError, NotADirectoryError) as error:
        raise UserError(f"{path}: no such config file") from error
    except IsADirectoryError as error:
        raise UserError(f"{path}: is a folder; a yaml file is needed") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not a text file; a yaml file is needed") from error
    values = _read_yaml(text, str(path))
    if values is None:  # nothing but comments: the defaults
        return {}
    if not isinstance(values, dict):
        raise UserError(f"{path}: must hold 'key: value' lines, not a {_kind(values)}")
    return values


def _kind(value: Any) -> str:
    return "list" if isinstance(value, list) else "single value"


def _field_types(cls: type["DataclassInstance"]) -> dict[str, Any]:
    hints = get_type_hints(cls)
    return {field.name: hints[field.name] for field in dataclasses.fields(cls)}


def _is_section(kind: Any) -> TypeGuard["type[DataclassInstance]"]:
    return isinstance(kind, type) and dataclasses.is_dataclass(kind)


def _schema(cls: type["DataclassInstance"], prefix: str = "") -> dict[str, Any]:
    """Every dotted key with its type, sections (fields of dataclass type) included."""
    schema: dict[str, Any] = {}
    for name, kind in _field_types(cls).items():
        schema[prefix + name] = kind
        if _is_section(kind):
            schema.update(_schema(kind, f"{prefix}{name}."))
    return schema


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, dict):
            flat.update(_flat(value, f"{prefix}{name}."))
        else:
            flat[prefix + name] = value
    return flat


def _converted(
    cls: type["DataclassInstance"], values: Mapping[str, Any], source: str
) -> dict[str, Any]:
    """Nested values as dotted key -> value of the field's type."""
    schema = _schema(cls)
    changes: dict[str, Any] = {}

    def visit(values: Mapping[str, Any], prefix: str) -> None:
        for name, value in values.items():
            key = f"{prefix}{name}"
            if key not in schema:
                raise UserError(f"{source}: unknown key {key!r}{_suggestion(key, schema)}")
            if _is_section(schema[key]):
                if isinstance(value, Mapping):
                    visit(value, f"{key}.")
                elif value not in (None, ""):  # a section whose lines are all comments is empty
                    example = next((k for k in schema if k.startswith(f"{key}.")), key)
                    raise UserError(
                        f"{source}: {key!r} is a section; set its keys, such as {example!r}"
                    )
            elif key in changes:
                raise UserError(f"{source}: key {key!r} is given twice")
            else:
                changes[key] = _convert(value, schema[key], key, source)

    visit(values, "")
    return changes


def _suggestion(key: str, schema: dict[str, Any]) -> str:
    near = difflib.get_close_matches(key, schema, n=1)
    if not near:  # perhaps the section is wrong or missing, and only the name is right
        by_name = {known.rpartition(".")[2]: known for known in reversed(schema)}
        near = [
            by_name[name] for name in difflib.get_close_matches(key.rpartition(".")[2], by_name, 1)
        ]
    if near:
        return f" (did you mean {near[0]!r}?)"
    return f" (known: {', '.join(known for known in schema if '.' not in known)})"


def _build(
    cls: type[T],
    changes: Mapping[str, Any],
    source: str,
    prefix: str = "",
    default: T | None = None,
) -> T:
    arguments: dict[str, Any] = {}
    for field in dataclasses.fields(cls):
        key, kind = prefix + field.name, _field_types(cls)[field.name]
        if _is_section(kind):
            section = getattr(default, field.name) if default is not None else _default(field)
            arguments[field.name] = _build(kind, changes, source, f"{key}.", section)
        elif key in changes:
            arguments[field.name] = changes[key]
        elif default is None and _required(field):
            raise UserError(f"{source}: key {key!r} is missing; it must be {_expected(kind)}")
    try:
        # From the default *instance*, as a section may start from values other than its class's.
        return (
            dataclasses.replace(default, **arguments) if default is not None else cls(**arguments)
        )
    except ValueError as error:  # from __post_init__: values that do not fit together
        raise UserError(f"{source}: {error}") from error


def _required(field: "dataclasses.Field[Any]") -> bool:
    return field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING


def _default(field: "dataclasses.Field[Any]") -> Any:
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return None if field.default is dataclasses.MISSING else field.default


def _convert(value: Any, kind: Any, key: str, source: str) -> Any:
    try:
        return _convert_value(value, kind)
    except (ValueError, OverflowError) as error:
        shown = "null" if value is None else repr(value)
        raise UserError(f"{source}: {key!r} must be {_expected(kind)}, not {shown}") from error


def _convert_value(value: Any, kind: Any) -> Any:
    """The value as the type ``kind``; a bare ValueError says that it does not fit."""
    if (inner := _optional(kind)) is not None:
        if value is None or (isinstance(value, str) and value.lower() in _NULLS):
            return None
        return _convert_value(value, inner)
    if get_origin(kind) is tuple:
        items = _split(value) if isinstance(value, str) else value
        if not isinstance(items, list | tuple):
            items = [items]
        return tuple(_convert_value(item, get_args(kind)[0]) for item in items)
    if get_origin(kind) is Literal:
        for option in get_args(kind):
            if value == str(option) or (value == option and type(value) is type(option)):
                return option
        raise ValueError
    if kind is bool and isinstance(value, str):
        value = _BOOLS.get(value.lower())
    if kind is bool or kind is str:
        if isinstance(value, kind):
            return value
        raise ValueError
    if kind is int or kind is float:
        return _number(value, kind)
    raise TypeError(f"config fields cannot have the type {kind}")


def _optional(kind: Any) -> Any:
    """X of ``X | None``; None for any other type."""
    if get_origin(kind) in (Union, types.UnionType):
        inner = [arm for arm in get_args(kind) if arm is not types.NoneType]
        if len(inner) == 1:
            return inner[0]
    return None


def _split(text: str) -> list[Any]:
    text = text.strip()
    if text.startswith("["):
        try:
            return _read_yaml(text, "")
        except UserError as error:
            raise ValueError from error
    return [item.strip() for item in text.split(",")] if text else []


def _number(value: Any, kind: type[int] | type[float]) -> int | float:
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise ValueError
    if kind is int and isinstance(value, str):
        try:
            return int(value)
        except ValueError:
            pass  # "1e3" and "3.0" are whole numbers too
    number = float(value)
    if not math.isfinite(number) or (kind is int and not number.is_integer()):
        raise ValueError
    return int(value) if kind is int and isinstance(value, int) else kind(number)


def _expected(kind: Any) -> str:
    """What a value of this type looks like, for error messages."""
    if (inner := _optional(kind)) is not None:
        return f"{_expected(inner)} or null"
    if get_origin(kind) is tuple:
        items = {int: "whole numbers, as in 1,2,3", float: "finite numbers, as in 0.5,1"}
        return f"a list of {items.get(get_args(kind)[0], 'texts, as in a,b,c')}"
    if get_origin(kind) is Literal:
        return f"one of {', '.join(str(option) for option in get_args(kind))}"
    names = {int: "a whole number", float: "a finite number", bool: "true or false", str: "text"}
    return names[kind]
