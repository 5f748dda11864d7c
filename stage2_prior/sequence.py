"""The order in which the prior reads and predicts the codes of an image.

A sequence is a list of steps. Each holds one or more positions of the codes, and every position
stands in one of them. The network gets one input a step: the class at first, then all codes of the
step before. The codes of a step are predicted at once, without knowing of each other.

    coarse to fine   ((0,), (1,), (2,), (3,))    c_1 c_2 c_3 c_4
    reversed         ((3,), (2,), (1,), (0,))    c_4 c_3 c_2 c_1
    in pairs         ((0, 1), (2, 3))            c_1 c_2 c_3 c_4, in half as many steps

*Position* counts codes as the tokenizer orders them, *place* as they follow one another here. A new
order is a new tuple of steps: the model folder holds it, and nothing has to be registered.
"""

import itertools
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor


@dataclass(frozen=True)
class Sequence:
    steps: tuple[tuple[int, ...], ...]  # the positions that each step holds

    def __post_init__(self) -> None:
        if not all(self.steps) or sorted(self.order) != list(range(len(self.order))):
            raise ValueError(f"steps must hold each position once, and none be empty: {self.steps}")

    @cached_property
    def order(self) -> tuple[int, ...]:
        """The position at each place, N numbers."""
        return tuple(itertools.chain(*self.steps))

    @cached_property
    def bounds(self) -> tuple[int, ...]:
        """Step t holds the places from ``bounds[t]`` up to ``bounds[t + 1]``."""
        return (0, *itertools.accumulate(len(positions) for positions in self.steps))

    @cached_property
    def single(self) -> bool:
        """Whether every step holds one position, so that steps and places are the same."""
        return len(self.steps) == len(self.order)

    def steps_for(self, prefix_length: int) -> int:
        """The fewest steps that hold the first so many positions."""
        numbered = enumerate(self.steps, start=1)
        return max(step for step, positions in numbered if min(positions) < prefix_length)

    def steps_in(self, places: int, first: int = 0) -> int:
        """How many steps, from step ``first`` on, hold exactly so many places.

        Raises:
            ValueError: The last of these places is not the end of a step.
        """
        end = self.bounds[first] + places
        if end not in self.bounds:
            raise ValueError(f"{places} codes end inside of a step, of {self.steps}")
        return self.bounds.index(end) - first

    def by_place(self, codes: Tensor) -> Tensor:
        """Codes (B, k) by position -> by place: all N, or those that the first places hold."""
        return codes[:, list(self.order[: codes.shape[1]])]

    def by_position(self, values: Tensor) -> Tensor:
        """Values (B, n) of the first n places -> (B, k), of the longest prefix that they hold."""
        places = {position: place for place, position in enumerate(self.order[: values.shape[1]])}
        known = itertools.takewhile(places.__contains__, itertools.count())
        return values[:, [places[position] for position in known]]

    def sum_steps(self, values: Tensor, first: int = 0) -> Tensor:
        """Sums over each step, from step ``first`` on: (B, n, W) by place -> (B, t, W)."""
        if self.single:
            return values
        return torch.stack([part.sum(1) for part in self._split(values, first)], dim=1)

    def last_of_steps(self, values: Tensor, first: int = 0) -> Tensor:
        """The values at the last place of each step: (B, n, W) by place -> (B, t, W)."""
        if self.single:
            return values
        return torch.stack([part[:, -1] for part in self._split(values, first)], dim=1)

    def repeat_steps(self, values: Tensor, first: int = 0) -> Tensor:
        """Values of steps from ``first`` on, at each of their places: (B, t, W) -> (B, n, W)."""
        if self.single:
            return values
        lengths = torch.tensor(self._lengths(first, values.shape[1]), device=values.device)
        return values.repeat_interleave(lengths, dim=1)

    def _lengths(self, first: int, steps: int) -> list[int]:
        return [len(positions) for positions in self.steps[first : first + steps]]

    def _split(self, values: Tensor, first: int) -> tuple[Tensor, ...]:
        return values.split(self._lengths(first, self.steps_in(values.shape[1], first)), dim=1)


def coarse_to_fine(num_codes: int) -> Sequence:
    """The order of the tokenizer, a code a step."""
    return Sequence(tuple((position,) for position in range(num_codes)))
