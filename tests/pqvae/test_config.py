"""Configuration: conversion by field type, precedence, round trips, and every error message."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
from pydantic import Field

from pqvae.config import (
    HARMLESS,
    OneOf,
    changed_keys,
    config_class,
    config_from_dict,
    config_to_dict,
    config_to_yaml,
    identity_changes,
    load_config,
    parse_config_arguments,
)
from pqvae.config_help import describe_keys, format_keys
from pqvae.errors import UserError


@config_class
class TrainerConfig:
    steps: Annotated[int, HARMLESS] = Field(default=100, ge=1, description="optimizer steps")
    learning_rate: float = Field(default=1e-3, gt=0)
    betas: tuple[Annotated[float, Field(ge=0, lt=1.5)], ...] = (0.9, 0.95)
    warmup: int | None = Field(default=None, ge=0)

    def __post_init__(self) -> None:
        if self.warmup is not None and self.warmup > self.steps:
            raise ValueError(f"trainer.warmup={self.warmup} is over trainer.steps={self.steps}")


@config_class
class Config:
    trainer: TrainerConfig = Field(default_factory=lambda: TrainerConfig(steps=500))
    name: str = "run"
    note: str | None = None
    widths: tuple[int, ...] = Field(default=(32, 64), max_length=5)
    classes: tuple[str, ...] = ()
    precision: Literal["auto", "bf16", "float32"] = "auto"
    flip: bool = True


@config_class
class Needy:
    size: int


@config_class
class QuantizerConfig:
    num_codes: int = Field(default=32, ge=1, description="codes of one image")
    dim: int = 4


@config_class
class NearestConfig(QuantizerConfig):
    kind: Literal["nearest"] = "nearest"
    decay: float = Field(default=0.9, gt=0, lt=1)


@config_class
class GumbelConfig(QuantizerConfig):
    kind: Literal["gumbel"] = "gumbel"
    dim: int = 8
    temperature: Annotated[float, HARMLESS] = Field(default=1.0, gt=0)


QUANTIZERS: dict[str, type] = {"nearest": NearestConfig, "gumbel": GumbelConfig}


@config_class
class ModelConfig:
    out: Annotated[str, HARMLESS] = "run"
    quantizer: Annotated[QuantizerConfig, OneOf(QUANTIZERS)] = Field(
        default_factory=lambda: NearestConfig(decay=0.5), description="how latents become codes"
    )


@config_class
class OpenConfig:
    quantizer: Annotated[QuantizerConfig, OneOf(QUANTIZERS)]


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
    assert config_from_dict(Needy, {"size": 3}, "saved") == Needy(size=3)


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
    assert changed_keys(Needy(size=3), TrainerConfig(steps=3))[0] == "size"


def test_identity_changes_leave_out_what_is_harmless() -> None:
    longer = replace(Config(), flip=False, trainer=TrainerConfig(steps=900))
    assert changed_keys(Config(), longer) == ["trainer.steps", "flip"]
    assert identity_changes(Config(), longer) == ["flip"]
    gumbel = ModelConfig(quantizer=GumbelConfig())
    warmer = ModelConfig(out="b", quantizer=GumbelConfig(temperature=2.0))
    assert identity_changes(gumbel, warmer) == []
    assert "quantizer.kind" in identity_changes(ModelConfig(), gumbel)


def test_a_kind_brings_its_own_keys_and_defaults(tmp_path: Path) -> None:
    nearest = load_config(ModelConfig, None, ["quantizer.num_codes=3"]).quantizer
    assert nearest == NearestConfig(num_codes=3, decay=0.5)  # the owner's default goes on
    path = write(tmp_path, "quantizer: {kind: gumbel, temperature: 3}")
    gumbel = load_config(ModelConfig, path, ["quantizer.num_codes=5"]).quantizer
    assert gumbel == GumbelConfig(num_codes=5, temperature=3.0)
    path = write(tmp_path, "quantizer: {kind: gumbel, num_codes: 2}")
    back = load_config(ModelConfig, path, ["quantizer.kind=nearest"]).quantizer
    assert back == NearestConfig(num_codes=2, decay=0.5)


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


def test_a_kind_survives_yaml_and_json_and_may_be_added(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    @config_class
    class AddedConfig(QuantizerConfig):
        kind: Literal["added"] = "added"
        depth: int = 1

    monkeypatch.setitem(QUANTIZERS, "added", AddedConfig)
    for quantizer in (GumbelConfig(temperature=0.1), AddedConfig(depth=3), NearestConfig()):
        config = ModelConfig(quantizer=quantizer)
        assert load_config(ModelConfig, write(tmp_path, config_to_yaml(config)), []) == config
        plain = json.loads(json.dumps(config_to_dict(config)))
        assert config_from_dict(ModelConfig, plain, "json") == config


def test_every_key_is_described_as_one_would_type_it() -> None:
    keys = {key.key: key for key in describe_keys(Config)}
    assert list(keys)[:5] == [
        *("trainer.steps", "trainer.learning_rate", "trainer.betas", "trainer.warmup", "name")
    ]
    steps = keys["trainer.steps"]
    assert steps == ("trainer.steps", "500", "optimizer steps", "a whole number", "at least 1", "")
    assert (keys["trainer.betas"].default, keys["widths"].default) == ("0.9,0.95", "32,64")
    assert keys["trainer.betas"].range == "each at least 0 and below 1.5"
    assert (keys["note"].default, keys["note"].type) == ("null", "text or null")
    typed = [f"{key.key}={key.default}" for key in keys.values()]
    assert load_config(Config, None, typed) == Config()
    assert describe_keys(Needy)[0].default is None


def test_keys_of_every_kind_are_described_and_common_ones_once() -> None:
    keys = [(key.key, key.default, key.kind) for key in describe_keys(ModelConfig)]
    assert keys == [
        ("out", "run", ""),
        ("quantizer.kind", "nearest", ""),
        ("quantizer.num_codes", "32", ""),
        ("quantizer.dim", "4", "nearest"),
        ("quantizer.decay", "0.5", "nearest"),
        ("quantizer.dim", "8", "gumbel"),
        ("quantizer.temperature", "1", "gumbel"),
    ]


def test_keys_are_listed_by_section_within_100_columns() -> None:
    assert (
        format_keys(describe_keys(ModelConfig))
        == """\
top level:
  out=run                               (text)

quantizer:
  quantizer.kind=nearest                how latents become codes (one of nearest, gumbel)
  quantizer.num_codes=32                codes of one image (a whole number, at least 1)

quantizer, kind=nearest:
  quantizer.dim=4                       (a whole number)
  quantizer.decay=0.5                   (a finite number, above 0 and below 1)

quantizer, kind=gumbel:
  quantizer.dim=8                       (a whole number)
  quantizer.temperature=1               (a finite number, above 0)
"""
    )
    long = describe_keys(Config)[0]._replace(default="a" * 30, description="word " * 40)
    lines = format_keys([long]).splitlines()
    assert lines[1] == f"  trainer.steps={long.default}"  # its meaning starts on the next line
    assert max(map(len, lines)) <= 100
    assert "".join(lines[2:]).count("word") == 40
    assert format_keys(describe_keys(Needy)).splitlines()[1].startswith("  size (required) ")


def test_help_needs_no_torch() -> None:
    code = "import sys, pqvae.config; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


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
