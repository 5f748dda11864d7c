"""Train, val and test: how folders and shards name them, and how a missing one is carved."""

import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence

from pqvae.data.sample import Sample, Split
from pqvae.errors import UserError

_NAMES: dict[Split, tuple[str, ...]] = {
    "train": ("train", "training", "trainval"),
    "val": ("val", "valid", "validation", "dev", "devel", "development"),
    "test": ("test", "testing", "eval", "evaluation"),
}
_WORDS: dict[str, Split] = {word: split for split, words in _NAMES.items() for word in words}
# What else may stand in the name of a split that is no class: train_images, Train Set, my-test-2.
_FILLERS = frozenset(
    ("set sets x data dataset split image images img imgs jpg jpeg png photos pictures").split()
)
_WORD_STARTS = re.compile(r"(?<=[a-z])(?=[A-Z])|[\W\d_]+")  # trainImages, train_images, train2017
# A split that a source lacks: the train samples whose key hashes into this interval of [0, 1).
_CARVED: dict[Split, tuple[float, float]] = {"test": (0.0, 0.10), "val": (0.10, 0.15)}


def split_of(name: str) -> Split | None:
    """The split that this name of a folder says, and says nothing else; None for any other."""
    found, others = _read(name)
    return _WORDS[found] if found and not others - _FILLERS else None


def split_folders(names: Iterable[str], place: str) -> dict[str, Split]:
    """Which of the folders beside one another are splits: all of them, or none.

    A name may hold the word for its split among others (``seg_train``) where a name beside it holds
    the word for another split; a lone one must say nothing else (``train2017``, ``train_images``).

    Args:
        names: Of all folders that hold images.
        place: Where they lie, for messages.

    Raises:
        UserError: It is unclear whether they are splits or classes, or which split one is.
    """
    read = {name: _read(name)[0] for name in sorted(names)}
    words = {name: word for name, word in read.items() if word}
    if len({_WORDS[word] for word in words.values()}) < 2:
        words = {name: word for name, word in words.items() if split_of(name)}
    others = [name for name in read if name not in words]
    if words and others:
        split, other = next(iter(words)), others[0]
        raise UserError(
            f"{place}: {split} stands beside {other}; if all are classes, put them into a folder "
            f"named train; if {split} is a split, move {other} out"
        )
    _check_words(words, place)
    by_split: dict[Split, str] = {}
    for name, word in words.items():
        if (first := by_split.setdefault(_WORDS[word], name)) != name:
            raise UserError(
                f"{place}: both {first} and {name} are {_WORDS[word]}; join them, or move one out"
            )
    return {name: _WORDS[word] for name, word in words.items()}


def split_shards(names: Iterable[str], place: str) -> dict[str, Split | None]:
    """The split that stands as a word of its own in the name of each shard: in all, or in none.

    Raises:
        UserError: Only some name their split, or one names two.
    """
    words = {name: _read(name)[0] for name in names}
    splits = {name: _WORDS[word] if word else None for name, word in words.items()}
    bare = [name for name, split in splits.items() if split is None]
    if bare and len(bare) < len(splits):
        raise UserError(
            f"{place}: {bare[0]} does not name its split, as other shards do; give "
            "every shard's name the word train, val or test, or none's"
        )
    _check_words({name: word for name, word in words.items() if word}, place)
    return splits


def _read(name: str) -> tuple[str | None, set[str]]:
    """The one word for a split in a name, and the other words."""
    words = {word.lower() for word in _WORD_STARTS.split(name) if word}
    for word in list(words):  # trainset
        for filler in _FILLERS:
            if word.removesuffix(filler) in _WORDS:
                words = words - {word} | {word.removesuffix(filler)}
    found = words & _WORDS.keys()
    return (found.pop(), words - _WORDS.keys()) if len(found) == 1 else (None, words)


def _check_words(words: Mapping[str, str], place: str) -> None:
    """``eval`` is test, as on most hubs; beside a test it may as well be val."""
    evals = [name for name, word in words.items() if word in ("eval", "evaluation")]
    tests = [name for name, word in words.items() if word in ("test", "testing")]
    if evals and tests:
        raise UserError(
            f"{place}: {evals[0]} could be val or test, as {tests[0]} is there; rename it to val, "
            "or leave one out"
        )


def carve(samples: Mapping[Split, Sequence[Sample]]) -> dict[Split, Sequence[Sample]]:
    """Fill the splits that are missing from train, where there is one.

    The hash of its key alone decides where a sample goes: neither the order of the files nor the
    machine nor other samples matter.
    """
    missing = {split: bounds for split, bounds in _CARVED.items() if split not in samples}
    if "train" not in samples or not missing:
        return dict(samples)
    carved: dict[Split, list[Sample]] = {"train": [], **{split: [] for split in missing}}
    for sample in samples["train"]:
        digest = hashlib.sha256(sample.key.encode("utf-8", "surrogateescape")).digest()
        fraction = int.from_bytes(digest[:8]) / 2**64
        split: Split = "train"
        for candidate, (low, high) in missing.items():
            if low <= fraction < high:
                split = candidate
        carved[split].append(sample)
    return {**samples, **carved}
