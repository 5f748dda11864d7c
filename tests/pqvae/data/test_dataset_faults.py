"""Data sets that are not what they seem: refused in one line that names the place."""

from pathlib import Path
from typing import Any

import pytest

from pqvae.config import config_from_dict
from pqvae.data.config import DataConfig
from pqvae.errors import UserError
from tests.pqvae.data.pictures import open_split, picture, write_folder


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"readme.txt": b""}, r"no images and no .tar shards in this folder$"),
        ({"a.png": b"", "cat/b.png": b""}, r"1 of 2 images have no class \(first a.png\); put all"),
        ({"a.tar": b"", "b.png": b""}, r"holds shards \(a.tar\) and images \(b.png\); move one ki"),
        ({"a.tar": b"", "cat/b.png": b""}, r"holds shards \(a.tar\) and images \(cat/b.png\); "),
        ({"train/a.png": b"", "car/a.png": b""}, r"train stands beside car; if all are clas"),
        ({"train/a.png": b"", "train.tar": b""}, r"holds shards \(train.tar\) and images"),
        ({"val/a.png": b"", "valid/a.png": b"", "train/a.png": b""}, r"both val and valid are val"),
        ({"train/a.txt": b"", "test/a.png": b""}, r"train has no images; fill or remove it$"),
        ({"test/a.png": b""}, r"has no train images, only test$"),
        ({"train-0.tar": b"", "more.tar": b""}, r"more.tar does not name its split, as other sha"),
    ],
)
def test_a_folder_that_is_not_what_it_seems_is_refused(
    tmp_path: Path, files: dict[str, bytes], message: str
) -> None:
    write_folder(tmp_path, files)
    with pytest.raises(UserError, match=message) as caught:
        open_split(tmp_path)
    assert str(caught.value).startswith(str(tmp_path))
    assert "\n" not in str(caught.value)


def test_a_path_that_leads_nowhere_is_refused(tmp_path: Path) -> None:
    write_folder(tmp_path, {"a.png": picture(0), "b.tar": b"", "b.txt": b""})
    for name, message in (
        ("absent", "no such file or folder; give emoji, cifar10, a folder of images"),
        ("a.png", "no source of images can read this; give emoji, cifar10"),
        ("*.tgz", "matches no file; give a glob such as"),
        ("b.*", r"matches .*b.txt, which is not a .tar shard"),
    ):
        with pytest.raises(UserError, match=message):
            open_split(tmp_path / name)


def test_a_split_without_images_is_refused(tmp_path: Path) -> None:
    write_folder(tmp_path, {"0.png": picture(0)})
    with pytest.raises(UserError, match=r"no images in the val split; give it some, or more ima"):
        open_split(tmp_path, "val")


def test_settings_out_of_range_are_refused() -> None:
    cases: list[tuple[dict[str, Any], str]] = [
        ({"path": ""}, "'path' must be at least 1 long"),
        ({"image_size": 7}, "'image_size' must be 8 to 4096, not 7"),
        ({"shift": -1}, "'shift' must be 0 to 2048, not -1"),
        ({"shift": 17}, "data.shift is 17"),
    ]
    for settings, message in cases:
        with pytest.raises(UserError, match=message):
            config_from_dict(DataConfig, settings, "here")
