"""How folders lay out images: which names are splits, which are classes, which only lead there.

Only the folders on the way to each image count: they may be on a disk or in a tar.
"""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

from pqvae.data.sample import Split
from pqvae.data.splits import split_folders, split_of
from pqvae.errors import UserError

Folders = tuple[str, ...]  # on the way from the root to an image

# Side by side in sets for segmentation or detection: pictures, and what is to be found in them.
_PICTURES = frozenset("image images img imgs jpegimages leftimg8bit photos pictures rgb".split())
_TARGETS = frozenset(
    (
        "annotation annotations depth edges gt gtfine ground_truth groundtruth label labels mask "
        "masks seg segmentation segmentations segmentationclass segmentationobject target "
        "targets"
    ).split()
)


@dataclass(frozen=True, slots=True)
class SplitLayout:
    """Where the splits stand among the folders.

    Attributes:
        splits: The split of each image's folders; empty where there are no splits.
        above: How many of the folders lead to a split, its own included; 0 where there are none.
        level: The folder in which the splits lie; None where there are none.
    """

    splits: Mapping[Folders, Split]
    above: int = 0
    level: Folders | None = None


def find_splits(place: str, folders: Collection[Folders]) -> SplitLayout:
    """Find the folders that are splits; a lone folder above them is looked through.

    Args:
        place: Where the images lie, for messages.
        folders: Those of each image, () where it lies at the root.

    Raises:
        UserError: It is unclear whether folders are splits or classes; the message says what helps.
    """
    lone = _lone(folders)
    names = _names(folders, len(lone))
    given = [depth for depth, name in enumerate(lone) if split_of(name)]
    # In a lone `train`, folders are classes whatever their names; but all of them may be splits.
    if given and not all(name and split_of(name) for name in names):
        depth = given[-1]
        split = split_of(lone[depth])
        assert split is not None
        return SplitLayout(dict.fromkeys(folders, split), depth + 1, lone[:depth])
    splits = split_folders({name for name in names if name}, "/".join((place, *lone)))
    if not splits:
        return SplitLayout({})
    if None in names:
        raise UserError(
            f"{place}: images lie beside {next(iter(splits))}, which is a split; move them into one"
        )
    by_folders = {each: splits[each[len(lone)]] for each in folders}
    return SplitLayout(by_folders, len(lone) + 1, lone)


def class_depths(
    place: str, by_split: Mapping[Split | None, Collection[Folders]]
) -> dict[Split | None, int]:
    """Which of the folders, counted from 0, names the class, in each split.

    It is the first one, but for lone folders that stand in every split above all else.

    Raises:
        UserError: The folders are no classes: they hold splits, or masks beside pictures.
    """
    lone = {split: _lone(folders) for split, folders in by_split.items()}
    flat = {split for split, folders in by_split.items() if _is_flat(lone[split], folders)}
    common = min((len(names) for split, names in lone.items() if split not in flat), default=0)
    depths = {split: len(names) if split in flat else common for split, names in lone.items()}
    for split, folders in by_split.items():
        _check_classes("/".join((place, *lone[split][: depths[split]])), folders, depths[split])
    return depths


def _is_flat(lone: Folders, folders: Collection[Folders]) -> bool:
    """Whether all images lie in one folder that is no class by its name: ``val/images``."""
    return set(folders) == {lone} and (not lone or lone[-1].lower() in _PICTURES)


def levels(place: str, folders: Collection[Folders]) -> tuple[Folders | None, set[Folders]]:
    """The folder in which the splits lie, and those in which classes lie or a lone folder does."""
    layout = find_splits(place, folders)
    by_split: dict[Split | None, set[Folders]] = {}
    for each in folders:
        by_split.setdefault(layout.splits.get(each), set()).add(each[layout.above :])
    depths = class_depths(place, by_split)
    classes: set[Folders] = set()
    for each in folders:
        last = layout.above + depths[layout.splits.get(each)]
        classes |= {each[:depth] for depth in range(layout.above, min(last + 1, len(each)))}
    return layout.level, classes


def _check_classes(place: str, folders: Collection[Folders], depth: int) -> None:
    classes = sorted({each[depth] for each in folders if len(each) > depth})
    pictures = [name for name in classes if name.lower() in _PICTURES]
    targets = [name for name in classes if name.lower() in _TARGETS]
    if pictures and targets:
        raise UserError(
            f"{place}: {pictures[0]} and {targets[0]} look like pictures and what is to be found "
            f"in them, not like classes; give the pictures alone, or move {targets[0]} out"
        )
    inner: dict[Folders, set[str]] = {}
    for each in folders:
        for below in range(depth + 1, len(each)):
            inner.setdefault(each[depth:below], set()).add(each[below])
    for parent, names in sorted(inner.items()):
        splits = sorted(name for name in names if split_of(name))
        if len({split_of(name) for name in splits}) > 1:
            raise UserError(
                f"{place}: splits ({', '.join(splits[:3])}) lie in {'/'.join(parent)}; put them "
                f"above the classes, as in {splits[-1]}/{parent[0]}"
            )


def _lone(folders: Iterable[Folders]) -> Folders:
    """The folders that all images share."""
    shared: Folders | None = None
    for each in folders:
        if shared is None:
            shared = each
        while each[: len(shared)] != shared:
            shared = shared[:-1]
    return shared or ()


def _names(folders: Iterable[Folders], depth: int) -> set[str | None]:
    return {each[depth] if len(each) > depth else None for each in folders}
