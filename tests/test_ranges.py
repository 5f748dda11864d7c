"""Every number that a user may set has a range, and nothing outside of it gets any further."""

import math
from collections.abc import Iterator
from typing import Any, NamedTuple, get_args, get_origin

import pytest
from pydantic.fields import FieldInfo

from pqvae.config import config_class, load_config, walk_keys
from pqvae.config_text import convert
from pqvae.errors import UserError
from stage1_tokenizer import train as train_tokenizer
from stage1_tokenizer.config import Config as TokenizerRun
from stage1_tokenizer.config import TokenizerConfig
from stage2_prior import train as train_prior
from stage2_prior.config import Config as PriorRun

# In no range: not numbers, without end, or far above or below anything of use.
NOWHERE = ("nan", "inf", "-inf", "1e308", "-1e308", "1e30", "-1", "9" * 100, "9" * 5000)
BOUNDS = ("ge", "gt", "le", "lt")


class Number(NamedTuple):
    """A number of a config, or each of a list of them."""

    config: type
    key: str
    kind: str  # of the section that it is in
    info: FieldInfo
    type: type
    bounds: dict[str, float]

    @property
    def arguments(self) -> list[str]:
        section = self.key.rpartition(".")[0]
        kind = [f"{section}.kind={self.kind}"] if self.kind else []
        size = self.config is TokenizerConfig and self.key != "image_size"
        return [*kind, "image_size=32"] if size else kind  # which has no default

    def around(self) -> tuple[list[float], list[float]]:
        """The outermost values inside of the range, and the next ones outside of it."""
        inside, outside = [], []
        for name, bound in self.bounds.items():
            up = math.inf if name in ("le", "lt") else -math.inf
            if self.type is int:
                away = 1 if up > 0 else -1
                beyond, within = bound + away, bound - away
            else:
                beyond, within = math.nextafter(bound, up), math.nextafter(bound, -up)
            closed = name in ("ge", "le")
            inside.append(bound if closed else within)
            outside.append(beyond if closed else bound)
        return inside, outside


def numbers(config: type) -> Iterator[Number]:
    for name, info, _, kind in walk_keys(config):
        inner, marks = info.annotation, list(info.metadata)
        if get_origin(inner) is tuple:
            item = get_args(inner)[0]
            each = FieldInfo.from_annotation(item)
            inner, marks = each.annotation, list(each.metadata)
        if inner in (int, float):
            bounds = {
                bound: getattr(mark, bound)
                for mark in marks
                for bound in BOUNDS
                if hasattr(mark, bound)
            }
            yield Number(config, name, kind, info, inner, bounds)


NUMBERS = [
    number for config in (TokenizerRun, PriorRun, TokenizerConfig) for number in numbers(config)
]
each_number = pytest.mark.parametrize(
    "number", NUMBERS, ids=[f"{n.config.__module__}-{n.key}-{n.kind}" for n in NUMBERS]
)


def refusal(number: Number, text: str) -> str:
    with pytest.raises(UserError) as caught:
        load_config(number.config, None, [*number.arguments, f"{number.key}={text}"])
    return str(caught.value)


def test_all_that_are_numbers_are_found() -> None:
    keys = {(number.key, number.kind) for number in NUMBERS}
    for key in (
        *(("trainer.beta2", ""), ("data.shift_share", ""), ("architecture.widths", "")),
        *(("quantizer.codebook_sizes", "gumbel"), ("quantizer.levels", "fsq"), ("views", "")),
        *(("prior.heads", ""), ("image_size", ""), ("objective.commitment", "")),
    ):
        assert key in keys


@each_number
def test_a_number_is_bounded_on_both_sides(number: Number) -> None:
    assert number.bounds.keys() & {"ge", "gt"}
    assert number.bounds.keys() & {"le", "lt"}
    assert all(map(math.isfinite, number.bounds.values()))


@each_number
def test_what_lies_outside_is_refused_by_its_key_in_one_line(number: Number) -> None:
    _, outside = number.around()
    for text in (*NOWHERE, *map(repr, outside)):
        message = refusal(number, text)
        assert message.startswith(f"command line: '{number.key}' must be "), message
        assert len(message) <= 200, message
        assert "\n" not in message


@each_number
def test_what_lies_inside_is_taken(number: Number) -> None:
    inside, _ = number.around()
    for value in inside:
        if get_origin(number.info.annotation) is tuple:
            assert convert(repr(value), number.info, "here") == (value,)
        else:
            assert convert(repr(value), number.info, "here") == value


@config_class
class Unbounded:
    size: int
    shares: tuple[float, ...]


def test_a_number_without_a_range_would_be_noticed() -> None:
    found = {number.key: number.bounds for number in numbers(Unbounded)}
    assert found == {"size": {}, "shares": {}}


@pytest.mark.parametrize(
    ("main", "argument"),
    [
        (train_tokenizer.main, "trainer.beta2=1"),
        (train_tokenizer.main, "trainer.seed=1e30"),
        (train_tokenizer.main, "quantizer.revive_every=0"),
        (train_tokenizer.main, "objective.commitment=-1"),
        (train_prior.main, "prior.heads=0"),
        (train_prior.main, "prior.dropout=1.5"),
        (train_prior.main, "trainer.weight_decay=-1"),
    ],
)
def test_the_commands_end_with_the_line_and_exit_code_2(
    main: Any, argument: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([argument]) == 2
    output = capsys.readouterr()
    assert output.out == ""
    (line,) = output.err.splitlines()
    assert line.startswith(f"error: command line: '{argument.partition('=')[0]}' must be ")
