"""Every source of images as one indexable view: image i, with its key and its label.

Sources: the built-in emoji, CIFAR-10, a folder of images, a folder of class folders, WebDataset
shards. A source is first listed as *samples* (key, label, where the encoded bytes lie), then put
into splits, then decoded: once, into memory, where it fits, else whenever it is asked for.

Nothing that is read here is ever unpickled, executed or extracted to disk. (CIFAR-10 is the one
exception: its files are pickles, which torchvision reads only after checking their digest.)
"""

import functools
import glob
import hashlib
import http.client
import os
import re
import socket
import stat
import sys
import tarfile
import urllib.error
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm
from webdataset.tariterators import base_plus_ext

from pqvae.cli import UserError
from pqvae.images import ImageError, decode_image

Split = Literal["train", "val", "test"]

IMAGE_EXTENSIONS = frozenset(
    ["jpg", "jpeg", "jpe", "png", "webp", "bmp", "gif", "tif", "tiff", "ppm", "pgm", "pbm"]
)
IN_MEMORY_BYTES = 1 << 30  # decoded images up to this stay in memory
MAX_UNREADABLE = 0.01  # a larger share of damaged images is not an accident

_BUILT_IN = Path(__file__).parent / "data"
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
_SHARD_META = re.compile(r"__[^/]*__($|/)")  # webdataset passes these members over, too
_SOURCES = "emoji, cifar10, a folder of images or of .tar shards, or a glob of shards"


@dataclass(frozen=True, kw_only=True, slots=True)
class DataConfig:
    path: str = (
        "emoji"  # emoji | cifar10 | folder of images, class folders, shards | glob of shards
    )
    image_size: int = 32  # pixels; images of other sizes are centre-cropped and resized
    shift: int = 2  # augmentation: random shifts by up to this many pixels ...
    shift_share: float = 0.25  # ... of this share of the images
    flip: bool = True  # augmentation: random horizontal flip
    no_flip_classes: tuple[str, ...] = ("flags", "symbols")  # classes that a flip would falsify

    def __post_init__(self) -> None:
        if not self.path:
            raise ValueError(f"data.path is empty; give {_SOURCES}")
        if self.image_size < 8:
            raise ValueError(f"data.image_size is {self.image_size}, but must be at least 8")
        if not 0 <= self.shift <= self.image_size // 2:
            raise ValueError(f"data.shift is {self.shift}, but must be 0 to half of the image size")
        if not 0 <= self.shift_share <= 1:
            raise ValueError(f"data.shift_share is {self.shift_share}, but must be 0 to 1")


@dataclass(frozen=True, slots=True)
class _Sample:
    key: str
    label: str | None
    source: Path | bytes  # the file or shard that holds the encoded image; or the encoded image
    offset: int
    size: int  # bytes

    @property
    def place(self) -> str:  # for messages
        # No member of a tar lies at offset 0, where its first header is.
        shard = self.source.name if isinstance(self.source, Path) and self.offset else ""
        key = self.key if self.key.isprintable() else repr(self.key)
        return f"{shard}: {key}" if shard else key

    def read(self) -> bytes:
        if isinstance(self.source, bytes):
            return self.source
        try:
            with open(self.source, "rb") as file:
                file.seek(self.offset)
                data = file.read(self.size)
        except OSError as error:
            raise ImageError(error.strerror or str(error)) from error
        if len(data) < self.size:
            raise ImageError("shorter than when it was listed")
        return data


class ImageDataset:
    """One split of a data set; ``open_dataset`` makes it.

    Attributes:
        name: The source and the split, for messages.
        keys: A name for each image, unique in the split; the images are in the order of their keys.
        labels: int64 (n,), indices into ``class_names``; None where the images have no classes.
        class_names: The classes of all splits; sorted, or in the order of the shards' classes.txt.
        content_hash: Changes when an image, a key, a label or the image size does: sha256 over the
            image size and each image's key, label and sha256 of its encoded bytes. For a data set
            that is decoded on demand, the size of the encoded image stands for its sha256, as
            reading every byte first would be slow.
    """

    name: str
    keys: tuple[str, ...]
    labels: Tensor | None
    class_names: tuple[str, ...]
    content_hash: str

    def __init__(
        self, name: str, samples: Sequence[_Sample], class_names: tuple[str, ...], image_size: int
    ) -> None:
        samples = sorted(samples, key=lambda sample: sample.key)
        self.name = name
        self.class_names = class_names
        self._image_size = image_size
        self._images: Tensor | None = None
        if len(samples) * 3 * image_size**2 <= IN_MEMORY_BYTES:
            self._images, samples, digests = _decode_all(name, samples, image_size)
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
        """Images by index.

        Args:
            indices: (B,), each in [0, n).

        Returns:
            uint8 (B, 3, image_size, image_size).

        Raises:
            UserError: An image cannot be decoded (only where images are decoded on demand; others
                were decoded when the data set was opened).
        """
        indices = torch.as_tensor(indices, dtype=torch.int64)
        if self._images is not None:
            return self._images[indices]
        if not len(indices):
            return torch.empty((0, 3, self._image_size, self._image_size), dtype=torch.uint8)
        # A pool per call is cheap beside the decoding, and leaves none behind for a fork to break.
        with ThreadPoolExecutor(_threads()) as pool:
            return torch.stack(list(pool.map(self._decode, indices.tolist())))

    def _decode(self, index: int) -> Tensor:
        sample = self._samples[index]
        try:
            return decode_image(sample.read(), self._image_size)
        except ImageError as error:
            raise UserError(
                f"{self.name}: {sample.place} cannot be read: {error}; mend or remove it"
            ) from error


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


def _carve(splits: dict[Split, list[_Sample]]) -> dict[Split, list[_Sample]]:
    missing = {split: bounds for split, bounds in _CARVED.items() if split not in splits}
    if "train" not in splits or not missing:
        return splits
    carved: dict[Split, list[_Sample]] = {**splits, "train": [], **{split: [] for split in missing}}
    for sample in splits["train"]:
        digest = hashlib.sha256(sample.key.encode("utf-8", "surrogateescape")).digest()
        fraction = int.from_bytes(digest[:8]) / 2**64
        split = next((s for s, (low, high) in missing.items() if low <= fraction < high), "train")
        carved[split].append(sample)
    return carved


def _check_labels(path: str, samples: Sequence[_Sample]) -> None:
    bare = [sample for sample in samples if sample.label is None]
    if bare and len(bare) < len(samples):
        raise UserError(
            f"{path}: {len(bare)} of {len(samples)} images have no class (first {bare[0].place}); "
            "put all images in class folders, or none"
        )


# Sources: what there is, as samples by split.


def _find_samples(path: str) -> tuple[dict[Split, list[_Sample]], tuple[str, ...]]:
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
            raise UserError(f"{path}: not a folder and not a .tar shard; give {_SOURCES}")
        return _shard_samples(path, [place])
    if not any(wildcard in path for wildcard in "*?["):
        raise UserError(f"{path}: no such file or folder; give {_SOURCES}")
    matches = sorted(Path(match) for match in glob.glob(str(place)))
    if not matches:
        raise UserError(f"{path}: matches no file; give a glob such as 'folder/train-*.tar'")
    for match in matches:
        if not match.is_file() or match.suffix != ".tar":
            raise UserError(f"{path}: matches {match}, which is not a .tar shard")
    return _shard_samples(path, matches)


def _folder_samples(folder: Path) -> tuple[dict[Split, list[_Sample]], tuple[str, ...]]:
    split_folders = _split_folders(folder)
    if not split_folders:
        if shards := _shards_in(folder):
            return _shard_samples(str(folder), shards)
        return {"train": _image_files(folder)}, ()
    splits: dict[Split, list[_Sample]] = {}
    listed: tuple[str, ...] = ()
    for split, subfolder in split_folders.items():
        if shards := _shards_in(subfolder):
            splits[split], found = _index_shards(shards, folder)
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
        if _is_image(entry) or entry.suffix == ".tar" or (is_folder and _walk(entry)[0]):
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


def _is_image(path: Path) -> bool:
    return path.suffix[1:].lower() in IMAGE_EXTENSIONS


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
        images += [path for path in visible if _is_image(path)]
    return sorted(images), plain, linked


def _image_files(folder: Path) -> list[_Sample]:
    images, plain, linked = _walk(folder)
    samples: list[_Sample] = []
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
        samples.append(_Sample(image.as_posix(), label, folder / image, 0, size))
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


# WebDataset shards.


def _shard_samples(
    path: str, shards: Sequence[Path]
) -> tuple[dict[Split, list[_Sample]], tuple[str, ...]]:
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
    splits: dict[Split, list[_Sample]] = {}
    listed: tuple[str, ...] = ()
    for split, group in by_split.items():
        splits[split or "train"], found = _index_shards(group, shards[0].parent)
        listed = listed or found
    return splits, listed


def _index_shards(shards: Sequence[Path], folder: Path) -> tuple[list[_Sample], tuple[str, ...]]:
    """The samples of all shards, and the class names that ``classes.txt`` in the folder lists."""
    samples: list[_Sample] = []
    for shard in shards:
        status = shard.stat()
        samples += _index_shard(shard, status.st_mtime_ns, status.st_size)
    if not samples:
        raise UserError(
            f"{shards[0]}: no images in this shard{' or the others' * (len(shards) > 1)}"
        )
    if len({sample.key for sample in samples}) < len(samples):  # each shard counts from 0
        samples = [replace(s, key=f"{Path(s.source).stem}/{s.key}") for s in samples]  # type: ignore[bad-argument-type]
    listed = _listed_classes(folder / "classes.txt")
    numbered = [s for s in samples if s.label is not None and s.label.isdecimal()]
    if not listed or not numbered:
        return samples, ()
    for sample in numbered:
        if int(sample.label or 0) >= len(listed):
            raise UserError(
                f"{sample.place}: label {sample.label} has no line in {folder / 'classes.txt'} "
                f"(its {len(listed)} lines are labels 0 to {len(listed) - 1})"
            )
    names = {str(index): name for index, name in enumerate(listed)}
    return [replace(s, label=names.get(s.label or "", s.label)) for s in samples], listed


def _listed_classes(path: Path) -> tuple[str, ...]:
    try:
        names = tuple(path.read_text(encoding="utf-8").split("\n"))
    except FileNotFoundError:
        return ()
    except (UnicodeDecodeError, IsADirectoryError) as error:
        raise UserError(f"{path}: not a text file; one class name per line is needed") from error
    names = tuple(name.strip() for name in names)
    while names and not names[-1]:
        names = names[:-1]
    if len(set(names)) < len(names) or "" in names:
        raise UserError(f"{path}: an empty or repeated line; one class name per line is needed")
    return names


@functools.cache
def _index_shard(shard: Path, modified_ns: int, size: int) -> tuple[_Sample, ...]:
    """The images in a shard; time and size are arguments so that a changed shard is read anew."""
    samples: list[_Sample] = []
    with open(shard, "rb") as file:
        for key, members in _members_by_key(shard).items():
            suffixes = [s for s in members if s in IMAGE_EXTENSIONS]
            suffixes = suffixes or [s for s in members if _is_image(Path(f"x.{s}"))]
            if not suffixes:
                continue
            if len(suffixes) > 1:
                raise UserError(
                    f"{shard}: {key!r} has several images ({', '.join(suffixes)}); one is needed"
                )
            label = key.split("/")[0] if "/" in key else None
            if "cls" in members:
                offset, length = members["cls"]
                file.seek(offset)
                label = _parse_label(file.read(min(length, 1000)), f"{shard}: {key!r}.cls")
            samples.append(_Sample(key, label, shard, *members[suffixes[0]]))
    return tuple(samples)


def _parse_label(data: bytes, place: str) -> str:
    try:
        label = data.decode("utf-8").strip()
    except UnicodeDecodeError:
        label = ""
    if not label or not label.isprintable() or len(label) > 200:
        raise UserError(f"{place}: must hold a class number or name")
    return str(int(label)) if label.isascii() and label.isdecimal() else label


def _members_by_key(shard: Path) -> dict[str, dict[str, tuple[int, int]]]:
    """Sample key -> extension -> (offset, size): names are split as webdataset splits them."""
    samples: dict[str, dict[str, tuple[int, int]]] = {}
    for name, offset, size in _members(shard):
        name = name.removeprefix("./")
        if name.startswith("/") or ".." in name.split("/") or _SHARD_META.match(name):
            continue
        key, suffix = base_plus_ext(name)
        if key is None:
            continue  # hidden, or without an extension
        members = samples.setdefault(key, {})
        if suffix.lower() in members:
            raise UserError(f"{shard}: {name!r} is there twice; keys must differ within a shard")
        members[suffix.lower()] = (offset, size)
    return samples


def _members(shard: Path) -> Iterator[tuple[str, int, int]]:
    """Name, offset and size of each plain file in a tar; links, devices and folders are not."""
    end = 0
    try:
        with tarfile.open(shard, "r:") as tar:
            while (member := tar.next()) is not None:
                if tar.offset <= end:  # a negative size would lead round in a circle
                    raise tarfile.ReadError("a member of negative size")
                end = tar.offset
                tar.members.clear()  # else the list grows by a kilobyte a member
                if member.isreg() and not member.issparse():
                    yield member.name, member.offset_data, member.size
            # tarfile takes a damaged header, or the end of the file, for the end of the archive;
            # the real end is a block of zeros.
            file = tar.fileobj
            assert file is not None
            file.seek(tar.offset)
            complete = file.read(512) == bytes(512)
            end = tar.offset
    except OSError:
        raise
    except Exception as error:  # tarfile raises nearly anything on damaged input
        raise UserError(f"{shard}: not a plain tar archive, or a damaged one ({error})") from error
    if not complete:
        raise UserError(f"{shard}: cut short or damaged at byte {end:,}; copy it again")


# CIFAR-10.


def _cifar10_samples() -> tuple[dict[Split, list[_Sample]], tuple[str, ...]]:
    from torchvision.datasets import CIFAR10  # seconds to import, and rarely needed

    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    root = cache / "pqvae" / "cifar10"
    try:
        parts = {"train": CIFAR10(root, train=True), "test": CIFAR10(root, train=False)}
    except RuntimeError:  # not there yet, or damaged
        print(f"cifar10: downloading 170 MB from {CIFAR10.url} to {root}", file=sys.stderr)
        root.mkdir(parents=True, exist_ok=True)
        timeout = socket.getdefaulttimeout()
        socket.setdefaulttimeout(5)  # seconds without an answer; torchvision sets none
        try:
            parts = {
                "train": CIFAR10(root, train=True, download=True),
                "test": CIFAR10(root, train=False),
            }
        except (
            urllib.error.URLError,
            http.client.HTTPException,
            ConnectionError,
            TimeoutError,
            RuntimeError,
        ) as error:
            raise UserError(
                f"cifar10: cannot be downloaded from {CIFAR10.url} "
                f"({getattr(error, 'reason', error)}); without internet, give a copy of it, as "
                "images or shards, by data.path=FOLDER"
            ) from error
        finally:
            socket.setdefaulttimeout(timeout)
    splits: dict[Split, list[_Sample]] = {}
    for split in ("train", "test"):
        part = parts[split]
        splits[split] = []
        for index, (pixels, label) in enumerate(zip(part.data, part.targets, strict=True)):
            data = b"P6 32 32 255\n" + pixels.tobytes()  # a PPM file: then it is like any other
            key = f"{index:05d}"
            splits[split].append(_Sample(key, part.classes[label], data, 0, len(data)))
    return splits, ()


# Decoding.


def _threads() -> int:
    return min(16, os.cpu_count() or 1)


def _decode_all(
    name: str, samples: Sequence[_Sample], size: int
) -> tuple[Tensor, list[_Sample], list[str]]:
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
    unreadable: list[tuple[_Sample, ImageError]] = []
    with ThreadPoolExecutor(_threads()) as pool:  # Pillow decodes outside of Python's lock
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


def _report(name: str, unreadable: Sequence[tuple[_Sample, ImageError]], total: int) -> None:
    count = len(unreadable)
    reasons = [f"{sample.place} ({error})" for sample, error in unreadable]
    if count > MAX_UNREADABLE * total:
        raise UserError(
            f"{name}: {count} of {total} images cannot be read, over {MAX_UNREADABLE:.0%}; the "
            f"first is {reasons[0]}; mend or remove them"
        )
    more = f"; and {count - 5} more" if count > 5 else ""
    print(
        f"{name}: left out {count} of {total} images: {'; '.join(reasons[:5])}{more}",
        file=sys.stderr,
    )
