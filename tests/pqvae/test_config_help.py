"""The description of configuration: each key once, as one would type it."""

from pqvae.config import load_config
from pqvae.config_help import describe_keys, format_keys
from tests.pqvae.config_examples import Config, ModelConfig, Needy


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
