"""Configuration: conversion by field type, precedence, kinds, round trips, what has changed."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Literal

import pytest

from pqvae.config import (
    changed_keys,
    config_class,
    config_from_dict,
    config_to_dict,
    config_to_yaml,
    identity_changes,
    load_config,
    parse_config_arguments,
)
from tests.pqvae.config_examples import (
    QUANTIZERS,
    Config,
    GumbelConfig,
    ModelConfig,
    NearestConfig,
    Needy,
    QuantizerConfig,
    TrainerConfig,
    set_to,
    write,
)


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


def test_a_file_and_a_section_of_nothing_but_comments_are_the_defaults(tmp_path: Path) -> None:
    assert load_config(Config, write(tmp_path, "# nothing\n"), []) == Config()
    assert load_config(Config, write(tmp_path, "trainer:\n  # steps: 3\n"), []) == Config()


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


def test_help_needs_no_torch() -> None:
    code = "import sys, pqvae.config; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_arguments_are_a_yaml_file_and_overrides_in_any_order() -> None:
    assert parse_config_arguments([]) == (None, [])
    arguments = ["a.b=1", "runs/lr=3/config.yaml", "data.path=x.yaml", "c="]
    path, overrides = parse_config_arguments(arguments)
    assert path == Path("runs/lr=3/config.yaml")
    assert overrides == ["a.b=1", "data.path=x.yaml", "c="]
