"""Labels: one reading of what folders, files beside the images, and lists say."""

import unicodedata
from pathlib import Path

import pytest

from pqvae.data.labels import Said, listed_classes, parse_label, settle_labels
from pqvae.errors import UserError

BOM = "\ufeff"


@pytest.mark.parametrize(
    ("text", "extension", "label"),
    [
        ("daisy", "cls", "daisy"),
        (f"{BOM}daisy\r\n", "cls", "daisy"),
        (" 007\n", "cls", "7"),
        ('{"label": "rose", "caption": "a rose"}', "json", "rose"),
        ('{"cls": 3}', "json", "3"),
        (f'{BOM}{{"label": 3, "cls": "3"}}', "json", "3"),
        ('{"caption": "a rose"}', "json", None),
        ('{"label": [0, 1, 0], "cls": null}', "json", None),
        ('[{"label": "of a box"}]', "json", None),
        ('["label"]', "json", None),
        ('{"label": " rose "}', "json", "rose"),
        ("x" * 200, "cls", "x" * 200),
        (unicodedata.normalize("NFD", "pensée"), "cls", unicodedata.normalize("NFC", "pensée")),
    ],
)
def test_a_file_beside_an_image_says_its_class(
    text: str, extension: str, label: str | None
) -> None:
    assert parse_label(text.encode(), extension, "x") == label


@pytest.mark.parametrize(
    ("data", "extension"),
    [
        (b"", "cls"),
        (b"\xff\xfe", "cls"),
        (b"two\nlines", "cls"),
        (b"x" * 201, "cls"),
        (b'{"label": "rose", "cls": "tulip"}', "json"),
        (b'{"label": 1.5}', "json"),
        (b'{"label": true}', "json"),
        (b'{"label": ', "json"),
        (b"[" * 100_000, "json"),
    ],
)
def test_a_label_that_names_no_one_class_is_refused(data: bytes, extension: str) -> None:
    with pytest.raises(UserError, match=r"^a\.x: (must hold a class|not a JSON file)"):
        parse_label(data, extension, "a.x")


def settled(*pairs: tuple[str | None, str | None], names: tuple[str, ...] = ()) -> object:
    said = [Said(f"image {i}", *pair) for i, pair in enumerate(pairs)]
    return settle_labels(said, names, Path("classes.txt"))


def test_one_of_folder_and_file_is_enough_and_both_may_agree() -> None:
    assert settled(("a", None), ("b", None), (None, None)) == (["a", "b", None], ())
    assert settled((None, "a"), (None, "3")) == (["a", "3"], ())
    assert settled(("a", "a"), ("01", "1")) == (["a", "01"], ())


def test_numbers_beside_names_are_those_names_in_that_order() -> None:
    pairs = [("rose", "10"), ("tulip", "2"), ("rose", "10"), (None, "2")]
    assert settled(*pairs) == (["rose", "tulip", "rose", "tulip"], ("tulip", "rose"))
    assert settled(("10", "rose"), ("2", "tulip")) == (["rose", "tulip"], ("tulip", "rose"))


def test_a_list_names_the_numbers_of_files_and_of_folders() -> None:
    names = ("daisy", "rose")
    assert settled((None, "1"), (None, "0"), names=names) == (["rose", "daisy"], names)
    assert settled(("1", None), ("0", "daisy"), names=names) == (["rose", "daisy"], names)
    assert settled(("rose", "1"), names=names) == (["rose"], names)
    assert settled((None, "tulip"), names=names) == (["tulip"], ())  # no number needs the list
    with pytest.raises(UserError, match=r"image 0: label 2 has no line in classes.txt \(its 2 lin"):
        settled((None, "2"), names=names)


@pytest.mark.parametrize(
    ("pairs", "names", "message"),
    [
        ([("daisy", "rose")], (), r"image 0: its folder says daisy, the file beside it rose; make"),
        ([("daisy", "1")], ("daisy", "rose"), r"its folder says daisy, the file beside it rose"),
        ([("1", "2")], (), r"its folder says 1, the file beside it 2"),
        ([("a", "1"), ("b", "1")], (), r"image 1: its folder says b, .* it 1, and 1 is also a; "),
        ([("a", "1"), ("a", "2")], (), r"its folder says a, .*, and one name has two numbers"),
    ],
)
def test_where_folder_and_file_disagree_both_are_said(
    pairs: list[tuple[str, str]], names: tuple[str, ...], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        settled(*pairs, names=names)


def test_a_list_may_come_from_any_editor(tmp_path: Path) -> None:
    path = tmp_path / "classes.txt"
    assert listed_classes(path) == ()
    path.write_bytes(f"{BOM}daisy\r\nrose \r\n\r\n".encode())
    assert listed_classes(path) == ("daisy", "rose")
    path.write_text(unicodedata.normalize("NFD", "pensée"), encoding="utf-8")
    assert listed_classes(path) == (unicodedata.normalize("NFC", "pensée"),)
