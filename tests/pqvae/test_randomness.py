"""Random numbers: a function of what they are for, and the same as in runs of before."""

import pytest
import torch

from pqvae.randomness import Stream, generator_for, stream_generator


def test_generators_differ_in_every_number_and_in_their_order() -> None:
    numbers = [(0,), (1,), (0, 0), (0, 1), (1, 0), (0, 0, 1), (0, 1, 0), (1, 0, 0), (0, 1, 2)]
    drawn = [
        tuple(torch.randint(2**31, (2,), generator=generator_for(*each)).tolist())
        for each in numbers
    ]
    assert len(set(drawn)) == len(numbers)
    assert torch.equal(
        torch.rand(3, generator=generator_for(5, 6)), torch.rand(3, generator=generator_for(5, 6))
    )


@pytest.mark.parametrize(
    ("stream", "indices", "numbers"),
    [
        (Stream.ORDER, (7,), (7,)),
        (Stream.AUGMENTATION, (7,), (7, 1)),
        (Stream.START, (0,), (0, 2)),
        (Stream.PREFIX_LENGTHS, (7,), (7, 3)),
        (Stream.REVIVAL, (7,), (7, 4)),
        (Stream.GUMBEL_NOISE, (7,), (7, 5)),
        (Stream.VIEW_CHOICE, (7,), (7, 5)),
        (Stream.ENCODED_VIEWS, (1, 9), (1, 9)),
        (Stream.DROPOUT, (7, 16), (7, 16)),
    ],
)
def test_streams_draw_what_recorded_runs_drew(
    stream: Stream, indices: tuple[int, ...], numbers: tuple[int, ...]
) -> None:
    drawn = torch.rand(9, generator=stream_generator(3, stream, *indices))
    assert torch.equal(drawn, torch.rand(9, generator=generator_for(3, *numbers)))


def test_generators_are_those_of_recorded_runs() -> None:
    assert generator_for(3, 7, 1).initial_seed() == 4424053485683601705
