"""What a run says of its data at the start, so that a wrong reading is seen before the training."""

from collections.abc import Mapping

from pqvae.console import say
from pqvae.data.dataset import ImageDataset
from pqvae.data.passed_over import MAX_NOTE, shorten
from pqvae.data.sample import Split


def say_splits(splits: Mapping[Split, ImageDataset]) -> None:
    """Say how many images each split has, how they were read, and what is odd about them.

    Args:
        splits: Train, val and test of one data set.
    """
    for line in describe_splits(splits):
        say(line)


def describe_splits(splits: Mapping[Split, ImageDataset]) -> list[str]:
    """The lines of ``say_splits``: the first one always, others where there is something to say."""
    carved = {split: " (carved)" if dataset.carved else "" for split, dataset in splits.items()}
    sizes = [f"{len(dataset):,} {split}{carved[split]}" for split, dataset in splits.items()]
    names = splits["train"].class_names
    classes = f"{len(names)} classes: {', '.join(names)}" if names else "no classes"
    lines = [shorten(f"data: {', '.join(sizes)} images; {classes}", MAX_NOTE)]
    return [*lines, *_odd_labels(splits), *_equal_images(splits)]


def _odd_labels(splits: Mapping[Split, ImageDataset]) -> list[str]:
    train = splits["train"]
    bare = [split for split, dataset in splits.items() if dataset.labels is None]
    if train.labels is None:
        if len(bare) < len(splits):
            other = next(split for split in splits if split not in bare)
            return [
                f"{train.name} has no classes, but {other} has; put its images into class folders, "
                "too, or what is trained on them is unconditional"
            ]
        return []
    if bare:
        return [
            f"{train.name} has classes, but {' and '.join(bare)} none; put these into class "
            "folders, too, or they are judged without a class"
        ]
    known = set(train.labels.tolist())
    strange = {
        train.class_names[label]: split
        for split, dataset in splits.items()
        if dataset.labels is not None
        for label in dataset.labels.unique().tolist()
        if label not in known
    }
    if not strange:
        return []
    name, split = next(iter(strange.items()))
    more = f" (and {len(strange) - 1} more)" if len(strange) > 1 else ""
    line = f"{train.name} has no image of class {name}{more}, but {split} has; is it spelled alike?"
    return [shorten(line, MAX_NOTE)]


def _equal_images(splits: Mapping[Split, ImageDataset]) -> list[str]:
    train = dict(zip(splits["train"].digests, splits["train"].keys, strict=False))
    counts: list[str] = []
    pairs: list[tuple[str, str]] = []  # of a held-out image and a training image, by their keys
    for split, dataset in splits.items():
        if split == "train":
            continue
        keys = zip(dataset.digests, dataset.keys, strict=False)
        equal = [(key, train[digest]) for digest, key in keys if digest in train]
        if equal:
            counts.append(f"{len(equal):,} of {len(dataset):,} {split}")
            pairs += equal
    if not counts:
        return []
    first = " = ".join(shorten(key, 40) for key in pairs[0])
    return [
        f"{' and '.join(counts)} images equal training images ({first}); they say nothing of new "
        "ones: remove copies, or put equal ones into one split by hand"
    ]
