"""``pqvae`` as a user types it, and the three functions, by a tiny model."""

import io
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from pqvae.errors import UserError
from pqvae.images import encode_png, to_uint8
from stage1_tokenizer import Tokenizer
from stage2_prior.codec import compress, decompress, placeholder
from stage2_prior.codec.container import FormatError
from stage2_prior.compress import main
from tests.conftest import SIZE, BlobImages, TinyRun

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def model(tiny_tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    tiny_tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def pictures(blob_images: BlobImages, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six pictures of 24x16 pixels, in two folders."""
    folder = tmp_path_factory.mktemp("pictures")
    for index, image in enumerate(to_uint8(blob_images(6, 24, 7))):
        path = folder / ("a" if index < 3 else "b") / f"{index}.png"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(encode_png(image[:, 4:20]))
    return folder


@pytest.fixture
def pqvae(model: Path, capsys: pytest.CaptureFixture[str]) -> Run:
    def run(command: str, *arguments: object, by: Path = model) -> tuple[int, str, str]:
        code = main([command, *map(str, arguments), "--model", str(by), "--device", "cpu"])
        printed = capsys.readouterr()
        return code, printed.out, printed.err

    return run


def test_a_folder_in_a_folder_out_and_back(pqvae: Run, pictures: Path, tmp_path: Path) -> None:
    code, out, _ = pqvae("encode", pictures, "-o", tmp_path / "small", "--bytes", 11)
    assert (code, "made 6 files of" in out) == (0, True)
    files = sorted((tmp_path / "small").rglob("*.pq"))
    names = [str(file.relative_to(tmp_path / "small")) for file in files]
    assert names == ["a/0.pq", "a/1.pq", "a/2.pq", "b/3.pq", "b/4.pq", "b/5.pq"]
    assert all(len(file.read_bytes()) <= 11 for file in files)
    code, out, _ = pqvae("decode", tmp_path / "small", "-o", tmp_path / "large", "--side", 60)
    assert (code, "made 6 pictures" in out) == (0, True)
    with Image.open(tmp_path / "large/b/4.png") as image:
        assert image.size == (60, 40)
    code, out, _ = pqvae("info", files[0])
    assert code == 0
    assert "11 bytes (8 of header), fixed, 6 codes" in out


def test_nothing_is_overwritten_unless_asked(pqvae: Run, pictures: Path, tmp_path: Path) -> None:
    out = tmp_path / "one.pq"
    assert pqvae("encode", pictures / "a/0.png", "-o", out)[0] == 0
    before = out.read_bytes()
    code, _, error = pqvae("encode", pictures / "a/1.png", "-o", out)
    assert (code, error) == (2, f"error: {out}: there already; --force replaces them\n")
    assert out.read_bytes() == before
    assert pqvae("encode", pictures / "a/1.png", "-o", out, "--force")[0] == 0
    assert out.read_bytes() != before


def test_what_cannot_be_read_is_passed_over_and_counted(
    pqvae: Run, pictures: Path, tmp_path: Path
) -> None:
    shutil.copytree(pictures, tmp_path / "in")
    (tmp_path / "in/a/broken.png").write_bytes(b"\x89PNG but no more")
    code, out, error = pqvae("encode", tmp_path / "in", "-o", tmp_path / "out")
    assert code == 0
    assert "made 6 files" in out and "1 files passed over" in out
    assert "passed over" in error and "broken.png" in error
    code, _, error = pqvae("encode", tmp_path / "in/a/broken.png", "-o", tmp_path / "x.pq")
    assert code == 2
    assert "broken.png" in error
    assert not (tmp_path / "x.pq").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["encode", "nothing.png", "-o", "x.pq"], "nothing.png: no such file or folder"),
        (["encode", "a.png", "-o", "x.txt"], "must end in .pq"),
        (["encode", "a.png", "b/a.png", "-o", "out"], "would both become out/a.pq"),
        (["encode", "empty", "-o", "out"], "no pictures in this folder"),
        (["encode", "a.png", "-o", "x.pq", "--bytes", "8"], "8 bytes hold no picture"),
        (["encode", "a.png", "-o", "x.pq", "--mode", "static"], "pqvae tables"),
        (["encode", "a.png", "-o", "x.pq", "--mode", "context"], "--prior"),
        (["decode", "-o", "x.png"], "--placeholder"),
        (["decode", "--placeholder", "!", "-o", "x.png"], "not a placeholder"),
        (["decode", "a.png", "-o", "x.png"], "a.png"),
        (["placeholder", "a.png", "--bytes", "0"], "not a whole number of at least 1"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(
    arguments: list[str],
    message: str,
    pqvae: Run,
    pictures: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("a.png", "b/a.png"):
        Path(name).parent.mkdir(exist_ok=True)
        shutil.copy(pictures / "a/0.png", name)
    Path("empty").mkdir()
    code, out, error = pqvae(*arguments)
    assert (code, out, error.count("\n")) == (2, "", 1)
    assert message in error
    assert not list(tmp_path.glob("x.*")) and not Path("out").exists()


def test_no_command_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in ([], ["encoed"]):
        assert main(arguments) == 2
        assert "give one of encode, decode, info" in capsys.readouterr().err


def test_placeholders_are_lines_of_text_that_decode(
    pqvae: Run, pictures: Path, tmp_path: Path
) -> None:
    code, out, _ = pqvae("placeholder", pictures, "--bytes", 3)
    lines = [line.split("\t") for line in out.splitlines()]
    assert code == 0
    assert [Path(path).name for _, path in lines] == [f"{index}.png" for index in range(6)]
    assert {len(text) for text, _ in lines} == {4}
    code, out, _ = pqvae("placeholder", pictures / "a/0.png", "--bytes", 3)
    assert out.strip() == lines[0][0]
    code, out, _ = pqvae("decode", "--placeholder", out.strip(), "-o", tmp_path / "p.png")
    assert (code, out) == (0, f"made {tmp_path}/p.png of 6 codes\n")


def test_near_copies_are_found_among_pictures_and_files(
    pqvae: Run, pictures: Path, tmp_path: Path
) -> None:
    shutil.copytree(pictures, tmp_path / "in")
    with Image.open(pictures / "b/4.png") as image:
        image.resize((48, 32)).save(tmp_path / "in/again.jpg", quality=90)
    pqvae("encode", pictures / "a/2.png", "-o", tmp_path / "in/small.pq")
    code, out, _ = pqvae("similar", tmp_path / "in", "--bytes", 3, "--within", 0.02)
    *pairs, last = out.splitlines()
    assert code == 0
    assert last.startswith("2 pairs of 8 files within 0.02")
    names = {frozenset(Path(name).name for name in pair.split("\t")[1:]) for pair in pairs}
    assert names == {frozenset({"4.png", "again.jpg"}), frozenset({"2.png", "small.pq"})}


def test_tables_make_the_static_mode(pqvae: Run, tiny_run: TinyRun, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(tiny_run.tokenizer / "model", folder)
    code, out, _ = pqvae("tables", "--data", tiny_run.data, by=folder)
    assert code == 0
    assert "tables.safetensors of 66 images" in out
    picture = next((tiny_run.data / "test").rglob("*.png"))
    for mode in ("fixed", "static"):
        out = tmp_path / f"{mode}.pq"
        assert pqvae("encode", picture, "-o", out, "--mode", mode, by=folder)[0] == 0
        assert pqvae("decode", out, "-o", tmp_path / f"{mode}.png", by=folder)[0] == 0
    made = [(tmp_path / f"{mode}.png").read_bytes() for mode in ("fixed", "static")]
    assert made[0] == made[1]


@pytest.fixture
def image(blob_images: BlobImages) -> Tensor:
    return to_uint8(blob_images(1, SIZE, 8))[0]


def test_one_picture_in_every_form_makes_one_file(
    image: Tensor, model: Path, tmp_path: Path
) -> None:
    png, path = encode_png(image), tmp_path / "a.png"
    path.write_bytes(png)
    pixels = np.ascontiguousarray(image.permute(1, 2, 0))
    forms = [png, path, str(path), pixels, Image.fromarray(pixels), Image.open(io.BytesIO(png))]
    files = {compress(form, model=model) for form in forms}
    assert len(files) == 1
    shown = decompress(files.pop(), model=model)
    assert (shown.mode, shown.size) == ("RGB", (SIZE, SIZE))
    shorter = compress(png, bytes=10, model=model)
    assert len(shorter) == 10
    text = placeholder(png, bytes=3, model=model)
    assert decompress(text, model=model, side=40).size == (40, 40)


def test_what_is_no_picture_or_no_file_is_told(model: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"gone\.png"):
        compress(tmp_path / "gone.png", model=model)
    with pytest.raises(UserError, match="the picture: not an image"):
        compress(b"nothing", model=model)
    with pytest.raises(FormatError, match=r"not a \.pq file"):
        decompress(b"nothing", model=model)
    with pytest.raises(UserError, match="no tokenizer here"):
        compress(b"", model=tmp_path)


def test_a_picture_alone_is_that_of_a_batch_within_rounding(
    blob_images: BlobImages, model: Path, tiny_tokenizer: Tokenizer
) -> None:
    images = to_uint8(blob_images(4, SIZE, 9))
    together = tiny_tokenizer.encode(images.float() / 127.5 - 1)
    together = tiny_tokenizer.decode(together)
    for made, image in zip(to_uint8(together), images, strict=True):
        alone = np.asarray(decompress(compress(encode_png(image), model=model), model=model))
        difference = torch.from_numpy(alone.astype(int)).permute(2, 0, 1) - made.int()
        assert difference.abs().max() <= 1
