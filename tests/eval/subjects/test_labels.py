"""Labels of samples: one reading for all of them, and none by guess."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch

from eval.subjects.labels import class_numbers
from eval.subjects.samples import Samples
from pqvae.errors import UserError


def numbers(labels: list[str], names: list[str], record: dict[str, Any] | None = None) -> list[int]:
    n, image = len(labels), torch.zeros(3, 8, 8, dtype=torch.uint8)
    samples = Samples(Path("s"), lambda _: image, n, n, 8, record or {}, tuple(labels))
    return class_numbers(samples, names, "photos").tolist()


@pytest.mark.parametrize(
    ("labels", "names", "expected"),
    [
        (["cat", "ant", "cat"], ["ant", "bee", "cat"], [2, 0, 2]),
        (["2", "0", "2"], ["ant", "bee", "cat"], [2, 0, 2]),
        (["0", "2", "1"], ["1", "2", "3"], [0, 2, 1]),  # 0 is no name, so they are numbers
        (["3", "2", "1"], ["1", "2", "3"], [2, 1, 0]),  # 3 is no number, so they are names
        (["0", "1", "1"], ["0", "1", "2"], [0, 1, 1]),  # the same either way
        (["9", "10"], ["9", "10"], [0, 1]),
    ],
)
def test_labels_are_all_names_or_all_numbers(
    labels: list[str], names: list[str], expected: list[int]
) -> None:
    assert numbers(labels, names) == expected


@pytest.mark.parametrize(
    ("labels", "names", "message"),
    [
        (
            ["2", "1"],
            ["1", "2", "3"],
            "--by-class: s: label 2 may be class 2 of photos, or the one numbered 2 from 0, which "
            "is 3; rename",
        ),
        (["0", "3"], ["1", "2", "3"], "label 3 is the name of a class of photos, but 0 is none"),
        (["cat", "0"], ["ant", "cat"], "label cat is the name of a class of photos, but 0 is none"),
        (["ant", "dog", "eel"], ["ant", "bee"], "s has class dog, but photos has ant, bee"),
        (["0", "2"], ["ant", "bee"], "s has class 2, but photos has ant, bee"),
        (["01"], ["ant", "bee"], "s has class 01, but"),
        (["-1"], ["ant", "bee"], "s has class -1, but"),
        (["x"], [f"n{i}" for i in range(1000)], "n0, n1, n2, n3, n4, ... (1000 in all)"),
    ],
)
def test_labels_that_fit_no_reading_or_two_are_refused(
    labels: list[str], names: list[str], message: str
) -> None:
    with pytest.raises(UserError, match=re.escape(message)) as refused:
        numbers(labels, names)
    assert len(str(refused.value)) <= 200


def test_labels_of_generated_samples_are_names_even_where_names_are_numbers() -> None:
    record = {"class_counts": {"1": 5, "2": 5, "3": 5}}
    assert numbers(["2", "1"], ["1", "2", "3"], record) == [1, 0]
    with pytest.raises(UserError, match="s has class 1, but photos has ant, bee"):
        numbers(["1", "1"], ["ant", "bee"], record)
