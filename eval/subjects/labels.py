"""How labels of samples are read: as names of the reference's classes, or as their numbers."""

from collections.abc import Sequence

import torch
from torch import Tensor

from eval.subjects.samples import Samples
from pqvae.errors import UserError

SHOWN = 5  # classes that a message names


def class_numbers(samples: Samples, names: Sequence[str], reference: str) -> Tensor:
    """The class of each sample as the reference numbers it, from 0: int64 (n,).

    There is one reading for all labels: all are names, or all are numbers. Those of a record of
    ``sampling.generate`` are names.

    Args:
        samples: With labels.
        names: Of the reference's classes.
        reference: What it is called, for messages.

    Raises:
        UserError: A label is neither, some are names and others numbers, or all can be either.
    """
    labels = samples.labels or ()
    by_name = {name: number for number, name in enumerate(names)}
    by_number = {str(number): number for number in range(len(names))}
    if set(samples.record.get("class_counts", ())) >= set(labels):
        by_number = {}
    wrong = {"name": _first_beside(labels, by_name), "number": _first_beside(labels, by_number)}
    about = f"--by-class: {samples.path}"
    if wrong["name"] is None and wrong["number"] is None:
        if differing := next((one for one in labels if by_name[one] != by_number[one]), None):
            other = names[by_number[differing]]
            raise UserError(
                f"{about}: label {differing} may be class {differing} of {reference}, or the one "
                f"numbered {differing} from 0, which is {other}; rename the classes, so that no "
                "name is a number"
            )
    elif wrong["name"] is not None and wrong["number"] is not None:
        neither = next((one for one in labels if one not in by_name | by_number), None)
        if neither is None:
            raise UserError(
                f"{about}: label {wrong['number']} is the name of a class of {reference}, but "
                f"{wrong['name']} is none; give all labels by name, or all by number from 0"
            )
        raise UserError(f"{about} has class {neither}, but {reference} has {_listed(names)}")
    chosen = by_name if wrong["name"] is None else by_number
    return torch.tensor([chosen[label] for label in labels])


def _first_beside(labels: Sequence[str], known: dict[str, int]) -> str | None:
    return next((label for label in labels if label not in known), None)


def _listed(names: Sequence[str]) -> str:
    more = f", ... ({len(names)} in all)" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more
