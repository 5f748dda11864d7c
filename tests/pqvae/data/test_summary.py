"""What is said of data at the start: how they were read, and what is odd about them."""

from collections.abc import Mapping
from pathlib import Path

import pytest

from pqvae.data.batches import Augmentation
from pqvae.data.config import DataConfig
from pqvae.data.dataset import open_dataset, open_splits
from pqvae.data.summary import describe_splits
from pqvae.errors import UserError
from tests.pqvae.data.pictures import SIZE, picture


def write(root: Path, names: str, same: Mapping[str, int] | None = None) -> Path:
    for seed, name in enumerate(names.split()):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(picture((same or {}).get(name, seed)))
    return root


def described(root: Path) -> list[str]:
    config = DataConfig(path=str(root), image_size=SIZE)
    return [line.replace(str(root), "data") for line in describe_splits(open_splits(config))]


THREE = "train/cat/0 train/dog/1 val/cat/2 test/dog/3"


@pytest.mark.parametrize(
    ("names", "lines"),
    [
        (THREE, ["data: 2 train, 1 val, 1 test images; 2 classes: cat, dog"]),
        ("train/0 val/1 test/2", ["data: 1 train, 1 val, 1 test images; no classes"]),
        (
            "train/cat/0 train/dog/1 val/2 test/3",
            [
                "data: 2 train, 1 val, 1 test images; 2 classes: cat, dog",
                "data train has classes, but val and test none; put these into class folders, too, "
                "or they are judged without a class",
            ],
        ),
        (
            "train/0 val/cat/1 val/dog/2 test/cat/3 test/dog/4",
            [
                "data: 1 train, 2 val, 2 test images; 2 classes: cat, dog",
                "data train has no classes, but val has; put its images into class folders, too, "
                "or what is trained on them is unconditional",
            ],
        ),
        (
            f"{THREE} test/Cat/4",
            [
                "data: 2 train, 1 val, 2 test images; 3 classes: Cat, cat, dog",
                "data train has no image of class Cat, but test has; is it spelled alike?",
            ],
        ),
    ],
)
def test_how_the_data_were_read_is_said_in_short_lines(
    tmp_path: Path, names: str, lines: list[str]
) -> None:
    write(tmp_path, " ".join(f"{name}.png" for name in names.split()))
    assert described(tmp_path) == lines


def test_splits_that_were_carved_are_called_so(tmp_path: Path) -> None:
    write(tmp_path, " ".join(f"{index}.png" for index in range(60)))
    (line,) = described(tmp_path)
    assert line.endswith(" images; no classes")
    assert " val (carved), " in line
    assert " test (carved) " in line
    assert "train (carved)" not in line


def test_many_classes_stay_one_line(tmp_path: Path) -> None:
    names = [
        f"{split}/class number {i}/x.png" for split in ("train", "val", "test") for i in range(40)
    ]
    for seed, name in enumerate(names):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).write_bytes(picture(seed))
    (line,) = described(tmp_path)
    assert "40 classes: class number 0, class number 1" in line
    assert len(line) <= 200


def test_images_that_are_in_train_as_well_are_counted(tmp_path: Path) -> None:
    names = "train/a.png train/b.png val/c.png test/d.png test/e.png test/f.png"
    write(tmp_path, names, {"test/d.png": 0, "test/f.png": 1, "val/c.png": 1})
    _, line = described(tmp_path)
    assert line.startswith(
        "1 of 1 val and 2 of 3 test images equal training images (c.png = b.png)"
    )


def test_a_class_that_no_image_has_cannot_be_kept_from_mirroring(tmp_path: Path) -> None:
    write(tmp_path, "train/pensée/0.png train/dog/1.png val/dog/2.png test/dog/3.png")
    dataset = open_dataset(DataConfig(path=str(tmp_path), image_size=SIZE), "train")
    nfd = DataConfig(no_flip_classes=("pense\u0301e",))  # as macOS writes it
    assert Augmentation(dataset, nfd).may_flip.tolist() == [True, False]
    with pytest.raises(
        UserError, match=r"no_flip_classes: .* has no class 'letters'; it has dog, p"
    ):
        Augmentation(dataset, DataConfig(no_flip_classes=("dog", "letters")))


def test_a_built_in_set_and_a_folder_of_its_name_are_told_apart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path, "emoji/train/0.png emoji/val/1.png emoji/test/2.png")
    monkeypatch.chdir(tmp_path)
    assert len(open_dataset(DataConfig(path="emoji"), "val")) == 328
    assert "emoji: the built-in set, not the emoji that lies here, which is ./emoji" in (
        capsys.readouterr().err
    )
    assert len(open_dataset(DataConfig(path="./emoji"), "val")) == 1
    assert capsys.readouterr().err == ""
    monkeypatch.chdir(tmp_path / "emoji")  # where there is none
    assert len(open_dataset(DataConfig(path="emoji"), "val")) == 328
    assert capsys.readouterr().err == ""


def test_what_the_source_passes_over_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path, "train/0.png val/1.png test/2.png test/3.heic")
    open_splits(DataConfig(path=str(tmp_path), image_size=SIZE))
    assert capsys.readouterr().err.count("passed over .heic files: 1 (test/3.heic)") == 1
