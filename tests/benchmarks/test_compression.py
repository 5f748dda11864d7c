"""benchmarks/compression.py: what is derived of bytes and PSNR, and a run from end to end."""

import json
import statistics
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from benchmarks import compression, other_codecs, our_codec
from benchmarks.rates import Curve, Ladder, Point, constant_bytes
from benchmarks.verdicts import aim_line, gain_line, gains, saving_line
from stage2_prior.codec.container import HEADER, Mode
from stage2_prior.codec.pictures import Codec, Length
from stage2_prior.codec.static import StaticCoder

if TYPE_CHECKING:
    from tests.conftest import TinyRun


def point(size: float, psnr: float) -> Point:
    return Point("", size + 100, size, psnr, 0.5, 0.5, 1.0, 1.0)


@pytest.mark.parametrize(
    ("files", "constant"),
    [
        ([b"abcXdY", b"abcUdV"], 4),  # a place behind one that differs counts, too
        ([b"ab12z", b"ab3z"], 3),  # from both ends
        ([b"R\x04abcd", b"R\x06efghij"], 2),  # the second byte is the length of what follows
        ([b"R\x04abcd", b"R\x07efghij"], 1),
        ([b"abc", b"abc"], 3),
        ([b"a", b"ba"], 1),
        ([b"xyz", b"ab"], 0),
    ],
)
def test_constant_bytes_are_those_that_tell_nothing(files: list[bytes], constant: int) -> None:
    assert constant_bytes(files) == constant


def test_a_ladder_is_read_by_bytes_and_by_psnr() -> None:
    ladder = Ladder(0, [4, 16, 20], [20.0, 22.0, 23.0])
    assert ladder.at(3.9) is None
    assert ladder.at(16) == ladder.at(19.9) == (16, 22.0)
    assert ladder.at(1000) == (20, 23.0)
    assert [ladder.first_reaching(psnr) for psnr in (19, 20, 21, 23, 23.1)] == [4, 4, 16, 20, None]
    assert ladder.bytes_at(21) == pytest.approx(8)  # half way from 4 to 16, by the logarithm
    assert ladder.bytes_at(20) == 4 and ladder.bytes_at(22) == pytest.approx(16)
    assert ladder.bytes_at(19) is ladder.bytes_at(24) is None


def test_lines_say_where_we_are_above_others() -> None:
    ladder = Ladder(7, [4, 16], [20.0, 22.0])
    line = aim_line(ladder, "theirs", point(18, 21.0), 18)
    assert line == (
        "theirs: +1.00 dB (22.00 by 16 bytes); its 21.00 dB reached at 8.0 bytes interpolated, "
        "16 in fact"
    )
    assert "never reached" in aim_line(ladder, "theirs", point(18, 25.0), 18)
    assert "nothing as small" in aim_line(ladder, "theirs", point(3, 15.0), 3)
    theirs = Curve("theirs", 2, [point(3, 1.0), point(5, 21.0), point(17, 21.5), point(121, 30.0)])
    found = gains(ladder, theirs, 120)
    assert found == [(5, -1.0), (17, 0.5)]
    assert "at 1 of 2 sizes" in gain_line("theirs", found)
    assert saving_line("static:", [(4, 12.5)]).endswith("at equal PSNR: 12.5% of 4")


def test_savings_are_those_of_real_files(tiny_run: "TinyRun") -> None:
    plain = Codec.from_pretrained(tiny_run.tokenizer)
    images = compression.read_pictures(str(tiny_run.data), plain.image_size, 12)
    codes = plain.encode(images)
    tables = StaticCoder.of_codes(codes.repeat(20, 1), plain.tokenizer.quantizer.sizes)
    codec = our_codec.OnceEncoding(Codec(plain.tokenizer, {Mode.STATIC: tables}))
    found = dict(our_codec.savings(codec, images, Mode.STATIC))
    assert list(found) == [2, 3]  # 4 bits a code, and 6 codes
    assert found[3] > 0
    for size, k in ((2, 4), (3, 6)):
        shapes = [(16, 16)] * len(images)
        files = codec.compress(images, shapes, Length(codes=k), mode=Mode.STATIC)
        mean = statistics.fmean(map(len, files)) - HEADER
        assert found[size] == pytest.approx(100 * (1 - mean / size))


def test_a_run_leaves_numbers_and_pictures_without_what_is_missing(
    tiny_run: "TinyRun",
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    pytest.importorskip("matplotlib")
    for name in ("blurhash", "pillow_jxl"):
        monkeypatch.setitem(sys.modules, name, None)
    lowest = {form: qualities[:2] for form, qualities in other_codecs.QUALITIES.items()}
    monkeypatch.setattr(other_codecs, "QUALITIES", lowest)
    arguments = [
        "--model",
        str(tiny_run.tokenizer),
        "--images",
        f"tiny={tiny_run.data}",
        "--n",
        "3",
    ]
    for kind, suffix in (("json", "json"), ("plot", "png"), ("strip", "png")):
        arguments += [f"--{kind}", str(tmp_path / f"{kind}.{suffix}")]
    assert compression.main(arguments) == 0
    out, err = capsys.readouterr()
    assert "no BlurHash: pip install blurhash\nno JPEG XL: pip install pillow-jxl-plugin\n" in err
    assert "effort 0: ThumbHash, 24 bytes: " in out and "BlurHash" not in out
    report = json.loads((tmp_path / "json.json").read_text())
    found: dict[str, Any] = report["sets"]["tiny"]
    assert found["pictures"] == 3 and found["answers"] == out.splitlines()[-len(found["answers"]) :]
    curves = {curve["method"]: curve["points"] for curve in found["curves"]}
    assert {"ThumbHash", "WebP", "JPEG 4:2:0"} < curves.keys()
    ours, ladder = curves["ours fixed, effort 0"], found["ladders"][0]
    assert [point["bytes"] for point in ours] == [HEADER + 2, HEADER + 3]
    for point in ours:  # the prefixes that are judged are those of the files
        place = ladder["sizes"].index(point["bare_bytes"])
        assert point["psnr"] == pytest.approx(ladder["psnrs"][place])
    for name in ("plot", "strip"):
        assert (tmp_path / f"{name}.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--images", "tiny"], "--images tiny: give NAME=PATH"),
        (["--images", "a=emoji", "--images", "a=emoji"], "a set a already"),
        (["--images", "a=nowhere"], "nowhere: no such file"),
        (["--images", "a=emoji", "--json", "a.txt"], "a.txt: give a .json file"),
        (["--images", "a=emoji", "--plot", "nowhere/a.png"], "nowhere/a.png: give a .png file"),
        (["--images", "a=emoji", "--model", "nowhere"], "nowhere: no tokenizer here"),
    ],
)
def test_bad_input_is_one_line(
    arguments: list[str],
    complaint: str,
    tiny_run: "TinyRun",
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert compression.main(["--model", str(tiny_run.tokenizer), *arguments]) == 2
    message = capsys.readouterr().err
    assert message.startswith("error: ") and complaint in message
    assert message.count("\n") == 1
    assert not list(tmp_path.iterdir())
