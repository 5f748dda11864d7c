"""Configuration: conversion by field type, precedence, round trips, and every error message."""

import json
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import pytest

from pqvae.config import (
    changed_keys,
    config_from_dict,
    config_to_dict,
    config_to_yaml,
    load_config,
    parse_config_arguments,
)
from pqvae.errors import UserError


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainerConfig:
    steps: int = 100
    learning_rate: float = 1e-3
    betas: tuple[float, ...] = (0.9, 0.95)
    warmup: int | None = None

    def __post_init__(self) -> None:
        if self.warmup is not None and self.warmup > self.steps:
            raise ValueError(f"trainer.warmup={self.warmup} is over trainer.steps={self.steps}")


@dataclass(frozen=True, kw_only=True, slots=True)
class Config:
    trainer: TrainerConfig = field(default_factory=lambda: TrainerConfig(steps=500))
    name: str = "run"
    note: str | None = None
    widths: tuple[int, ...] = (32, 64)
    classes: tuple[str, ...] = ()
    precision: Literal["auto", "bf16", "float32"] = "auto"
    flip: bool = True


@dataclass(frozen=True)
class Needy:
    size: int


def write(folder: Path, text: str) -> Path:
    path = folder / "config.yaml"
    path.write_text(text)
    return path


def set_to(key: str, text: str) -> Any:
    config: Any = load_config(Config, None, [f"{key}={text}"])
    for name in key.split("."):
        config = getattr(config, name)
    return config


def test_no_file_and_no_overrides_give_the_defaults() -> None:
    assert load_config(Config, None, []) == Config()


def test_override_beats_yaml_beats_default_and_the_last_override_wins(tmp_path: Path) -> None:
    path = write(tmp_path, "trainer: {steps: 7, learning_rate: 0.5}\nname: yaml\n")
    config = load_config(Config, path, ["trainer.steps=8", "trainer.steps=9"])
    assert (config.trainer.steps, config.trainer.learning_rate) == (9, 0.5)
    assert (config.name, config.flip) == ("yaml", True)


def test_a_section_keeps_the_defaults_of_its_owner() -> None:
    # Config starts its trainer at 500 steps, TrainerConfig alone at 100.
    assert load_config(Config, None, ["trainer.warmup=3"]).trainer.steps == 500


@pytest.mark.parametrize(
    ("key", "text", "value"),
    [
        ("trainer.learning_rate", "1e-4", 1e-4),
        ("trainer.learning_rate", "3", 3.0),
        ("trainer.steps", "3.0", 3),
        ("trainer.steps", "1e3", 1000),
        ("trainer.steps", "9007199254740993", 2**53 + 1),  # a float would lose the last digit
        ("trainer.warmup", "null", None),
        ("trainer.warmup", "none", None),
        ("trainer.betas", "[0.5, 1]", (0.5, 1.0)),
        ("name", "no", "no"),
        ("name", "0123", "0123"),
        ("name", "a=b", "a=b"),
        ("note", "null", None),
        ("note", "on", "on"),
        ("widths", "1,2,3", (1, 2, 3)),
        ("widths", "[1, 2, 3]", (1, 2, 3)),
        ("widths", "8", (8,)),
        ("widths", "[]", ()),
        ("classes", "no, 1e5", ("no", "1e5")),
        ("classes", '["a,b", c]', ("a,b", "c")),
        ("precision", "bf16", "bf16"),
        ("flip", "no", False),
        ("flip", "True", True),
    ],
)
def test_text_becomes_the_type_of_its_field_on_the_command_line_and_in_yaml(
    tmp_path: Path, key: str, text: str, value: object
) -> None:
    converted = set_to(key, text)
    assert converted == value
    assert type(converted) is type(value)
    quoted = text if text.startswith("[") else json.dumps(text)  # both are how yaml may say it
    for written in (text, quoted):
        path = write(tmp_path, f"{key}: {written}\n")
        assert load_config(Config, path, []) == load_config(Config, None, [f"{key}={text}"])


@pytest.mark.parametrize(
    ("key", "text", "expected"),
    [
        ("trainer.steps", "true", "a whole number"),
        ("trainer.steps", "3.5", "a whole number"),
        ("trainer.steps", "many", "a whole number"),
        ("trainer.steps", "inf", "a whole number"),
        ("trainer.steps", "", "a whole number"),
        ("trainer.warmup", "soon", "a whole number or null"),
        ("trainer.learning_rate", "nan", "a finite number"),
        ("trainer.learning_rate", "-inf", "a finite number"),
        ("trainer.learning_rate", "1e999", "a finite number"),
        ("trainer.learning_rate", "no", "a finite number"),
        ("trainer.betas", "0.9,x", "a list of finite numbers, as in 0.5,1"),
        ("widths", "1,,2", "a list of whole numbers, as in 1,2,3"),
        ("widths", "[1, 2", "a list of whole numbers, as in 1,2,3"),
        ("precision", "fp16", "one of auto, bf16, float32"),
        ("flip", "1", "true or false"),
        ("flip", "maybe", "true or false"),
    ],
)
def test_a_value_that_does_not_fit_is_named_with_what_would_be_right(
    key: str, text: str, expected: str
) -> None:
    with pytest.raises(UserError) as caught:
        set_to(key, text)
    assert str(caught.value) == f"command line: {key!r} must be {expected}, not {text!r}"


def test_typed_values_are_not_bent_to_another_type() -> None:
    for values in (
        {"trainer": {"steps": True}},
        {"trainer": {"learning_rate": False}},
        {"trainer": {"learning_rate": 10**400}},
        {"trainer": {"steps": None}},
        {"flip": 1},
        {"name": 3},
        {"widths": [[1]]},
        {"widths": {"a": 1}},
    ):
        with pytest.raises(UserError, match=r"^saved: '[a-z_.]+' must be "):
            config_from_dict(Config, values, "saved")
    assert config_from_dict(Config, {"trainer": {"steps": 3.0}}, "saved").trainer.steps == 3


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("trainer: {step: 5}", "unknown key 'trainer.step' (did you mean 'trainer.steps'?)"),
        ("trainr: {steps: 5}", "unknown key 'trainr' (did you mean 'trainer'?)"),
        ("learning_rat: 5", "unknown key 'learning_rat' (did you mean 'trainer.learning_rate'?)"),
        ("trainer: {steps: {x: 1}}", "'trainer.steps' must be a whole number, not {'x': '1'}"),
        ("zzz: 5", "unknown key 'zzz' (known: trainer, name, note, widths, classes, precision, fl"),
        ("trainer: 5", "'trainer' is a section; set its keys, such as 'trainer.steps'"),
        ("name: a\nflip: no\nname: b", "not valid yaml: line 3: key 'name' is given twice"),
        ("trainer: {steps: 1}\ntrainer.steps: 2", "key 'trainer.steps' is given twice"),
        ("- a\n- b", "must hold 'key: value' lines, not a list"),
        ("just words", "must hold 'key: value' lines, not a single value"),
        ("name: [1, 2", "not valid yaml: line "),
        ("a\x00b: 1", "not valid yaml: "),
        ("name: !!python/object/apply:os.getcwd []", "not valid yaml: line 1: could not determine"),
        ("trainer: &loop {steps: *loop}", "'trainer.steps' must be a whole number, not {"),
        ("&key name: a\n*key : b", "not valid yaml: line 1: key 'name' is given twice"),
    ],
)
def test_a_faulty_file_is_refused_in_one_line_that_names_it(
    tmp_path: Path, text: str, message: str
) -> None:
    path = write(tmp_path, text)
    with pytest.raises(UserError) as caught:
        load_config(Config, path, [])
    assert str(caught.value).startswith(f"{path}: {message}")
    assert "\n" not in str(caught.value)


def test_a_file_that_is_missing_a_folder_or_binary_is_named(tmp_path: Path) -> None:
    binary = tmp_path / "binary.yaml"
    binary.write_bytes(b"\xff\xfe\x00")
    for path, message in (
        (tmp_path / "absent.yaml", "no such config file"),
        (binary / "below.yaml", "no such config file"),
        (tmp_path, "is a folder; a yaml file is needed"),
        (binary, "not a text file; a yaml file is needed"),
    ):
        with pytest.raises(UserError) as caught:
            load_config(Config, path, [])
        assert str(caught.value) == f"{path}: {message}"


def test_a_file_and_a_section_of_nothing_but_comments_are_the_defaults(tmp_path: Path) -> None:
    assert load_config(Config, write(tmp_path, "# nothing\n"), []) == Config()
    assert load_config(Config, write(tmp_path, "trainer:\n  # steps: 3\n"), []) == Config()


def test_values_that_contradict_each_other_are_refused_with_their_source(tmp_path: Path) -> None:
    path = write(tmp_path, "trainer: {warmup: 200}")
    assert load_config(Config, path, []).trainer.warmup == 200
    message = "trainer.warmup=200 is over trainer.steps=100"
    with pytest.raises(UserError, match=rf"config.yaml with the command line: {message}$"):
        load_config(Config, path, ["trainer.steps=100"])
    with pytest.raises(UserError, match=rf"^command line: {message}$"):
        load_config(Config, None, ["trainer.steps=100", "trainer.warmup=200"])


def test_a_missing_required_key_is_named() -> None:
    with pytest.raises(UserError, match=r"^saved: key 'size' is missing; it must be a whole numb"):
        config_from_dict(Needy, {}, "saved")
    assert config_from_dict(Needy, {"size": 3}, "saved") == Needy(3)


def test_any_config_survives_yaml_dict_and_json(tmp_path: Path) -> None:
    config = Config(
        trainer=TrainerConfig(steps=3, learning_rate=1e-05, betas=(), warmup=2),
        name="no",
        note="línea: #1\nline 2",
        widths=(),
        classes=("no", "1e5", "a,b", "[x]", "", " y "),
        precision="bf16",
        flip=False,
    )
    for each in (config, Config(), replace(config, note=None, name="", widths=(1,))):
        assert load_config(Config, write(tmp_path, config_to_yaml(each)), []) == each
        plain = config_to_dict(each)
        assert config_from_dict(Config, plain, "dict") == each
        assert config_from_dict(Config, json.loads(json.dumps(plain)), "json") == each


def test_changed_keys_names_exactly_what_differs() -> None:
    changed = replace(Config(), flip=False, trainer=TrainerConfig(steps=500, warmup=1))
    assert changed_keys(Config(), changed) == ["trainer.warmup", "flip"]
    assert changed_keys(Config(), Config()) == []
    assert changed_keys(Needy(3), TrainerConfig(steps=3))[0] == "size"


def test_arguments_are_a_yaml_file_and_overrides_in_any_order() -> None:
    assert parse_config_arguments([]) == (None, [])
    arguments = ["a.b=1", "runs/lr=3/config.yaml", "data.path=x.yaml", "c="]
    path, overrides = parse_config_arguments(arguments)
    assert path == Path("runs/lr=3/config.yaml")
    assert overrides == ["a.b=1", "data.path=x.yaml", "c="]


@pytest.mark.parametrize("argument", ["--steps=3", "-x", "steps", "=3", "a..b=3", "config.json"])
def test_any_other_argument_is_refused_with_the_form(argument: str) -> None:
    message = r"is neither a yaml file nor key=value \(form: \[file.yaml\] \[key=value ...\]\)$"
    with pytest.raises(UserError, match=message):
        parse_config_arguments([argument])
    with pytest.raises(UserError, match=r"^two config files, a.yaml and b.yml; give one"):
        parse_config_arguments(["a.yaml", "b.yml"])
