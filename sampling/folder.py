"""A folder of samples: the images, what made them, and which class each is of.

    images/000000.png ...   image i is named after i
    samples.json            the record: ``n``, ``seed``, ``settings``, the hashes of the models,
                            ``class_counts``, ``labels``, ``data``, ``complete``
    grid.png                the first images, in order

``labels`` holds a number for each of the n images: its class, counted in the order of
``class_counts``; null where the prior knows no classes. (Records of version 0.1 lack the key; the
command that made the folder, called again, adds it.)
"""

import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pqvae.cli import next_command
from pqvae.errors import UserError
from pqvae.files import atomic_path, read_json, write_json
from pqvae.images import decode_image, encode_png, save_grid

GRID_IMAGES = 100
RECORD = "samples.json"
# Keys that make it these samples. Records of version 0.1 know the whole tokenizer's hash instead of
# that of what makes pictures of codes.
IDENTITY = ("seed", "settings", "prior_hash", "decoder_hash")
IDENTITY_0_1 = (*IDENTITY[:-1], "tokenizer_hash")


def image_path(folder: Path, index: int) -> Path:
    """Where image ``index`` is."""
    return folder / "images" / f"{index:06d}.png"


def read_record(folder: Path) -> dict[str, Any]:
    """The record of a folder of samples; empty where there is none.

    Raises:
        UserError: It is damaged or foreign.
    """
    path = folder / RECORD
    if not path.exists():
        return {}
    record = read_json(path)
    if not isinstance(record, dict) or not record:
        raise UserError(
            f"{path}: not a JSON object, so no record of samples; generate them anew, into "
            "another folder"
        )
    return record


def open_folder(folder: Path, record: Mapping[str, Any]) -> list[int]:
    """Make the folder, or check that it belongs to the same samples; the indices to be made.

    Raises:
        UserError: It holds other samples, more of them, or something else.
    """
    before = read_record(folder)
    if before:
        identity = IDENTITY if "decoder_hash" in before else IDENTITY_0_1
        changed = [key for key in identity if before.get(key) != record[key]]
        if changed:
            raise UserError(
                f"{folder} holds samples of another {', '.join(changed)}; "
                f"choose another folder (--out) or remove it"
            )
        if before.get("n", 0) > record["n"]:
            raise UserError(
                f"{folder} holds {before['n']} samples already; "
                f"{next_command('eval.fid', '--samples', folder, '--n', str(record['n']))} "
                f"scores the first {record['n']} of them"
            )
    elif folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder} is not a folder of samples; choose another one (--out)")
    folder.mkdir(parents=True, exist_ok=True)
    existing = {file.name for file in (folder / "images").glob("*.png")}
    indices = range(record["n"])
    missing = [index for index in indices if image_path(folder, index).name not in existing]
    if missing:  # the record first: without it the next call would take the folder for another's
        write_json(folder / RECORD, {**record, "complete": False})
    (folder / "images").mkdir(exist_ok=True)
    return missing


def write_image(folder: Path, index: int, image: Tensor) -> None:
    """Write an image, uint8 (3, H, W), under its number."""
    path = image_path(folder, index)
    temporary = path.with_suffix(".tmp")  # a kill must not leave half a picture under its name
    try:
        temporary.write_bytes(encode_png(image))
        temporary.replace(path)
    except OSError as error:
        error.filename = error.filename or str(path)  # a full disk names no file by itself
        temporary.unlink(missing_ok=True)
        raise


def close_folder(folder: Path, record: Mapping[str, Any], image_size: int) -> None:
    """Draw the grid, and record that all images are there."""
    count = min(record["n"], GRID_IMAGES)
    shown = torch.stack([_read_image(folder, index, image_size) for index in range(count)])
    save_grid(folder / "grid.png", shown, columns=min(10, count))
    write_json(folder / RECORD, {**record, "complete": True})


def write_npz(path: Path, folder: Path, n: int, size: int) -> None:
    """Write images 0 to n - 1 as array ``arr_0``, image by image: they need not fit into memory."""
    header = {"descr": "|u1", "fortran_order": False, "shape": (n, size, size, 3)}
    with (
        atomic_path(path) as temporary,
        zipfile.ZipFile(temporary, "w") as archive,
        # Without the time of writing: equal images make equal files.
        archive.open(zipfile.ZipInfo("arr_0.npy"), "w", force_zip64=True) as file,
    ):
        np.lib.format.write_array_header_1_0(file, header)
        for index in range(n):
            image = _read_image(folder, index, size)
            file.write(image.permute(1, 2, 0).contiguous().numpy().data)


def _read_image(folder: Path, index: int, size: int) -> Tensor:
    return decode_image(image_path(folder, index).read_bytes(), size)
