"""The browser's decoder: it shows what the file of weights says, and refuses what is damaged."""

import base64
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

import pqvae
from pqvae.images import to_uint8
from stage2_prior.codec.container import HEADER, Header, Mode, model_id, pack
from stage2_prior.codec.fixed import FixedCoder
from stage2_prior.codec.web_weights import WebWeights
from tests.web.conftest import WEB, Decode, Exported
from tests.web.small_tokenizer import CODES, random_tokenizer


@pytest.fixture(scope="module")
def rows(exported: Exported) -> list[list[int]]:
    """All codes of eight pictures."""
    generator = torch.Generator().manual_seed(4)
    sizes = exported.tokenizer.quantizer.sizes
    columns = [torch.randint(0, K, (8,), generator=generator) for K in sizes]
    return torch.stack(columns, dim=1).tolist()


def file(exported: Exported, codes: list[int], mode: Mode = Mode.FIXED) -> bytes:
    model = model_id(exported.tokenizer.codes_hash)
    content = exported.payload(codes)
    return pack(Header.of_picture(mode, model, len(content), 1000, 500), codes, content)


def pixels(said: dict[str, Any]) -> Tensor:
    """uint8 (3, H, W), of a picture without transparency."""
    rgba = torch.tensor(said["data"], dtype=torch.uint8).view(said["height"], said["width"], 4)
    assert bool((rgba[..., 3] == 255).all())
    return rgba[..., :3].permute(2, 0, 1)


def assert_shows(exported: Exported, said: dict[str, Any], codes: list[int]) -> None:
    assert "error" not in said, said
    assert said["codes"] == codes
    expected = to_uint8(exported.weights.decode(torch.tensor([codes])))[0]
    shown = pixels(said)
    assert shown.shape == expected.shape == (3, 16, 16)
    # Numbers of 64 bits there and of 32 here may round to neighbours; two levels are the limit.
    assert (shown.int() - expected.int()).abs().max() <= 2
    assert expected.float().std() > 1, "a flat picture would prove nothing"


def test_placeholders_show_what_the_weights_say_whatever_their_length(
    exported: Exported, decode: Decode, rows: list[list[int]]
) -> None:
    prefixes = [row[:k] for row in rows for k in range(1, len(row) + 1)]
    shown = decode([exported.text(codes) for codes in prefixes])
    coder = FixedCoder(exported.tokenizer.quantizer.sizes)
    for said, codes in zip(shown, prefixes, strict=True):
        # Bits that are left over in the last byte may be another code of zero.
        held = coder.codes_in(coder.bytes_of(len(codes)))
        assert_shows(exported, said, [*codes, 0, 0][:held][:CODES])
        assert said["aspect"] == 1


def test_a_cut_placeholder_shows_a_coarser_picture(
    exported: Exported, decode: Decode, rows: list[list[int]]
) -> None:
    whole = exported.text(rows[0])
    shown = decode([whole[:letters] for letters in range(2, len(whole) + 1)])
    coder = FixedCoder(exported.tokenizer.quantizer.sizes)
    for letters, said in enumerate(shown, 2):
        assert_shows(exported, said, rows[0][: min(coder.codes_in(letters * 6 // 8), CODES)])
    counts = [len(said["codes"]) for said in shown]
    assert counts == sorted(counts)
    assert (counts[0], counts[-1]) == (2, CODES)


def test_files_show_the_same_in_their_shape_also_when_cut(
    exported: Exported, decode: Decode, rows: list[list[int]]
) -> None:
    whole = file(exported, rows[1])
    short = file(exported, rows[2][:3])
    said, few, *cut = decode([whole, short, *(whole[:size] for size in range(9, len(whole)))])
    assert_shows(exported, said, rows[1][:CODES])
    assert_shows(exported, few, rows[2][:3])
    assert said["aspect"] == pytest.approx(2, rel=0.002)
    coder = FixedCoder(exported.tokenizer.quantizer.sizes)
    for size, each in enumerate(cut, 9):
        assert_shows(exported, each, rows[1][: min(coder.codes_in(size - HEADER), CODES)])


def test_any_flipped_bit_of_a_file_is_noticed(
    exported: Exported, decode: Decode, rows: list[list[int]]
) -> None:
    whole = file(exported, rows[3])
    damaged = []
    for place in range(8 * len(whole)):
        flipped = bytearray(whole)
        flipped[place // 8] ^= 128 >> place % 8
        damaged.append(bytes(flipped))
    said = decode(damaged)
    for place, (content, each) in enumerate(zip(damaged, said, strict=True)):
        if content[5] <= whole[5]:  # where it says that it is longer, the file looks cut
            assert "error" in each, f"bit {place}"
    assert any("checksum" in each["error"] for each in said[8 * HEADER :])


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("", "not a placeholder"),
        ("no spaces", "not a placeholder: it has other signs than letters, digits, - and _"),
        ("abc=", "not a placeholder"),
        ("a", "too short: there is no whole code"),
        ("__", "damaged: code 15, where there are 12"),
        (b"", "not a .pq file"),
        (b"\x89PNG\r\n\x1a\n0000", "not a .pq file"),
        (b"\x84" + bytes(12), "not a .pq file, or of a later version (1, known: 0)"),
        (b"\x81" + bytes(12), "a .pq file of mode static; only those of mode fixed can be shown"),
        (b"\x82" + bytes(12), "a .pq file of mode context; only those of mode fixed"),
        (b"\x80\xff\xff" + bytes(12), "written with the model ffff, but the weights are of "),
    ],
)
def test_what_cannot_be_shown_is_refused_in_clear_words(
    decode: Decode, given: str | bytes, message: str
) -> None:
    [said] = decode([given])
    assert said["error"].startswith(message)


def test_a_file_that_goes_on_or_has_nothing_is_refused(
    exported: Exported, decode: Decode, rows: list[list[int]]
) -> None:
    whole = file(exported, rows[4])
    longer, none = decode([whole + b"\0", whole[:HEADER]])
    assert longer["error"] == "damaged: it goes on after its end"
    assert none["error"] == "cut off before its first picture"


@pytest.mark.parametrize("cut", [0, 5, 300, -1])
def test_damaged_weights_are_refused(
    exported: Exported, decode: Decode, tmp_path: Path, cut: int
) -> None:
    damaged = tmp_path / "damaged.bin"
    damaged.write_bytes(exported.path.read_bytes()[:cut])
    assert decode([], damaged) == [{"error": "not a file of weights, or damaged"}]


def test_channels_that_are_a_multiple_of_four_are_right_too(
    decode: Decode, rows: list[list[int]], tmp_path: Path
) -> None:
    tokenizer = random_tokenizer(latent_channels=4)
    other = Exported(tokenizer, WebWeights.of_tokenizer(tokenizer), tmp_path / "other.bin")
    other.path.write_bytes(other.weights.to_bytes())
    [said] = decode([other.text(rows[5])], other.path)
    assert_shows(other, said, rows[5][:CODES])


def test_the_data_url_is_an_image_of_the_same_pixels(
    exported: Exported, decode: Decode, rows: list[list[int]]
) -> None:
    [said] = decode([exported.text(rows[6])])
    head, content = said["url"].split(",")
    assert head == "data:image/bmp;base64"
    with Image.open(io.BytesIO(base64.b64decode(content))) as image:
        shown = torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)
    assert torch.equal(shown, pixels(said))


def test_the_module_is_small_and_goes_by_the_version_of_the_package() -> None:
    assert (WEB / "pqvae.js").stat().st_size <= 15_000
    package = json.loads((WEB / "package.json").read_text())
    assert package["version"] == pqvae.__version__
    assert "dependencies" not in package
    assert all((WEB / name).is_file() for name in package["files"])
