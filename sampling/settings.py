"""How the distribution that is sampled from is shaped; imports no torch."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pqvae.errors import UserError

SETTINGS = ("prefix", "temperature", "top_p", "guidance")
BUILT_IN = {"prefix": None, "temperature": 1.0, "top_p": 0.95, "guidance": 1.0}  # None: all codes


@dataclass(frozen=True, kw_only=True)
class SamplingSettings:
    temperature: float = 1.0
    top_p: float = 1.0
    guidance: float = 1.0  # 1: the plain conditional model

    def __post_init__(self) -> None:
        if not 0 <= self.temperature <= 10:
            raise ValueError(f"temperature must be 0 to 10, not {self.temperature}")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top-p must be above 0 and at most 1, not {self.top_p}")
        if not 0 <= self.guidance <= 20:
            raise ValueError(f"guidance must be 0 to 20, not {self.guidance}")


def settings_of(options: dict[str, Any]) -> SamplingSettings:
    """Settings from options of a command.

    Raises:
        UserError: One is out of its range.
    """
    try:
        return SamplingSettings(**options)
    except ValueError as error:
        raise UserError(f"--{error}") from None


def given_settings(options: Mapping[str, Any]) -> dict[str, Any]:
    """Those of a command's options that are settings and were given.

    Raises:
        UserError: One is out of its range.
    """
    given = {name: options[name] for name in SETTINGS if options.get(name) is not None}
    settings_of({name: value for name, value in given.items() if name != "prefix"})
    return given
