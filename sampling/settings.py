"""How the distribution that is sampled from is shaped; imports no torch."""

from dataclasses import dataclass


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
