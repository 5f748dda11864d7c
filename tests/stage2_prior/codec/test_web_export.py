"""export_web as a user types it: the file, what it is worth, the examples, and bad input."""

import base64
import io
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from PIL import Image

from pqvae.files import read_json
from stage1_tokenizer import Tokenizer
from stage1_tokenizer.decoder_config import SmallConfig
from stage2_prior import export_web
from stage2_prior.codec.pictures import Codec
from stage2_prior.codec.web_weights import WebWeights
from tests.web.small_tokenizer import add_small

if TYPE_CHECKING:
    from tests.conftest import TinyRun


@pytest.fixture
def work(tiny_run: "TinyRun", tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory with the tiny run in ``tokenizer``, with a small decoder of four codes."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(tiny_run.tokenizer, "tokenizer")
    tokenizer = Tokenizer.from_pretrained("tokenizer")
    decoder = add_small(tokenizer, SmallConfig(width=16, codes=4))
    decoder.init_from_faithful(tokenizer.decoder())
    tokenizer.save_pretrained("tokenizer/model")
    return tmp_path


def export(tiny_run: "TinyRun", *arguments: str) -> int:
    places = ["--tokenizer", "tokenizer", "--out", "web/small.bin", "--data", str(tiny_run.data)]
    return export_web.main([*places, "--device", "cpu", *arguments])


def test_it_writes_the_weights_and_says_what_they_are_worth(
    work: Path, tiny_run: "TinyRun", capsys: pytest.CaptureFixture[str]
) -> None:
    assert export(tiny_run) == 0
    content = Path("web/small.bin").read_bytes()
    weights = WebWeights.from_bytes(content)
    assert weights.model.model == Tokenizer.from_pretrained("tokenizer").codes_hash[:4]
    assert weights.model.codes == 4
    title, *rows, last = capsys.readouterr().out.splitlines()
    assert title.startswith("PSNR in dB of 12 pictures of ")
    assert [row.split()[0] for row in rows] == ["faithful", "small", "file"]
    assert last == (
        f"made web/small.bin of {len(content):,} bytes, for 4 codes; "
        "web/README.md shows how to use it"
    )
    assert not Path("web/examples.json").exists()


def test_examples_are_placeholders_and_small_pictures(work: Path, tiny_run: "TinyRun") -> None:
    Image.new("RGB", (300, 100), (200, 30, 30)).save("red.png")
    shutil.copytree(tiny_run.data / "test" / "circles", "more")
    assert export(tiny_run, "--examples", "red.png", "more") == 0
    red, *others = read_json(Path("web/examples.json"))
    assert red["name"] == "red"
    assert red["aspect"] == 3
    assert len(others) == len(list(Path("more").iterdir()))
    codec = Codec.from_pretrained("tokenizer")
    for example in (red, *others):
        assert len(codec.read_placeholder(example["placeholder"])) == 4
        head, content = example["picture"].split(",")
        assert head == "data:image/webp;base64"
        with Image.open(io.BytesIO(base64.b64decode(content))) as image:
            assert image.size == (96, 96)
    assert Path("web/examples.json").stat().st_size < 4000 * (1 + len(others))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--tokenizer", "nowhere"], "nowhere"),
        (["--examples", "missing.png"], "missing.png: no such file or folder"),
        (["--data", "nowhere"], "nowhere"),
        (["--example", "a.png"], "--example"),
    ],
)
def test_bad_input_is_one_line(
    work: Path,
    tiny_run: "TinyRun",
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    message: str,
) -> None:
    assert export(tiny_run, *arguments) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: ")
    assert message in error
    assert not Path("web").exists()


def test_a_tokenizer_without_a_small_decoder_is_told_how_to_get_one(
    work: Path, tiny_run: "TinyRun", capsys: pytest.CaptureFixture[str]
) -> None:
    assert export(tiny_run, "--tokenizer", str(tiny_run.tokenizer)) == 2
    assert "train_small gives it one" in capsys.readouterr().err
