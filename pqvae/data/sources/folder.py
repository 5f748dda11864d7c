"""A folder: of images, of class folders, or of shards; perhaps with train, val and test in it."""

import os
import stat
import sys
from pathlib import Path

from pqvae.data.sample import Listing, Sample, Split, is_image
from pqvae.data.shard_index import list_by_split, list_shards
from pqvae.data.splits import split_of_folder
from pqvae.errors import UserError


def list_samples(path: str) -> Listing | None:
    folder = Path(path).expanduser()
    if not folder.is_dir():
        return None
    split_folders = _split_folders(folder)
    if not split_folders:
        if shards := _shards_in(folder):
            return list_by_split(str(folder), shards)
        return Listing({"train": _image_files(folder)})
    samples: dict[Split, list[Sample]] = {}
    class_names: tuple[str, ...] = ()
    for split, subfolder in split_folders.items():
        if shards := _shards_in(subfolder):
            samples[split], found = list_shards(shards, folder)
            class_names = class_names or found
        else:
            samples[split] = _image_files(subfolder)
    return Listing(samples, class_names)


def _split_folders(folder: Path) -> dict[Split, Path]:
    """The folders named train, val, test; none where these are classes among others."""
    # Links count here: a split may well lie on another disk, and one step down cannot loop.
    folders = [entry for entry in sorted(folder.iterdir()) if entry.is_dir() and _is_visible(entry)]
    splits: dict[Split, Path] = {}
    for entry in folders:
        split = split_of_folder(entry.name)
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
    if linked:
        print(f"{folder}: left out{note.removeprefix(';')}", file=sys.stderr)
    return samples
