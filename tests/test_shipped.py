"""The models that come with the package: small, whole, and of codes that never change."""

import json
from pathlib import Path

import pytest
import torch

from pqvae.images import psnr, to_float, to_uint8
from stage1_tokenizer import Tokenizer
from stage1_tokenizer.shipped import find_model, shipped_models
from stage1_tokenizer.tokenizer import FAITHFUL, VIVID
from stage2_prior.codec.container import Mode
from stage2_prior.codec.pictures import Codec

# Files of each model in each mode, with their codes and mean colours. Later versions read them all:
# add to them, but never write them anew.
GOLDEN = sorted((Path(__file__).parent / "golden").glob("*.json"))
MOST_BYTES = 3_000_000


@pytest.mark.parametrize("name", shipped_models())
def test_a_model_is_small_and_says_what_it_was_trained_on(name: str) -> None:
    folder = find_model(name)
    assert sum(path.stat().st_size for path in folder.iterdir()) <= MOST_BYTES
    tokenizer = Tokenizer.from_pretrained(name)
    assert tokenizer.provenance["data_hash"]
    assert list(tokenizer.decoders) == [FAITHFUL, VIVID]
    assert not tokenizer.trained_with(FAITHFUL)
    assert "ImageNet" in tokenizer.trained_with(VIVID)
    assert (folder / "README.md").is_file()


@pytest.mark.parametrize("path", GOLDEN, ids=lambda path: path.stem)
def test_files_of_earlier_versions_decode_to_the_same_codes(path: Path) -> None:
    golden = json.loads(path.read_text())
    codec = Codec.from_pretrained(golden["model"])
    modes = set()
    for each in golden["files"]:
        content = codec.read(bytes.fromhex(each["file"]))
        modes.add(content.header.mode)
        assert content.whole
        assert content.codes == each["codes"]
        colours = codec.decompress(content, FAITHFUL, 8).float().mean((1, 2))
        # Processors round networks differently, by far less than a level.
        torch.testing.assert_close(colours, torch.tensor(each["colours"]), atol=1, rtol=0)
    for text, codes in golden["placeholders"].items():
        assert codec.read_placeholder(text) == codes
    assert modes == {Mode.FIXED, Mode.STATIC}


def test_every_shipped_model_has_golden_files() -> None:
    assert [path.stem.split("-")[0] for path in GOLDEN] == shipped_models()


@pytest.mark.parametrize("name", shipped_models())
def test_a_longer_prefix_is_nearer_to_pictures_that_it_has_not_seen(name: str) -> None:
    tokenizer = Tokenizer.from_pretrained(name)
    line = torch.linspace(-1, 1, tokenizer.config.image_size)
    waves = [torch.sin(3 * a * line[:, None] + b * line) for a, b in ((1, 2), (2, -1), (0, 3))]
    images = to_uint8(torch.stack([torch.stack(waves), torch.stack(waves[::-1])]))
    codes = tokenizer.encode(to_float(images))
    levels = [
        float(psnr(to_uint8(tokenizer.decode(codes[:, :k])), images).mean())
        for k in (1, 4, 16, tokenizer.num_codes)
    ]
    assert levels == sorted(levels)
    assert levels[-1] > levels[0] + 3
