"""Batches made ahead: the right ones, each once, no further ahead than there are workers."""

import threading
import weakref
from collections import Counter

import pytest
import torch
from torch import Tensor

from pqvae.data.batches import Prefetcher
from pqvae.errors import UserError


class Recorded:
    """A function of (step, part), and when it was called for what."""

    def __init__(self, parts: list[slice], fail_at: int | None = None) -> None:
        self.parts, self.fail_at = parts, fail_at
        self.calls: list[int] = []  # places: steps * parts + part
        self.asked = -1  # the place that is asked for
        self.furthest_ahead = 0
        self._changed = threading.Condition()

    def __call__(self, step: int, part: slice) -> Tensor:
        place = step * len(self.parts) + self.parts.index(part)
        with self._changed:
            self.calls.append(place)
            self.furthest_ahead = max(self.furthest_ahead, place - self.asked)
            self._changed.notify_all()
        if place == self.fail_at:
            raise UserError(f"place {place} is damaged")
        return torch.tensor([step, part.start, part.stop])

    def ask(self, ahead: Prefetcher, place: int) -> list[int]:
        step, index = divmod(place, len(self.parts))
        with self._changed:
            self.asked = place
        return ahead(step, self.parts[index]).tolist()

    def expected(self, place: int) -> list[int]:
        step, index = divmod(place, len(self.parts))
        return [step, self.parts[index].start, self.parts[index].stop]

    def wait_for(self, places: set[int]) -> bool:
        with self._changed:
            return self._changed.wait_for(lambda: places <= set(self.calls), timeout=10)


PARTS = {1: [slice(0, 8)], 3: [slice(0, 2), slice(2, 4), slice(4, 7)]}


@pytest.mark.parametrize("workers", [0, 1, 3])
@pytest.mark.parametrize("parts", PARTS)
def test_what_was_called_ahead_is_what_is_asked_for(parts: int, workers: int) -> None:
    function = Recorded(PARTS[parts])
    ahead = Prefetcher(function, function.parts, workers)
    for start in (0, 57, 6, 8, 40 * parts + 1):  # a resumed run starts anywhere
        for place in range(start, start + 7):
            assert function.ask(ahead, place) == function.expected(place)


@pytest.mark.parametrize("workers", [0, 1, 3])
@pytest.mark.parametrize("parts", PARTS)
@pytest.mark.parametrize("start", [0, 57])
def test_each_place_is_called_once_and_no_more_than_workers_ahead(
    parts: int, workers: int, start: int
) -> None:
    function = Recorded(PARTS[parts])
    ahead = Prefetcher(function, function.parts, workers)
    for place in range(start, start + 20):
        function.ask(ahead, place)
        # The next ones are called with nobody asking for them ...
        assert function.wait_for(set(range(start, place + workers + 1)))
    # ... but none beyond, and none twice.
    assert Counter(function.calls) == Counter(range(start, start + 20 + workers))
    assert function.furthest_ahead == workers


def test_results_are_not_kept_once_given_or_jumped_over() -> None:
    made: list[weakref.ref[Tensor]] = []

    def function(step: int, part: slice) -> Tensor:
        result = torch.tensor(step)
        made.append(weakref.ref(result))
        return result

    parts = PARTS[1]
    ahead = Prefetcher(function, parts, 2)
    for start in (0, 57, 6):
        for step in range(start, start + 10):
            assert int(ahead(step, parts[0])) == step
    ahead._pool.shutdown()  # so that none is still under way
    assert len(made) > 30
    assert sum(result() is not None for result in made) == 2


def test_workers_call_at_the_same_time() -> None:
    together = threading.Barrier(3, timeout=10)  # broken where fewer than three come

    def function(step: int, part: slice) -> Tensor:
        if step < 3:
            together.wait()
        return torch.tensor(step)

    ahead = Prefetcher(function, PARTS[1], 3)
    assert [int(ahead(step, PARTS[1][0])) for step in range(5)] == list(range(5))


@pytest.mark.parametrize("workers", [0, 1, 3])
@pytest.mark.parametrize("parts", PARTS)
def test_an_error_is_raised_where_it_is_asked_for_and_not_before(parts: int, workers: int) -> None:
    function = Recorded(PARTS[parts], fail_at=7)
    ahead = Prefetcher(function, function.parts, workers)
    for place in range(7):
        assert function.ask(ahead, place) == function.expected(place)
        assert function.wait_for(set(range(place + workers + 1)))  # the error has long happened
    with pytest.raises(UserError, match="place 7 is damaged"):
        function.ask(ahead, 7)
    assert function.ask(ahead, 8) == function.expected(8)
