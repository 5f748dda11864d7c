"""Every source of images as one indexable view: image i, with its key and its label.

Sources: the built-in emoji, CIFAR-10, a folder of images, a folder of class folders, WebDataset
shards. A source is first listed as *samples* (key, label, where the encoded bytes lie), then put
into splits, then decoded: once, into memory, where it fits, else whenever it is asked for.

Nothing that is read here is ever unpickled, executed or extracted to disk. (CIFAR-10 is the one
exception: its files are pickles, which torchvision reads only after checking their digest.)
"""

import glob
import hashlib
import http.client
import os
import re
import socket
import stat
import sys
import threading
import urllib.error
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from pqvae.data.config import SOURCES_IN_WORDS, DataConfig
from pqvae.data.sample import Sample, Split, is_image
from pqvae.data.sources.shards import list_shards
from pqvae.errors import UserError
from pqvae.files import cache_root, one_process
from pqvae.images import ImageError, decode_image

T = TypeVar("T")

IN_MEMORY_BYTES = 1 << 30  # decoded images up to this stay in memory
MAX_UNREADABLE = 0.01  # a larger share of damaged images is not an accident

_REPORTING = threading.Lock()  # not in the data set, which must be picklable

_BUILT_IN = Path(__file__).parent / "emoji"
_SPLIT_FOLDERS: dict[str, Split] = {
    "train": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "test": "test",
}
_SPLIT_IN_NAME = re.compile(r"(?:^|[^a-z])(train|validation|valid|val|test)(?![a-z])")
# A split that a source lacks: the train samples whose key hashes into this interval of [0, 1).
_CARVED: dict[Split, tuple[float, float]] = {"test": (0.0, 0.10), "val": (0.10, 0.15)}


class ImageDataset:
    """One split of a data set; ``open_dataset`` makes it.

    Attributes:
        name: The source and the split, for messages.
        keys: A name for each image, unique in the split; the images are in the order of their keys.
        labels: int64 (n,), indices into ``class_names``; None where the images have no classes.
        image_size: Height and width of the images, in pixels.
        class_names: The classes of all splits; sorted, or in the order of the shards' classes.txt.
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
    content_hash: str

    def __init__(
        self, name: str, samples: Sequence[Sample], class_names: tuple[str, ...], image_size: int
    ) -> None:
        samples = sorted(samples, key=lambda sample: sample.key)
        self.name = name
        self.class_names = class_names
        self.image_size = image_size
        self._images: Tensor | None = None
        self._threads = _threads(samples)
        self._unreadable: dict[int, str] = {}  # met so far, where images are decoded on demand
        if len(samples) * 3 * image_size**2 <= IN_MEMORY_BYTES:
            self._images, samples, digests = _decode_all(name, samples, image_size, self._threads)
        else:
            digests = [str(sample.size) for sample in samples]
        self._samples = samples if self._images is None else ()
        self.keys = tuple(sample.key for sample in samples)
        indices = {class_name: index for index, class_name in enumerate(class_names)}
        self.labels = None
        if samples[0].label is not None:
            self.labels = torch.tensor([indices[sample.label or ""] for sample in samples])
        lines = [f"image_size {image_size}"] + [
            f"{sample.key}\0{digest}\0{indices.get(sample.label or '')}\0{sample.label}"
            for sample, digest in zip(samples, digests, strict=True)
        ]
        text = "\n".join(lines).encode("utf-8", "surrogateescape")
        self.content_hash = hashlib.sha256(text).hexdigest()

    def __len__(self) -> int:
        return len(self.keys)

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
        indices = torch.as_tensor(indices, dtype=torch.int64)
        if self._images is not None:
            return self._images[indices]
        if not len(indices):
            return torch.empty((0, 3, self.image_size, self.image_size), dtype=torch.uint8)
        # A pool per call is cheap beside the decoding, and leaves none behind for a fork to break.
        with ThreadPoolExecutor(self._threads) as pool:
            return torch.stack(list(pool.map(self._decode, indices.tolist())))

    def _decode(self, index: int) -> Tensor:
        label, total = self._samples[index].label, len(self._samples)
        for place in range(index, index + total):
            sample = self._samples[place % total]
            if sample.label != label:
                continue
            try:
                return decode_image(sample.read(), self.image_size)
            except ImageError as error:
                self._leave_out(place % total, error)
        raise UserError(f"{self.name}: no image of class {label} can be read; mend or remove them")

    def _leave_out(self, index: int, error: ImageError) -> None:
        sample, total = self._samples[index], len(self._samples)
        another = "another" if sample.label is None else "another of its class"
        with _REPORTING:
            known = index in self._unreadable
            self._unreadable.setdefault(index, f"{sample.place} ({error})")
            _check_damage(self.name, list(self._unreadable.values()), total)
            if not known:
                print(
                    f"{self.name}: left out {len(self._unreadable)} of {total} images so far: "
                    f"{self._unreadable[index]}; {another} stands in",
                    file=sys.stderr,
                )


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
    splits, listed_classes = _find_samples(config.path)
    splits = _carve(splits)
    if split not in splits:
        raise UserError(f"{config.path}: has no train images, only {' and '.join(splits)}")
    samples = splits[split]
    if not samples:
        raise UserError(
            f"{config.path}: no images in the {split} split; give it some, or more images in all"
        )
    _check_labels(config.path, samples)
    names = {
        sample.label for part in splits.values() for sample in part if sample.label is not None
    }
    class_names = (*listed_classes, *sorted(names - set(listed_classes), key=_natural_order))
    return ImageDataset(f"{config.path} {split}", samples, class_names, config.image_size)


def _natural_order(name: str) -> tuple[int, str]:
    return (int(name), name) if name.isascii() and name.isdecimal() else (sys.maxsize, name)


def _carve(splits: dict[Split, list[Sample]]) -> dict[Split, list[Sample]]:
    missing = {split: bounds for split, bounds in _CARVED.items() if split not in splits}
    if "train" not in splits or not missing:
        return splits
    carved: dict[Split, list[Sample]] = {**splits, "train": [], **{split: [] for split in missing}}
    for sample in splits["train"]:
        digest = hashlib.sha256(sample.key.encode("utf-8", "surrogateescape")).digest()
        fraction = int.from_bytes(digest[:8]) / 2**64
        split: Split = "train"
        for candidate, (low, high) in missing.items():
            if low <= fraction < high:
                split = candidate
        carved[split].append(sample)
    return carved


def _check_labels(path: str, samples: Sequence[Sample]) -> None:
    bare = [sample for sample in samples if sample.label is None]
    if bare and len(bare) < len(samples):
        raise UserError(
            f"{path}: {len(bare)} of {len(samples)} images have no class (first {bare[0].place}); "
            "put all images in class folders, or none"
        )


# Sources: what there is, as samples by split.


def _find_samples(path: str) -> tuple[dict[Split, list[Sample]], tuple[str, ...]]:
    """The samples of each split that the source has of its own, and the classes it lists."""
    if path == "emoji":
        return _shard_samples(path, sorted(_BUILT_IN.glob("emoji-*.tar")))
    if path == "cifar10":
        return _cifar10_samples()
    place = Path(path).expanduser()
    if place.is_dir():
        return _folder_samples(place)
    if place.exists():
        if not place.is_file() or place.suffix != ".tar":
            raise UserError(f"{path}: not a folder and not a .tar shard; give {SOURCES_IN_WORDS}")
        return _shard_samples(path, [place])
    if not any(wildcard in path for wildcard in "*?["):
        raise UserError(f"{path}: no such file or folder; give {SOURCES_IN_WORDS}")
    matches = sorted(Path(match) for match in glob.glob(str(place)))
    if not matches:
        raise UserError(f"{path}: matches no file; give a glob such as 'folder/train-*.tar'")
    for match in matches:
        if not match.is_file() or match.suffix != ".tar":
            raise UserError(f"{path}: matches {match}, which is not a .tar shard")
    return _shard_samples(path, matches)


def _folder_samples(folder: Path) -> tuple[dict[Split, list[Sample]], tuple[str, ...]]:
    split_folders = _split_folders(folder)
    if not split_folders:
        if shards := _shards_in(folder):
            return _shard_samples(str(folder), shards)
        return {"train": _image_files(folder)}, ()
    splits: dict[Split, list[Sample]] = {}
    listed: tuple[str, ...] = ()
    for split, subfolder in split_folders.items():
        if shards := _shards_in(subfolder):
            splits[split], found = list_shards(shards, folder)
            listed = listed or found
        else:
            splits[split] = _image_files(subfolder)
    return splits, listed


def _split_folders(folder: Path) -> dict[Split, Path]:
    """The folders named train, val, test; none where these are classes among others."""
    # Links count here: a split may well lie on another disk, and one step down cannot loop.
    folders = [entry for entry in sorted(folder.iterdir()) if entry.is_dir() and _is_visible(entry)]
    splits: dict[Split, Path] = {}
    for entry in folders:
        split = _SPLIT_FOLDERS.get(entry.name.lower())
        if split is not None:
            if split in splits:
                raise UserError(f"{folder}: both {splits[split].name} and {entry.name} are {split}")
            splits[split] = entry
    if "train" not in splits and len(splits) < len(folders):
        return {}
    for entry in sorted(folder.iterdir()) if splits else ():
        if entry in splits.values() or not _is_visible(entry):
            continue
        is_folder = entry.is_dir() and not entry.is_symlink()
        if is_image(entry) or entry.suffix == ".tar" or (is_folder and _walk(entry)[0]):
            raise UserError(
                f"{folder}: {entry.name} stands beside {next(iter(splits.values())).name}, so it "
                "is unclear whether folders are splits or classes; move it out"
            )
    return splits


def _shards_in(folder: Path) -> list[Path]:
    shards = [path for path in sorted(folder.glob("*.tar")) if path.is_file() and _is_visible(path)]
    if shards and (images := _walk(folder)[0]):
        raise UserError(
            f"{folder}: holds shards ({shards[0].name}) and images ({images[0]}); move one kind "
            "out, or give the shards as a glob"
        )
    return shards


def _is_visible(path: Path) -> bool:
    return not path.name.startswith(".") and path.name != "__MACOSX"


def _walk(folder: Path) -> tuple[list[Path], list[Path], list[Path]]:
    """Images, plain subfolders and linked subfolders, relative to the folder; links end there."""

    def stop(error: OSError) -> None:  # os.walk would pass over a folder that it may not read
        raise error

    images: list[Path] = []
    plain: list[Path] = []
    linked: list[Path] = []
    for parent, folders, files in os.walk(folder, onerror=stop):
        here = Path(parent).relative_to(folder)
        folders[:] = sorted(name for name in folders if _is_visible(Path(name)))
        for name in folders:
            (linked if os.path.islink(os.path.join(parent, name)) else plain).append(here / name)
        visible = (here / name for name in files if _is_visible(Path(name)))
        images += [path for path in visible if is_image(path)]
    return sorted(images), plain, linked


def _image_files(folder: Path) -> list[Sample]:
    images, plain, linked = _walk(folder)
    samples: list[Sample] = []
    for image in images:
        size = 0
        try:
            status = (folder / image).stat()
            if not stat.S_ISREG(status.st_mode):
                continue  # reading a pipe or a device could wait for ever
            size = status.st_size
        except OSError:
            pass  # a dangling link: reading will fail, and be counted and named
        label = image.parts[0] if len(image.parts) > 1 else None
        samples.append(Sample(image.as_posix(), label, folder / image, 0, size))
    note = f"; linked folders are not followed ({linked[0]})" if linked else ""
    if not samples:
        raise UserError(f"{folder}: no images and no .tar shards in this folder{note}")
    labels = {sample.label for sample in samples}
    for entry in plain:
        if labels != {None} and len(entry.parts) == 1 and entry.name not in labels:
            raise UserError(f"{folder}: class folder {entry.name} has no images; fill or remove it")
    _check_labels(str(folder), samples)
    if linked:
        print(f"{folder}: left out{note.removeprefix(';')}", file=sys.stderr)
    return samples


def _shard_samples(
    path: str, shards: Sequence[Path]
) -> tuple[dict[Split, list[Sample]], tuple[str, ...]]:
    by_split: dict[Split | None, list[Path]] = {}
    for shard in shards:
        match = _SPLIT_IN_NAME.search(shard.name.lower())
        split = _SPLIT_FOLDERS[match[1]] if match else None
        by_split.setdefault(split, []).append(shard)
    if None in by_split and len(by_split) > 1:
        raise UserError(
            f"{path}: {by_split[None][0].name} does not name its split, as other shards do; give "
            "every shard's name the word train, val or test, or none's"
        )
    splits: dict[Split, list[Sample]] = {}
    listed: tuple[str, ...] = ()
    for split, group in by_split.items():
        splits[split or "train"], found = list_shards(group, shards[0].parent)
        listed = listed or found
    return splits, listed


# CIFAR-10.


def _cifar10_samples() -> tuple[dict[Split, list[Sample]], tuple[str, ...]]:
    from torchvision.datasets import CIFAR10  # seconds to import, and rarely needed

    root = cache_root() / "cifar10"

    def read(download: bool = False) -> dict[Split, CIFAR10]:
        train = CIFAR10(root, train=True, download=download)
        return {"train": train, "test": CIFAR10(root, train=False)}

    try:
        parts = read()
    except RuntimeError:  # not there yet, or damaged
        root.mkdir(parents=True, exist_ok=True)
        with one_process(root.with_name("cifar10.lock")):
            try:
                parts = read()  # another process may have been faster
            except RuntimeError:
                print(f"cifar10: downloading 170 MB from {CIFAR10.url} to {root}", file=sys.stderr)
                parts = _download(CIFAR10.url, read)
    splits: dict[Split, list[Sample]] = {}
    for split in ("train", "test"):
        part = parts[split]
        splits[split] = []
        for index, (pixels, label) in enumerate(zip(part.data, part.targets, strict=True)):
            data = b"P6 32 32 255\n" + pixels.tobytes()  # a PPM file: then it is like any other
            key = f"{index:05d}"
            splits[split].append(Sample(key, part.classes[label], data, 0, len(data)))
    return splits, ()


def _download(url: str, read: Callable[[bool], T]) -> T:
    timeout = socket.getdefaulttimeout()
    socket.setdefaulttimeout(5)  # seconds without an answer; torchvision sets none
    try:
        return read(True)
    except (
        urllib.error.URLError,
        http.client.HTTPException,
        ConnectionError,
        TimeoutError,
        RuntimeError,
    ) as error:
        raise UserError(
            f"cifar10: cannot be downloaded from {url} ({getattr(error, 'reason', error)}); "
            "without internet, give a copy of it, as images or shards, by data.path=FOLDER"
        ) from error
    finally:
        socket.setdefaulttimeout(timeout)


# Decoding.


def _threads(samples: Sequence[Sample]) -> int:
    """How many threads decode: of images of a few kB, more than two only wait for Python's lock."""
    mean_bytes = sum(max(sample.size, 0) for sample in samples) // len(samples)
    return min(16, os.cpu_count() or 1, max(2, mean_bytes // 1000))


def _decode_all(
    name: str, samples: Sequence[Sample], size: int, threads: int
) -> tuple[Tensor, list[Sample], list[str]]:
    """Decode all images.

    Returns:
        Images uint8 (n, 3, size, size), their samples, and the sha256 of each one's encoded bytes;
        the unreadable ones are left out of all three.
    """
    images = np.empty((len(samples), 3, size, size), np.uint8)

    def decode(chunk: range) -> list[str | ImageError]:
        results: list[str | ImageError] = []
        for index in chunk:
            try:
                data = samples[index].read()
                images[index] = decode_image(data, size).numpy()
                results.append(hashlib.sha256(data).hexdigest())
            except ImageError as error:
                results.append(error)
        return results

    chunks = [range(i, min(i + 64, len(samples))) for i in range(0, len(samples), 64)]
    digests: list[str] = []
    readable: list[int] = []
    unreadable: list[tuple[Sample, ImageError]] = []
    with ThreadPoolExecutor(threads) as pool:  # Pillow decodes outside of Python's lock
        results = pool.map(decode, chunks)
        bar = tqdm(results, f"reading {name}", len(chunks), leave=False, disable=None, delay=2)
        for index, result in enumerate(result for chunk in bar for result in chunk):
            if isinstance(result, ImageError):
                unreadable.append((samples[index], result))
            else:
                readable.append(index)
                digests.append(result)
    tensor = torch.from_numpy(images)
    if unreadable:
        _report(name, unreadable, len(samples))
        tensor = tensor[torch.tensor(readable)]
    return tensor, [samples[index] for index in readable], digests


def _report(name: str, unreadable: Sequence[tuple[Sample, ImageError]], total: int) -> None:
    count = len(unreadable)
    reasons = [f"{sample.place} ({error})" for sample, error in unreadable]
    _check_damage(name, reasons, total)
    more = f"; and {count - 5} more" if count > 5 else ""
    print(
        f"{name}: left out {count} of {total} images: {'; '.join(reasons[:5])}{more}",
        file=sys.stderr,
    )


def _check_damage(name: str, reasons: Sequence[str], total: int) -> None:
    if len(reasons) > MAX_UNREADABLE * total:
        raise UserError(
            f"{name}: {len(reasons)} of {total} images cannot be read, over {MAX_UNREADABLE:.0%}; "
            f"the first is {reasons[0]}; mend or remove them"
        )
