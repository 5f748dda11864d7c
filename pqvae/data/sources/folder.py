"""A folder: of images, of class folders, or of shards; perhaps with train, val and test in it."""

import os
import stat
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from pqvae.data.arrange import arrange
from pqvae.data.labels import LABEL_BYTES, LABEL_FILES, one_label, parse_label
from pqvae.data.layout import find_splits, levels
from pqvae.data.passed_over import PassedOver
from pqvae.data.sample import Listing, Sample, Split, is_visible
from pqvae.data.shard_index import CLASSES, list_shards
from pqvae.data.splits import split_of
from pqvae.errors import UserError
from pqvae.images import EXTENSIONS, SNIFFED_BYTES, UNREAD_EXTENSIONS, is_image_data

_PACKED = frozenset("7z arrow bz2 gz h5 hdf5 lmdb npz parquet rar tfrecord tgz xz zip zst".split())
_TEXTS = frozenset("csv html jsonl md tsv txt xml yaml yml".split())  # not worth a look inside
_LISTS = frozenset("csv jsonl tsv".split())  # may hold labels, which are not read
_RECORD = "samples.json"  # of a folder of samples


def list_samples(path: str) -> Listing | None:
    folder = Path(path).expanduser()
    if not folder.is_dir():
        return None
    tree = _Tree(folder)
    if tree.shards:
        if tree.images:
            raise UserError(
                f"{folder}: holds shards ({tree.shards[0]}) and images ({tree.images[0]}); move "
                "one kind out, or give the shards as a glob"
            )
        listing = list_shards(str(folder), tree.shards_by_split(), [folder / CLASSES])
        return replace(listing, notes=(*tree.passed_over.notes(str(folder)), *listing.notes))
    samples = tree.samples()
    if not samples:
        note = f"; {tree.passed_over.text()}" if tree.passed_over.kinds else ""
        raise UserError(f"{folder}: no images and no .tar shards in this folder{note}")
    listing = arrange(str(folder), {None: samples})
    tree.check_empty_folders()
    if not any(sample.label for part in listing.samples.values() for sample in part):
        for name in tree.lists[:1]:
            tree.passed_over.add("lists, which may hold labels", str(name), len(tree.lists))
    return replace(listing, notes=tree.passed_over.notes(str(folder)))


class _Tree:
    """What lies in a folder, in any depth; paths are relative to it.

    Links to folders are followed, and each real folder is read once. The folders of runs and of
    samples are passed over.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.folders: dict[Path, bool] = {}  # whether there is nothing in it
        self.images: list[Path] = []
        self.shards: list[Path] = []
        self.lists: list[Path] = []
        self.passed_over = PassedOver()
        self._unread: list[Path] = []
        self._label_files: set[Path] = set()
        for path in sorted(self._walk()):
            self._take(path)

    def _walk(self) -> list[Path]:
        plain, linked, files = [Path()], [], []
        seen: set[str] = set()
        while plain or linked:
            here = plain.pop() if plain else linked.pop(0)
            real = os.path.realpath(self.root / here)
            entries = sorted(os.scandir(real), key=lambda entry: entry.name)
            if here.parts and _is_output({entry.name for entry in entries}):
                self.passed_over.add("folders of runs or samples", str(here))
                continue
            if real in seen:  # only a link can lead there
                self.passed_over.add("links to folders that are read already", str(here))
                continue
            seen.add(real)
            visible = [entry for entry in entries if is_visible(entry.name)]
            self.folders[here] = not visible
            for entry in visible:
                if _is_folder(entry):
                    (linked if entry.is_symlink() else plain).append(here / entry.name)
                else:
                    files.append(here / entry.name)
        return files

    def _take(self, path: Path) -> None:
        """Sort a file in by what its name says, or else by its first bytes."""
        kind = path.suffix[1:].lower()
        if kind in EXTENSIONS:
            self.images.append(path)
        elif kind == "tar":
            self.shards.append(path)
        elif kind in UNREAD_EXTENSIONS or kind in _PACKED:
            self._pass_over(f".{kind} files", path)
        elif kind in LABEL_FILES:
            self._label_files.add(path)
        elif kind in _TEXTS:
            if kind in _LISTS:
                self.lists.append(path)
        elif self._holds_image(path):
            if kind:
                self._pass_over(f"images with the extension .{kind}", path)
            else:
                self.images.append(path)

    def _pass_over(self, kind: str, path: Path) -> None:
        self.passed_over.add(kind, str(path))
        self._unread.append(path)

    def _holds_image(self, path: Path) -> bool:
        try:
            if not stat.S_ISREG((self.root / path).stat().st_mode):
                return False  # reading a pipe or a device could wait for ever
            with open(self.root / path, "rb") as file:
                return is_image_data(file.read(SNIFFED_BYTES))
        except OSError:
            return False

    def shards_by_split(self) -> dict[Split | None, Sequence[Path]]:
        """The shards, by the split that a folder above them names; None where none does."""
        layout = find_splits(str(self.root), {shard.parent.parts for shard in self.shards})
        by_split: dict[Split | None, list[Path]] = {}
        for shard in self.shards:
            split = layout.splits.get(shard.parent.parts)
            by_split.setdefault(split, []).append(self.root / shard)
        places = sorted({shard.parent for shard in self.shards})
        if not layout.splits and len(places) > 1:
            raise UserError(
                f"{self.root}: shards lie in {places[0]} and {places[1]}, which name no split; "
                f"give a glob, such as '{self.root}/*/*.tar'"
            )
        return {**by_split}

    def samples(self) -> list[Sample]:
        """The images, with the labels that files beside them hold."""
        samples: list[Sample] = []
        for image in self.images:
            size = 0
            try:
                status = (self.root / image).stat()
                if not stat.S_ISREG(status.st_mode):
                    continue
                size = status.st_size
            except OSError:
                pass  # a dangling link: reading will fail, and be counted and named
            label = self._label_beside(image) if self._label_files else None
            samples.append(Sample(image.as_posix(), label, self.root / image, 0, size))
        return samples

    def _label_beside(self, image: Path) -> str | None:
        said: dict[str, str | None] = {}
        for end in LABEL_FILES:
            path = image.with_suffix(f".{end}")
            if path in self._label_files:
                with open(self.root / path, "rb") as file:
                    data = file.read(LABEL_BYTES)
                said[str(path)] = parse_label(data, end, str(self.root / path))
        return one_label("", said)

    def check_empty_folders(self) -> None:
        """Refuse a folder among splits or classes that has no image, or none that is read."""
        splits, classes = levels(str(self.root), {image.parent.parts for image in self.images})
        holding, unread = _above(self.images), _above(self._unread)
        for folder, empty in self.folders.items():
            if folder in holding or not folder.parts:
                continue
            beside = folder.parts[:-1]
            is_split = beside == splits and split_of(folder.name)
            if is_split or (beside in classes and (empty or folder in unread)):
                raise UserError(f"{self.root}: {folder} has no images; fill or remove it")


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link that leads round in a circle: reading will fail, and be named
        return False


def _above(paths: Iterable[Path]) -> set[Path]:
    """All folders on the way to these files."""
    return {folder for path in paths for folder in path.parents}


def _is_output(names: set[str]) -> bool:
    """Whether these files are those of a run, a model or a folder of samples."""
    run = "config.yaml" in names and names & {"model", "state", "stats.jsonl"}
    return bool(run) or "model.safetensors" in names or _RECORD in names
