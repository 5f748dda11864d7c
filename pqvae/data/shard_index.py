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
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from webdataset.tariterators import base_plus_ext

from pqvae.data.arrange import arrange
from pqvae.data.labels import LABEL_BYTES, LABEL_FILES, one_label, parse_label
from pqvae.data.passed_over import PassedOver, shorten
from pqvae.data.sample import Listing, Sample, Split, is_visible
from pqvae.data.splits import split_shards
from pqvae.errors import UserError
from pqvae.files import atomic_path, cache_root, read_json
from pqvae.images import EXTENSIONS, SNIFFED_BYTES, UNREAD_EXTENSIONS, is_image_data

CLASSES = "classes.txt"  # beside the shards: line by line, the names of classes 0, 1 ...
# Bytes. The walk over a smaller shard takes 0.03 s (images of 110 kB) to 0.4 s (of 2.5 kB), 149 to
# 3,640 samples in 16 MiB read from a local disk: a cache of it would be litter.
INDEX_CACHED_FROM = 16 << 20
_INDEX_VERSION = 2
_NO_FILE = -1  # the size of a member that is a link, say, and holds no bytes of its own
_BLOCK = 512  # bytes; a tar consists of such blocks
_Members = dict[str, tuple[int, int]]  # extension -> (offset, size)
_SHARD_META = re.compile(r"__[^/]*__($|/)")  # webdataset passes these members over, too


def list_shards(
    path: str, shards: Mapping[Split | None, Sequence[Path]], lists: Iterable[Path] = ()
) -> Listing:
    """The samples of shards.

    Args:
        path: What the shards are called in messages.
        shards: At least one, by the split that they are known to hold. Of those under None, the
            names decide, or else the folders in them.
        lists: Where a list of the classes' names may be; a ``classes.txt`` beside a shard is one.

    Raises:
        UserError: A shard is damaged, there are no images, only some shards name their split, or
            what is said of splits or classes is unclear.
    """
    by_split: dict[Split | None, list[Path]] = {}
    for split, group in shards.items():
        named = {} if split else split_shards([shard.name for shard in group], path)
        for shard in group:
            by_split.setdefault(split or named[shard.name], []).append(shard)
    found: dict[Split | None, list[Sample]] = {}
    passed_over = PassedOver()
    for split, group in by_split.items():
        found[split] = []
        for shard in group:
            status = shard.stat()
            contents = _list_shard(shard, status.st_mtime_ns, status.st_size)
            found[split] += contents.samples
            passed_over.update(contents.passed_over)
        if not found[split]:
            more = " or the others" * (len(group) > 1)
            note = f"; {passed_over.text()}" if passed_over.kinds else ""
            raise UserError(f"{group[0]}: no images in this shard{more}{note}")
    beside = dict.fromkeys(shard.parent / CLASSES for group in by_split.values() for shard in group)
    listing = arrange(path, found, [*lists, *beside])
    return replace(listing, notes=passed_over.notes(path))


class _Contents(NamedTuple):
    samples: tuple[Sample, ...]  # the label is what a member beside the image says
    passed_over: dict[str, tuple[int, str]]  # as PassedOver has it


@functools.cache
def _list_shard(shard: Path, modified_ns: int, size: int) -> _Contents:
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
    contents = _walk_shard(shard)
    with contextlib.suppress(OSError):  # a cache that cannot be written is only slower
        index.parent.mkdir(parents=True, exist_ok=True)
        rows = [(s.key, s.label, s.offset, s.size) for s in contents.samples]
        content = {**header, "samples": rows, "passed_over": contents.passed_over}
        with atomic_path(index) as temporary:
            temporary.write_text(json.dumps(content))
    return contents


def _read_index(index: Path, header: dict[str, Any], shard: Path) -> _Contents:
    """What an index file says of the shard; raises nearly anything if not to be trusted."""
    content = read_json(index)
    passed_over = content.pop("passed_over")
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
    for kind, (count, first) in dict(passed_over).items():
        if [type(kind), type(count), type(first)] != [str, int, str]:
            raise TypeError("a count or name of another type")
    return _Contents(tuple(samples), passed_over)


def _walk_shard(shard: Path) -> _Contents:
    samples: list[Sample] = []
    passed_over = PassedOver()
    with open(shard, "rb") as file:
        for key, members in _members_by_key(shard, passed_over).items():
            extension = _image_extension(shard, key, members, file)
            if extension is None:
                for other in members:
                    if (kind := other.rpartition(".")[2]) in UNREAD_EXTENSIONS:
                        passed_over.add(f".{kind} files", f"{key}.{other}")
                continue
            label = _label_beside(shard, key, members, extension, file)
            samples.append(Sample(key, label, shard, *members[extension]))
    return _Contents(tuple(samples), passed_over.kinds)


def _image_extension(shard: Path, key: str, members: _Members, file: BinaryIO) -> str | None:
    """The extension of the image among the members of a sample."""
    found = [each for each in members if each in EXTENSIONS]
    found = found or [each for each in members if each.rpartition(".")[2] in EXTENSIONS]
    if not found and "" in members:
        offset, size = members[""]
        file.seek(offset)
        found = [""] if is_image_data(file.read(min(max(size, 0), SNIFFED_BYTES))) else []
    if len(found) > 1:
        some = shorten(", ".join(found[:3]) + ", ..." * (len(found) > 3))
        dotted = any("." in each for each in found)
        advice = "names are cut at their first dot; rename them, as in frame-0001.png"
        raise UserError(
            f"{shard}: {shorten(key)} has several images ({some}); "
            + (advice if dotted else "one is needed")
        )
    return found[0] if found else None


def _label_beside(
    shard: Path, key: str, members: _Members, extension: str, file: BinaryIO
) -> str | None:
    """What ``scan.v2.cls`` or ``scan.cls`` says of ``scan.v2.png``."""
    place = f"{shard}: {shorten(key)}"
    prefix = extension[: len(extension) - len(extension.rpartition(".")[2])]
    said: dict[str, str | None] = {}
    for end in LABEL_FILES:
        for name in dict.fromkeys((prefix + end, end)):
            if name in members:
                offset, length = members[name]
                file.seek(offset)
                data = file.read(min(max(length, 0), LABEL_BYTES))
                said[f".{name}"] = parse_label(data, end, f"{place}.{name}")
    return one_label(place, said)


def _members_by_key(shard: Path, passed_over: PassedOver) -> dict[str, _Members]:
    """Sample key -> extension -> (offset, size): names are split as webdataset splits them."""
    samples: dict[str, _Members] = {}
    for name, offset, size in _members(shard):
        parts = [part for part in name.split("/") if part not in ("", ".")]
        if ".." in parts:
            passed_over.add("names with '..'", name)
            continue
        if not all(is_visible(part) for part in parts) or _SHARD_META.match("/".join(parts)):
            continue
        key, suffix = base_plus_ext("/".join(parts))
        if key is None or suffix is None:
            key, suffix = "/".join(parts), ""
        members = samples.setdefault(key, {})
        if suffix.lower() in members:
            raise UserError(
                f"{shard}: {shorten(name)} is there twice; keys must differ within a shard"
            )
        members[suffix.lower()] = (offset, size)
    return samples


def _members(shard: Path) -> Iterator[tuple[str, int, int]]:
    """Name, offset and size of each file in a tar; folders, devices and pipes are none.

    Links and sparse files come with a size of ``_NO_FILE``, so that a lost image is counted. Tars
    that were joined end to end are read as one.
    """
    end = 0
    try:
        with open(shard, "rb") as file:
            while (start := _next_archive(file, end)) is not None:
                file.seek(start)
                with tarfile.open(fileobj=file, mode="r:") as tar:
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
                    # tarfile takes a damaged header, or the end of the file, for the end of the
                    # archive; the real end is a block of zeros.
                    file.seek(tar.offset)
                    complete = file.read(_BLOCK) == bytes(_BLOCK)
                    end = tar.offset + _BLOCK
                if not complete:
                    break
    except OSError:
        raise
    except Exception as error:  # tarfile raises nearly anything on damaged input
        raise UserError(f"{shard}: not a plain tar archive, or a damaged one ({error})") from error
    if not complete:
        raise UserError(f"{shard}: cut short or damaged at byte {end - _BLOCK:,}; copy it again")


def _next_archive(file: BinaryIO, end: int) -> int | None:
    """Where the first archive in a file begins, or the one behind the end mark of another."""
    file.seek(end)
    if not end:
        return 0
    while block := file.read(_BLOCK):
        if block.strip(b"\0"):
            return file.tell() - len(block)
    return None
