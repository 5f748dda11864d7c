"""Codes as counts: of which tokenizers, and what is counted."""

import pytest
import torch

from eval.measures.representations import counts, shares_books
from pqvae.randomness import generator_for


def test_counts_are_those_of_each_codebook_wherever_it_is_read() -> None:
    books, sizes = (0, 0, 1, 0, 1), (3, 3, 5, 3, 5)
    codes = torch.stack(
        [torch.randint(size, (20,), generator=generator_for(i)) for i, size in enumerate(sizes)], 1
    )
    found = counts(codes, books, sizes)
    for row, image in zip(found.tolist(), codes.tolist(), strict=True):
        expected = [0.0] * 8
        for code, book in zip(image, books, strict=True):
            expected[3 * book + code] += 1
        assert row == expected


@pytest.mark.parametrize(
    ("books", "shared"),
    [
        ((0, 0, 0, 0), True),  # a code for each place
        ((0, 0, 1, 1), True),  # and another one
        ((0, 1, 2, 2), False),  # early positions have codebooks of their own
        ((0, 1), False),
    ],
)
def test_places_share_a_codebook_where_no_position_has_one_of_its_own(
    books: tuple[int, ...], shared: bool
) -> None:
    assert shares_books(books) == shared
