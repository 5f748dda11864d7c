"""Samples as they were found, put into splits and classes."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from pqvae.data.labels import Said, class_name, listed_classes, settle_labels
from pqvae.data.layout import Folders, class_depths, find_splits
from pqvae.data.sample import Listing, Sample, Split
from pqvae.errors import UserError


def arrange(
    place: str, found: Mapping[Split | None, Sequence[Sample]], lists: Iterable[Path] = ()
) -> Listing:
    """Put samples into splits and classes.

    Args:
        place: Where they were found, for messages.
        found: By the split that the name of a shard says; None where it says none. Each key is the
            path from the root, each label what a file beside the image says.
        lists: Files that may list the names of classes; the first that is there counts.

    Raises:
        UserError: What is said of splits or classes is unclear, or disagrees.
    """
    if None in found:
        found = _split_by_folders(place, found[None])
    depths = class_depths(
        place, {split: {_folders(s) for s in samples} for split, samples in found.items()}
    )
    names_file = next((path for path in lists if path.exists()), None)
    names = listed_classes(names_file) if names_file else ()
    said = [
        Said(sample.place, _folder_label(sample, depths[split]), sample.label)
        for split, samples in found.items()
        for sample in samples
    ]
    labels, order = settle_labels(said, names, names_file)
    remaining = iter(labels)
    by_split: dict[Split, Sequence[Sample]] = {}
    for split, samples in found.items():
        labelled = [replace(sample, label=next(remaining)) for sample in samples]
        by_split[split or "train"] = _with_own_keys(place, labelled)
    return Listing(by_split, order)


def _split_by_folders(
    place: str, samples: Sequence[Sample]
) -> dict[Split | None, Sequence[Sample]]:
    layout = find_splits(place, {_folders(sample) for sample in samples})
    if not layout.splits:
        return {None: samples}
    by_split: dict[Split | None, list[Sample]] = {}
    for sample in samples:
        key = sample.key.split("/", layout.above)[-1]
        split = layout.splits[_folders(sample)]
        by_split.setdefault(split, []).append(replace(sample, key=key))
    return {**by_split}


def _folders(sample: Sample) -> Folders:
    return tuple(sample.key.split("/")[:-1])


def _folder_label(sample: Sample, depth: int) -> str | None:
    folders = _folders(sample)
    return class_name(folders[depth]) if len(folders) > depth else None


def _with_own_keys(place: str, samples: Sequence[Sample]) -> Sequence[Sample]:
    """The samples of a split with keys that are unique: each shard may count from 0."""
    if len({sample.key for sample in samples}) == len(samples):
        return samples
    named = [replace(s, key=f"{Path(str(s.source)).stem}/{s.key}") for s in samples]
    if len({sample.key for sample in named}) < len(named):
        raise UserError(f"{place}: two shards of one name hold the same keys; rename one")
    return named
