"""Texts of configs: yaml in which no scalar gets a type from its looks, and values in words."""

import contextlib
import reprlib
import types
from pathlib import Path
from typing import Annotated, Any, Literal, Union, cast, get_args, get_origin

import yaml
from pydantic import ConfigDict, TypeAdapter, ValidationError
from pydantic.fields import FieldInfo

from pqvae.errors import UserError

STRICT = ConfigDict(strict=True, allow_inf_nan=False)
_BOOLS = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}
_NULLS = {"", "~", "null", "none"}
_TYPES: dict[Any, str] = {int: "a whole number", float: "a finite number", str: "text"}
_TYPES |= {bool: "true or false", types.NoneType: "null"}
_LISTS: dict[Any, str] = {int: "whole numbers, as in 1,2,3", str: "texts, as in a,b,c"}
_LISTS |= {float: "finite numbers, as in 0.5,1"}
_RANGES = {"ge": "at least {}", "gt": "above {}", "le": "at most {}", "lt": "below {}"}
_RANGES |= {"min_length": "at least {} long", "max_length": "at most {} long"}
_RANGES |= {"multiple_of": "a multiple of {}"}


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


class Dumper(yaml.SafeDumper):
    pass


Dumper.add_representer(
    list,
    lambda dumper, value: dumper.represent_sequence("tag:yaml.org,2002:seq", value, True),
)


def read_yaml(path: Path) -> dict[str, Any]:
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


def convert(value: Any, info: FieldInfo, where: str) -> Any:
    checked = cast(Any, Annotated)[(info.annotation, *(info.metadata or [None]))]
    candidate = _from_text(value, info.annotation)
    try:
        return TypeAdapter(checked, config=STRICT).validate_python(candidate)
    except ValidationError as error:
        first = error.errors()[0]
        limits = first.get("ctx", {})
        if first["type"] == "value_error":
            raise UserError(f"{where}: {limits['error']}") from error
        right = in_words(info.annotation)
        if _RANGES.keys() & limits.keys():
            right, value = range_in_words(info), first["input"]
        shown = "null" if value is None else reprlib.repr(value)  # cuts what is long
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


def in_words(kind: Any) -> str:
    origin, inner = get_origin(kind), get_args(kind)
    if origin is Annotated:
        return in_words(inner[0])
    if origin in (Union, types.UnionType):
        return " or ".join(in_words(arm) for arm in inner)
    if origin is Literal:
        return f"one of {', '.join(map(str, inner))}"
    if origin is tuple:
        item = get_args(inner[0])[0] if get_origin(inner[0]) is Annotated else inner[0]
        return f"a list of {_LISTS.get(item) or f'values, each {in_words(item)}'}"
    return _TYPES[kind]


def range_in_words(info: FieldInfo) -> str:
    marks = {
        name: as_typed(getattr(mark, name))
        for name in _RANGES
        for mark in info.metadata
        if hasattr(mark, name)
    }
    limits = []
    if marks.keys() >= {"ge", "le"}:
        limits.append(f"{marks.pop('ge')} to {marks.pop('le')}")
    limits += [_RANGES[name].format(limit) for name, limit in marks.items()]
    if get_origin(info.annotation) is tuple:
        each = range_in_words(FieldInfo.from_annotation(get_args(info.annotation)[0]))
        limits += [f"each {each}"] if each else []
    return " and ".join(limits)


def as_typed(value: Any) -> str:
    """The value as one would type it."""
    if isinstance(value, tuple):
        return ",".join(map(as_typed, value))
    if isinstance(value, bool):
        return str(value).lower()
    text = "null" if value is None else str(value)
    return text.removesuffix(".0") if isinstance(value, float) else text
