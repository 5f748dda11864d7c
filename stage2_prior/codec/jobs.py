"""Files in, files out: what a command is to read, and where each result goes."""

import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from pqvae.console import Progress, say
from pqvae.data.sample import is_visible
from pqvae.errors import ImageError, UserError
from pqvae.files import atomic_path
from pqvae.images import EXTENSIONS

PQ = frozenset({"pq"})
PICTURES = EXTENSIONS
AT_ONCE = 256  # files that are in memory together

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Job:
    """A file, and where what is made of it goes: with its folders below the one that was given."""

    source: Path
    place: Path


def find_files(inputs: Sequence[Path], extensions: frozenset[str]) -> list[Job]:
    """The files named, and those of these extensions in the folders named, in any depth.

    Raises:
        UserError: An input is not there, or a folder holds none.
    """
    jobs = []
    for path in inputs:
        if not path.is_dir():
            if not path.exists():
                raise UserError(f"{path}: no such file or folder")
            jobs.append(Job(path, Path(path.name)))
            continue
        found = sorted(
            file
            for file in path.rglob("*")
            if file.suffix[1:].lower() in extensions and file.is_file()
            if all(is_visible(part) for part in file.relative_to(path).parts)
        )
        if not found:
            kinds = "pictures" if extensions is PICTURES else ".pq files"
            raise UserError(f"{path}: no {kinds} in this folder")
        jobs += [Job(file, file.relative_to(path)) for file in found]
    return jobs


def plan(inputs: Sequence[Path], extensions: frozenset[str], out: Path, suffix: str) -> list[Job]:
    """The same with the place of each result: below ``out``, or ``out`` itself of a single file.

    Raises:
        UserError: As ``find_files`` does, or two results would be one file.
    """
    jobs = find_files(inputs, extensions)
    if len(inputs) == 1 and not inputs[0].is_dir() and not out.is_dir():
        if out.suffix.lower() != suffix:
            raise UserError(f"-o {out}: must end in {suffix}, or be a folder that is there")
        return [Job(jobs[0].source, out)]
    placed = [Job(job.source, out / job.place.with_suffix(suffix)) for job in jobs]
    place, times = Counter(job.place for job in placed).most_common(1)[0]
    if times > 1:
        both = [str(job.source) for job in placed if job.place == place][:2]
        raise UserError(f"{' and '.join(both)} would both become {place}; give them other names")
    return placed


def check_free(places: Sequence[Path], force: bool) -> None:
    """Check that no result is there already, unless it may be replaced.

    Raises:
        UserError: One is.
    """
    there = [place for place in places if place.exists()]
    if there and not force:
        more = f" and {len(there) - 1} more" if len(there) > 1 else ""
        raise UserError(f"{there[0]}{more}: there already; --force replaces them")


def write(path: Path, data: bytes) -> None:
    """Write a file whole or not at all, in folders that are made if missing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(path) as temporary:
        temporary.write_bytes(data)


class Reader:
    """Reads the files of many jobs, several at a time; those that cannot be are passed over.

    Attributes:
        passed_over: How many were.
    """

    def __init__(self, jobs: Sequence[Job], label: str) -> None:
        self.jobs, self.label = jobs, label
        self.passed_over = 0

    def __call__(self, read: Callable[[bytes], T]) -> Iterator[list[tuple[Job, T]]]:
        """Chunks of jobs, none empty, each with what ``read`` makes of its file.

        Raises:
            UserError: The only file cannot be read, or none of several.
        """
        progress = Progress(self.label, len(self.jobs)) if len(self.jobs) > 1 else None
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            for start in range(0, len(self.jobs), AT_ONCE):
                chunk = self.jobs[start : start + AT_ONCE]
                results = pool.map(lambda job: _try(read, job.source), chunk)
                if good := list(self._good(zip(chunk, results, strict=True))):
                    yield good
                if progress:
                    progress.advance(len(chunk))
        if progress:
            progress.close()
        if self.passed_over == len(self.jobs):
            raise UserError(f"none of {len(self.jobs)} files could be read")

    def _good(self, results: Iterable[tuple[Job, T | Exception]]) -> Iterator[tuple[Job, T]]:
        for job, result in results:
            if not isinstance(result, Exception):
                yield job, result
            elif len(self.jobs) == 1:
                raise UserError(f"{job.source}: {result}") from None
            else:
                self.passed_over += 1
                say(f"passed over {job.source}: {result}")


def _try(read: Callable[[bytes], T], path: Path) -> T | Exception:
    try:
        return read(path.read_bytes())
    except (ImageError, UserError) as error:
        return error
    except OSError as error:
        return UserError(error.strerror or "cannot be read")
