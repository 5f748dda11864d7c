"""WebDataset shards, listed for random access: what each sample is and where its bytes lie.

The tar is walked header by header, a large one only once: what was found is kept as JSON in the
cache folder. Nothing in a shard is unpickled, executed or extracted to disk.
"""

import contextlib
import functools
import hashlib
import json
import os
import re
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from webdataset.tariterators import base_plus_ext

from pqvae.data.sample import IMAGE_EXTENSIONS, Listing, Sample, Split, is_image
from pqvae.data.splits import split_of_shard
from pqvae.errors import UserError
from pqvae.files import atomic_path, cache_root, read_json

# Bytes. The walk over a smaller shard takes 0.03 s (images of 110 kB) to 0.4 s (of 2.5 kB), 149 to
# 3,640 samples in 16 MiB read from a local disk: a cache of it would be litter.
INDEX_CACHED_FROM = 16 << 20
_INDEX_VERSION = 1
_NO_FILE = -1  # the size of a member that is a link, say, and holds no bytes of its own
_SHARD_META = re.compile(r"__[^/]*__($|/)")  # webdataset passes these members over, too


def list_by_split(path: str, shards: Sequence[Path]) -> Listing:
    """The samples of shards in one folder, of which all or none name their split.

    Args:
        path: What the shards are called in messages.
        shards: At least one.

    Raises:
        UserError: Only some name their split, or as ``list_shards``.
    """
    by_split: dict[Split | None, list[Path]] = {}
    for shard in shards:
        by_split.setdefault(split_of_shard(shard.name), []).append(shard)
    if None in by_split and len(by_split) > 1:
        raise UserError(
            f"{path}: {by_split[None][0].name} does not name its split, as other shards do; give "
            "every shard's name the word train, val or test, or none's"
        )
    samples: dict[Split, list[Sample]] = {}
    class_names: tuple[str, ...] = ()
    for split, group in by_split.items():
        samples[split or "train"], found = list_shards(group, shards[0].parent)
        class_names = class_names or found
    return Listing(samples, class_names)


def list_shards(shards: Sequence[Path], folder: Path) -> tuple[list[Sample], tuple[str, ...]]:
    """The samples of all shards, and the class names that ``classes.txt`` in the folder lists.

    Raises:
        UserError: A shard is damaged or holds no images, or its labels do not fit the list.
    """
    found: dict[Path, tuple[Sample, ...]] = {}
    for shard in shards:
        status = shard.stat()
        found[shard] = _list_shard(shard, status.st_mtime_ns, status.st_size)
    samples = [sample for part in found.values() for sample in part]
    if not samples:
        raise UserError(
            f"{shards[0]}: no images in this shard{' or the others' * (len(shards) > 1)}"
        )
    if len({sample.key for sample in samples}) < len(samples):  # each shard counts from 0
        samples = [
            replace(sample, key=f"{shard.stem}/{sample.key}")
            for shard, part in found.items()
            for sample in part
        ]
    names = _listed_classes(folder / "classes.txt")
    numbered = [s for s in samples if s.label is not None and s.label.isdecimal()]
    if not names or not numbered:
        return samples, ()
    for sample in numbered:
        if int(sample.label or 0) >= len(names):
            raise UserError(
                f"{sample.place}: label {sample.label} has no line in {folder / 'classes.txt'} "
                f"(its {len(names)} lines are labels 0 to {len(names) - 1})"
            )
    by_number = {str(index): name for index, name in enumerate(names)}
    return [replace(s, label=by_number.get(s.label or "", s.label)) for s in samples], names


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
def _list_shard(shard: Path, modified_ns: int, size: int) -> tuple[Sample, ...]:
    """The images in a shard; time and size are arguments so that a changed shard is read anew."""
    if size < INDEX_CACHED_FROM:
        return _walk_shard(shard)
    path = os.path.abspath(shard)
    header = {"version": _INDEX_VERSION, "path": path, "mtime_ns": modified_ns, "size": size}
    try:
        index = cache_root() / "shards" / f"{hashlib.sha256(os.fsencode(path)).hexdigest()}.json"
    except UserError:
        return _walk_shard(shard)
    # RecursionError: JSON nested too deeply.
    with contextlib.suppress(OSError, ValueError, TypeError, LookupError, RecursionError):
        return _read_index(index, header, shard)
    samples = _walk_shard(shard)
    with contextlib.suppress(OSError):  # a cache that cannot be written is only slower
        index.parent.mkdir(parents=True, exist_ok=True)
        rows = [(sample.key, sample.label, sample.offset, sample.size) for sample in samples]
        with atomic_path(index) as temporary:
            temporary.write_text(json.dumps({**header, "samples": rows}))
    return samples


def _read_index(index: Path, header: dict[str, Any], shard: Path) -> tuple[Sample, ...]:
    """What an index file says of the shard; raises nearly anything if not to be trusted."""
    content = read_json(index)
    if {**content, "samples": None} != {**header, "samples": None}:
        raise ValueError("the index of another shard, or of another state of this one")
    samples: list[Sample] = []
    for key, label, offset, size in content["samples"]:
        if type(key) is not str or type(label) not in (str, type(None)):
            raise TypeError("a key or label that is not text")
        if type(offset) is not int or type(size) is not int:
            raise TypeError("an offset or size that is not an integer")
        if not 0 < offset <= offset + max(size, 0) <= header["size"] or size < _NO_FILE:
            raise ValueError("a sample outside of the shard")
        samples.append(Sample(key, label, shard, offset, size))
    return tuple(samples)


def _walk_shard(shard: Path) -> tuple[Sample, ...]:
    samples: list[Sample] = []
    with open(shard, "rb") as file:
        for key, members in _members_by_key(shard).items():
            suffixes = [s for s in members if s in IMAGE_EXTENSIONS]
            suffixes = suffixes or [s for s in members if is_image(Path(f"x.{s}"))]
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
                label = _parse_label(file.read(min(max(length, 0), 1000)), f"{shard}: {key!r}.cls")
            samples.append(Sample(key, label, shard, *members[suffixes[0]]))
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
        if key is None or suffix is None:
            continue  # hidden, or without an extension
        members = samples.setdefault(key, {})
        if suffix.lower() in members:
            raise UserError(f"{shard}: {name!r} is there twice; keys must differ within a shard")
        members[suffix.lower()] = (offset, size)
    return samples


def _members(shard: Path) -> Iterator[tuple[str, int, int]]:
    """Name, offset and size of each file in a tar; folders, devices and pipes are none.

    Links and sparse files come with a size of ``_NO_FILE``, so that a lost image is counted.
    """
    end = 0
    try:
        with tarfile.open(shard, "r:") as tar:
            while (member := tar.next()) is not None:
                if tar.offset <= end:  # a negative size would lead round in a circle
                    raise tarfile.ReadError("a member of negative size")
                end = tar.offset
                # Else the list grows by a kilobyte a member; typeshed does not know it.
                tar.members.clear()  # type: ignore[missing-attribute]
                if member.isreg() and not member.issparse():
                    yield member.name, member.offset_data, member.size
                elif member.isreg() or member.issym() or member.islnk():
                    yield member.name, member.offset_data, _NO_FILE
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
