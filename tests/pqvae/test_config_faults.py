"""Faulty configuration: refused in one line that names source and key and what would be right."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pqvae.config import config_from_dict, load_config, parse_config_arguments
from pqvae.errors import UserError
from tests.pqvae.config_examples import (
    Config,
    GumbelConfig,
    ModelConfig,
    Needy,
    OpenConfig,
    TrainerConfig,
    set_to,
    write,
)


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


@pytest.mark.parametrize(
    ("key", "text", "message"),
    [
        ("trainer.steps", "0", "at least 1, not 0"),
        ("trainer.learning_rate", "0", "above 0, not 0.0"),
        ("trainer.warmup", "-1", "at least 0, not -1"),
        ("trainer.betas", "0.5,2", "each at least 0 and below 1.5, not 2.0"),
        ("widths", "1,2,3,4,5,6", "at most 5 long, not (1, 2, 3, 4, 5, 6)"),
    ],
)
def test_a_value_out_of_range_is_named_with_the_range(key: str, text: str, message: str) -> None:
    with pytest.raises(UserError) as caught:
        set_to(key, text)
    assert str(caught.value) == f"command line: {key!r} must be {message}"


def test_a_config_made_in_python_is_checked_too() -> None:
    for values in ({"steps": 0}, {"steps": True}, {"learning_rate": float("inf")}, {"step": 1}):
        wrong: Any = values
        with pytest.raises(ValueError, match=next(iter(values))):
            TrainerConfig(**wrong)
    with pytest.raises(ValueError, match=r"steps"):
        replace(TrainerConfig(), steps=-1)


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
    assert config_from_dict(Needy, {"size": 3}, "saved") == Needy(size=3)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["kind=soft"], "'quantizer.kind' must be one of nearest, gumbel, not 'soft'"),
        (["temperature=1"], "unknown key 'quantizer.temperature': only quantizer.kind=gumbel has"),
        (
            ["kind=gumbel", "decay=0.5"],
            "unknown key 'quantizer.decay': only quantizer.kind=nearest",
        ),
        (["temprature=1"], "unknown key 'quantizer.temprature' (did you mean 'quantizer.temperat"),
        (["kind=gumbel", "temperature=0"], "'quantizer.temperature' must be above 0, not 0.0"),
    ],
)
def test_faults_of_a_kind_name_the_kinds(overrides: list[str], message: str) -> None:
    with pytest.raises(UserError) as caught:
        load_config(ModelConfig, None, [f"quantizer.{override}" for override in overrides])
    assert str(caught.value).startswith(f"command line: {message}")


def test_a_kind_without_a_default_must_be_given() -> None:
    message = r"^saved: key 'quantizer.kind' is missing; it must be one of nearest, gumbel$"
    with pytest.raises(UserError, match=message):
        config_from_dict(OpenConfig, {}, "saved")
    config = config_from_dict(OpenConfig, {"quantizer": {"kind": "gumbel"}}, "saved")
    assert config.quantizer == GumbelConfig()


@pytest.mark.parametrize("argument", ["--steps=3", "-x", "steps", "=3", "a..b=3", "config.json"])
def test_any_other_argument_is_refused_with_the_form(argument: str) -> None:
    message = r"is neither a yaml file nor key=value \(form: \[file.yaml\] \[key=value ...\]\)$"
    with pytest.raises(UserError, match=message):
        parse_config_arguments([argument])
    with pytest.raises(UserError, match=r"^two config files, a.yaml and b.yml; give one"):
        parse_config_arguments(["a.yaml", "b.yml"])
