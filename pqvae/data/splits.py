"""Train, val and test: how folders and shards name them, and how a missing one is carved."""

import hashlib
import re
from collections.abc import Mapping, Sequence

from pqvae.data.sample import Sample, Split

_NAMES: dict[str, Split] = {
    "train": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "test": "test",
}
_IN_SHARD_NAME = re.compile(r"(?:^|[^a-z])(train|validation|valid|val|test)(?![a-z])")
# A split that a source lacks: the train samples whose key hashes into this interval of [0, 1).
_CARVED: dict[Split, tuple[float, float]] = {"test": (0.0, 0.10), "val": (0.10, 0.15)}


def split_of_folder(name: str) -> Split | None:
    """The split that a folder of this name holds; None for any other folder."""
    return _NAMES.get(name.lower())


def split_of_shard(name: str) -> Split | None:
    """The split that stands as a word of its own in the name of a shard."""
    match = _IN_SHARD_NAME.search(name.lower())
    return _NAMES[match[1]] if match else None


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
