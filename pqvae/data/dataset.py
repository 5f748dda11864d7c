"""Every source of images as one indexable view: image i, with its key and its label.

A source is first listed as *samples* (key, label, where the encoded bytes lie), then put into
splits, then decoded: once, into memory, where it fits, else whenever it is asked for.
"""

import functools
import hashlib
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from pqvae.console import say
from pqvae.data.config import NAMED, DataConfig
from pqvae.data.decoding import REREAD, DecodedOnDemand, decode_all
from pqvae.data.sample import SPLITS, Listing, Sample, Split
from pqvae.data.sources import SOURCES
from pqvae.data.splits import carve
from pqvae.errors import UserError

IN_MEMORY_BYTES = 1 << 30  # decoded images up to this stay in memory


class ImageDataset:
    """One split of a data set; ``open_dataset`` makes it.

    Attributes:
        name: The source and the split, for messages.
        keys: A name for each image, unique in the split; the images are in the order of their keys.
        labels: int64 (n,), indices into ``class_names``; None where the images have no classes.
        image_size: Height and width of the images, in pixels.
        class_names: The classes of all splits; sorted, or in the order of the shards' classes.txt.
        no_flip_classes: The classes that a mirror would falsify, as far as the source knows.
        carved: Whether it was carved out of train, as the source has no such split.
        digests: The sha256 of each image's encoded bytes; empty where they are decoded on demand.
        content_hash: Changes when an image, a key, a label or the image size does: sha256 over the
            image size and each image's key, label and sha256 of its encoded bytes. For a data set
            that is decoded on demand, the size of the encoded image stands for its sha256, as
            reading every byte first would be slow.
    """

    name: str
    keys: tuple[str, ...]
    labels: Tensor | None
    image_size: int
    class_names: tuple[str, ...]
    no_flip_classes: tuple[str, ...]
    carved: bool
    digests: tuple[str, ...]
    content_hash: str

    def __init__(
        self,
        name: str,
        samples: Sequence[Sample],
        image_size: int,
        class_names: tuple[str, ...],
        no_flip_classes: tuple[str, ...] = (),
    ) -> None:
        samples = sorted(samples, key=lambda sample: sample.key)
        self.name, self.carved, self.digests = name, False, ()
        self.image_size = image_size
        self.class_names, self.no_flip_classes = class_names, no_flip_classes
        self._images: Tensor | DecodedOnDemand
        if len(samples) * 3 * image_size**2 <= IN_MEMORY_BYTES:
            self._images, samples, digests = decode_all(name, samples, image_size)
            self.digests = tuple(digests)
        else:
            self._images = DecodedOnDemand(name, samples, image_size)
            digests = [f"{sample.size}{REREAD}" for sample in samples]
        self.keys = tuple(sample.key for sample in samples)
        indices = {class_name: index for index, class_name in enumerate(class_names)}
        self.labels = None
        if samples[0].label is not None:
            self.labels = torch.tensor([indices[sample.label or ""] for sample in samples])
        lines = [f"image_size {image_size}"] + [
            f"{sample.key}\0{digest}\0{indices.get(sample.label or '')}\0{sample.label}"
            for sample, digest in zip(samples, digests, strict=True)
        ]
        self.content_hash = _hash(lines)
        self._earlier_hash = _hash([line.replace(f"{REREAD}\0", "\0", 1) for line in lines])

    def __len__(self) -> int:
        return len(self.keys)

    def matches(self, content_hash: str) -> bool:
        """Whether a recorded hash of the content is this one's.

        That of an earlier version is, too, which decoded JPEGs at reduced size; then it is said
        that the images read differently now.
        """
        if content_hash == self._earlier_hash != self.content_hash:
            say(
                f"{self.name}: recorded by an earlier version, which decoded JPEGs less exactly; "
                "they read a little differently now, and so may figures"
            )
            return True
        return content_hash == self.content_hash

    def images(self, indices: Sequence[int] | Tensor) -> Tensor:
        """Images by index; may be called by several threads at once.

        A damaged image that is met here (only where images are decoded on demand; others were
        decoded when the data set was opened) is named on stderr. The next readable one of its
        class stands in, the same one whenever it is asked for.

        Args:
            indices: (B,), each in [0, n).

        Returns:
            uint8 (B, 3, image_size, image_size).

        Raises:
            UserError: Over 1% of the images have turned out damaged, or all of a class.
        """
        return self._images[torch.as_tensor(indices, dtype=torch.int64)]


def _hash(lines: Sequence[str]) -> str:
    return hashlib.sha256("\n".join(lines).encode("utf-8", "surrogateescape")).hexdigest()


def open_splits(config: DataConfig, splits: Sequence[Split] = SPLITS) -> dict[Split, ImageDataset]:
    """Open several splits of a data set, which is listed once; raises as ``open_dataset`` does."""
    opened = _Opened(config)
    return {split: opened.dataset(split) for split in splits}


def open_dataset(config: DataConfig, split: Split) -> ImageDataset:
    """Open one split of a data set.

    A split that the source has (folders or shards named train, val, test) is used as it is. One
    that it lacks is carved from train by the hash of each key (test 10%, val 5%), so that it
    depends on neither the order of the files nor the machine. A source without splits is all train.

    Args:
        config: Where the images are, and their size.
        split: Which split.

    Raises:
        UserError: There is no such data, it is not what it seems, or over 1% of it is damaged.
            Fewer damaged images are left out and named on stderr.
    """
    return _Opened(config).dataset(split)


def open_whole(config: DataConfig) -> dict[Split, Callable[[], ImageDataset]]:
    """The splits that a source has of its own; each is opened when it is called for.

    None is carved from another, as ``open_dataset`` does, so that all images of each are there. A
    source without splits is all train, and bears the name of the source alone.
    """
    opened = _Opened(config, carved=False)
    return {split: functools.partial(opened.dataset, split) for split in opened.splits}


class _Opened:
    """A data set that is listed, but not read."""

    def __init__(self, config: DataConfig, *, carved: bool = True) -> None:
        self.config, self.listing = config, list_images(config.path)
        for part in self.listing.samples.values():
            _check_labels(config.path, part)
        self.splits = carve(self.listing.samples) if carved else dict(self.listing.samples)

    def dataset(self, split: Split) -> ImageDataset:
        path = self.config.path
        if split not in self.splits:
            raise UserError(f"{path}: has no train images, only {' and '.join(self.splits)}")
        samples = self.splits[split]
        if not samples:
            raise UserError(
                f"{path}: no images in the {split} split; give it some, or more images in all"
            )
        dataset = ImageDataset(
            path if set(self.splits) == {"train"} else f"{path} {split}",
            samples,
            self.config.image_size,
            _class_names(self.listing),
            self.listing.no_flip_classes,
        )
        dataset.carved = split not in self.listing.samples
        return dataset


def list_images(path: str) -> Listing:
    """What is at the value of ``data.path``, and say what its source has to note.

    Raises:
        UserError: No source can read it, or something is wrong there.
    """
    for source in SOURCES.values():
        listing = source(path)
        if listing is not None:
            if path in NAMED and Path(path).exists():
                say(f"{path}: the built-in set, not the {path} that lies here, which is ./{path}")
            for note in listing.notes:
                say(note)
            return listing
    there = Path(path).expanduser().exists()
    problem = "no source of images can read this" if there else "no such file or folder"
    *words, last = SOURCES
    raise UserError(f"{path}: {problem}; give {', '.join(words)}, or {last}")


def _check_labels(path: str, samples: Sequence[Sample]) -> None:
    bare = [sample for sample in samples if sample.label is None]
    if bare and len(bare) < len(samples):
        raise UserError(
            f"{path}: {len(bare)} of {len(samples)} images have no class (first {bare[0].place}); "
            "put all images in class folders, or none"
        )


def _class_names(listing: Listing) -> tuple[str, ...]:
    """The classes of all splits: those whose order the source knows, then the others, sorted."""
    labels = {sample.label for part in listing.samples.values() for sample in part}
    others = {label for label in labels if label is not None} - set(listing.class_names)
    return (*listing.class_names, *sorted(others, key=_natural_order))


def _natural_order(name: str) -> tuple[int, str]:
    return (int(name), name) if name.isascii() and name.isdecimal() else (sys.maxsize, name)
