"""Folders as they are found: links, runs, what systems leave, labels beside images."""

import os
import tarfile
from pathlib import Path

import pytest

from pqvae.data.sample import Listing
from pqvae.data.sources import folder
from pqvae.errors import UserError
from tests.pqvae.data.pictures import picture, write_folder

PICTURE = b"any bytes will do, as listing decodes nothing"


def read(root: Path) -> Listing:
    listing = folder.list_samples(str(root))
    assert listing is not None
    return listing


def classes(root: Path) -> dict[str, str | None]:
    return {sample.key: sample.label for sample in read(root).samples["train"]}


def test_links_to_folders_are_followed_and_each_real_folder_is_read_once(tmp_path: Path) -> None:
    write_folder(
        tmp_path / "all", {"cat/0.png": PICTURE, "dog/1.png": PICTURE, "emu/2.png": PICTURE}
    )
    chosen = tmp_path / "chosen"
    chosen.mkdir()
    for name in ("cat", "dog"):
        os.symlink(tmp_path / "all" / name, chosen / name)
    os.symlink(chosen, chosen / "cat" / "loop")
    assert classes(chosen) == {"cat/0.png": "cat", "dog/1.png": "dog"}
    assert read(chosen).notes == (
        f"{chosen}: passed over links to folders that are read already: 1 (cat/loop)",
    )
    (tmp_path / "all" / "aardvark").symlink_to(tmp_path / "all" / "cat")  # a second name of cat
    assert set(classes(tmp_path / "all").values()) == {"cat", "dog", "emu"}


def test_what_runs_and_systems_leave_among_images_is_no_class(tmp_path: Path) -> None:
    images = {"cat/0.png": PICTURE, "dog/1.png": PICTURE}
    left = [
        "runs/tokenizer/config.yaml",
        "runs/tokenizer/state/x",
        "runs/tokenizer/grids/step.png",
        "runs/samples/samples.json",
        "runs/samples/grid.png",
        "runs/samples/images/0.png",
        "model/model.safetensors",
        "model/strip.png",
        "@eaDir/0.png/SYNOPHOTO_THUMB_M.jpg",
        "cat/@eaDir/0.png/SYNOPHOTO_THUMB_M.jpg",
        "__MACOSX/cat/._0.png",
        "cat/._0.png",
        ".ipynb_checkpoints/0-checkpoint.png",
        "#recycle/0.png",
        "cat/Thumbs.db",
    ]
    write_folder(tmp_path, {**images, **dict.fromkeys(left, PICTURE)})
    assert classes(tmp_path) == {"cat/0.png": "cat", "dog/1.png": "dog"}
    assert read(tmp_path).notes == (
        f"{tmp_path}: passed over folders of runs or samples: 3 (runs/tokenizer)",
    )


def test_a_class_that_only_looks_like_a_run_is_read(tmp_path: Path) -> None:
    files = ["cat/0.png", "cat/config.yaml", "dog/model/1.png", "emu/state", "emu/2.png"]
    write_folder(tmp_path, {**dict.fromkeys(files, PICTURE), "labels.csv": b"not needed here"})
    assert set(classes(tmp_path).values()) == {"cat", "dog", "emu"}
    assert read(tmp_path).notes == ()


def test_a_folder_of_samples_that_is_named_itself_is_read(tmp_path: Path) -> None:
    write_folder(tmp_path, {"samples.json": b"{}", "a.png": PICTURE})
    assert classes(tmp_path) == {"a.png": None}


def test_every_extension_of_a_format_and_none_at_all_is_read(tmp_path: Path) -> None:
    named = dict.fromkeys(["a.JPG", "b.jfif", "c.webp", "d.avif", "e.tiff", "f.jpe"], PICTURE)
    write_folder(tmp_path, {**named, "0a1b": picture(0), "README": b"text", "pipe.txt": b""})
    os.mkfifo(tmp_path / "waits for ever")
    os.mkfifo(tmp_path / "pipe.png")
    assert set(classes(tmp_path)) == {*named, "0a1b"}
    assert read(tmp_path).notes == ()


def test_what_may_be_an_image_and_is_not_read_is_counted_and_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # as the note is cut where the path is long
    others = {f"{i}.HEIC": b"?" for i in range(3)} | {"x.png.bak": picture(0), "old.zip": b"?"}
    write_folder(Path("in"), {"a.png": PICTURE, **others, "labels.csv": b"?", "note.bak": b"?"})
    assert read(Path("in")).notes == (
        "in: passed over .heic files: 3 (0.HEIC); .zip files: 1 (old.zip); images with the "
        "extension .bak: 1 (x.png.bak); lists, which may hold labels: 1 (labels.csv)",
    )
    Path("in/a.png").unlink()
    with pytest.raises(UserError, match=r"no images and no .tar .*; passed over .heic files: 3"):
        read(Path("in"))


def test_a_note_has_at_most_two_hundred_characters(tmp_path: Path) -> None:
    many = {f"{'long name ' * 20}.{end}": b"?" for end in ("heic", "jxl", "psd", "zip", "rar")}
    write_folder(tmp_path, {"a.png": PICTURE, **many})
    (note,) = read(tmp_path).notes
    assert len(note) <= 200


def test_labels_lie_beside_the_images(tmp_path: Path) -> None:
    files = {
        "a.png": PICTURE,
        "a.cls": b"rose",
        "b.v2.png": PICTURE,
        "b.v2.json": b'{"label": "tulip"}',
        "other.json": b"not of an image, so never read",
    }
    write_folder(tmp_path, files)
    assert classes(tmp_path) == {"a.png": "rose", "b.v2.png": "tulip"}
    write_folder(tmp_path, {"a.json": b'{"cls": "tulip"}'})
    with pytest.raises(UserError, match=r"a.cls says rose, a.json tulip; they must agree"):
        read(tmp_path)


def test_folder_and_file_that_disagree_are_refused(tmp_path: Path) -> None:
    write_folder(tmp_path, {"rose/a.png": PICTURE, "rose/a.cls": b"tulip", "tulip/b.png": PICTURE})
    with pytest.raises(
        UserError, match=r"rose/a.png: its folder says rose, the file beside it tul"
    ):
        read(tmp_path)


@pytest.mark.parametrize(
    ("files", "empty", "missing"),
    [
        (["cat/a.png", "emu/b.png"], "dog", "dog"),
        (["cat/a.png"], "dog", "dog"),
        (["train/cat/a.png", "train/emu/b.png", "test/cat/c.png"], "train/dog", "train/dog"),
        (["train/a.png", "test/b.png"], "val", "val"),
        (["data/train/a.png", "data/test/b.png"], "data/val", "data/val"),
    ],
)
def test_an_empty_class_or_split_is_refused(
    tmp_path: Path, files: list[str], empty: str, missing: str
) -> None:
    write_folder(tmp_path, dict.fromkeys(files, PICTURE))
    read(tmp_path)
    (tmp_path / empty).mkdir()
    with pytest.raises(UserError, match=rf": {missing} has no images; fill or remove it$"):
        read(tmp_path)
    write_folder(tmp_path, {f"{empty}/a.heic": b"?"})  # nor is one that cannot be read
    with pytest.raises(UserError, match=rf": {missing} has no images; fill or remove it$"):
        read(tmp_path)


def test_other_empty_folders_do_no_harm(tmp_path: Path) -> None:
    write_folder(
        tmp_path, {"train/cat/a.png": PICTURE, "train/dog/b.png": PICTURE, "val/cat/c.png": b""}
    )
    for name in ("annotations", "train/cat/deeper", ".cache"):
        (tmp_path / name).mkdir()
    write_folder(tmp_path, {"train/notes/a.txt": b"?"})
    assert set(classes(tmp_path)) == {"cat/a.png", "dog/b.png"}


def test_in_the_folder_of_a_split_the_names_of_shards_say_nothing(tmp_path: Path) -> None:
    for name in ("train/train-0.tar", "train/more.tar", "test/all.tar"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        with tarfile.open(tmp_path / name, "w") as tar:
            tar.addfile(tarfile.TarInfo(f"{Path(name).stem}.png"))
    parts = {split: {s.key for s in part} for split, part in read(tmp_path).samples.items()}
    assert parts == {"train": {"train-0", "more"}, "test": {"all"}}


def test_shards_in_folders_that_name_no_split_are_refused(tmp_path: Path) -> None:
    write_folder(tmp_path, {"a/0.tar": b"", "b/0.tar": b""})
    with pytest.raises(UserError, match=r"shards lie in a and b, which name no split; give a glob"):
        read(tmp_path)
