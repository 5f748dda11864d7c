"""Pictures <-> files and placeholders, by a tiny tokenizer."""

from collections import Counter

import numpy as np
import pytest
import torch
from torch import Tensor

from benchmarks import fuzz
from pqvae.errors import UserError
from pqvae.images import psnr, to_float, to_uint8
from stage1_tokenizer import Tokenizer
from stage2_prior.books import Codebooks
from stage2_prior.codec.container import HEADER, FormatError, Mode
from stage2_prior.codec.context import ContextCoder
from stage2_prior.codec.pictures import Codec, Length
from stage2_prior.codec.static import StaticCoder
from tests.conftest import SIZE, BlobImages
from tests.stage2_prior.random_prior import TINY, make_prior

SHAPES = [(16, 16), (600, 400), (30, 1200), (16, 17)]


@pytest.fixture(scope="module")
def images(blob_images: BlobImages) -> Tensor:
    return to_uint8(blob_images(len(SHAPES), SIZE, 3))


@pytest.fixture(scope="module")
def codec(tiny_tokenizer: Tokenizer, images: Tensor) -> Codec:
    """With all three modes."""
    codes = tiny_tokenizer.encode(to_float(images))
    prior = make_prior(TINY, 0, Codebooks.of(tiny_tokenizer.quantizer))
    coders = {
        Mode.STATIC: StaticCoder.of_codes(codes, tiny_tokenizer.quantizer.sizes),
        Mode.CONTEXT: ContextCoder(prior),
    }
    return Codec(tiny_tokenizer, coders)


@pytest.mark.parametrize("mode", Mode)
def test_a_file_gives_back_the_codes_and_the_shape(
    codec: Codec, images: Tensor, mode: Mode
) -> None:
    codes = codec.encode(images).tolist()
    files = codec.compress(images, SHAPES, mode=mode)
    for data, row, (width, height) in zip(files, codes, SHAPES, strict=True):
        content = codec.read(data)
        assert (content.codes, content.whole, content.header.mode) == (row, True, mode)
        picture = codec.decompress(content)
        assert picture.dtype == torch.uint8
        shown = picture.shape[2] / picture.shape[1]
        assert shown == pytest.approx(width / height, rel=0.01, abs=1 / picture.shape[1])


def test_a_square_of_its_own_size_is_what_the_decoder_makes(codec: Codec, images: Tensor) -> None:
    data = codec.compress(images[:1], [(SIZE, SIZE)])[0]
    made = to_uint8(codec.tokenizer.decode(codec.encode(images[:1])))
    assert torch.equal(codec.decompress(codec.read(data)), made[0])


@pytest.mark.parametrize("mode", Mode)
@pytest.mark.parametrize("most", [9, 10, 11, 12])
def test_a_file_is_never_longer_than_asked(
    codec: Codec, images: Tensor, mode: Mode, most: int
) -> None:
    codes = codec.encode(images).tolist()
    for data, row in zip(
        codec.compress(images, SHAPES, Length(bytes=most), mode=mode), codes, strict=True
    ):
        assert len(data) <= most
        k = len(codec.read(data).codes)
        payloads = list(codec.coder(mode).payloads(row))
        assert k == len(row) or HEADER + len(payloads[k]) > most  # one more would not fit


def test_no_more_codes_are_written_than_reach_a_psnr(codec: Codec, images: Tensor) -> None:
    codes = codec.encode(images)
    levels = [
        psnr(to_uint8(codec.tokenizer.decode(codes[:, :k])), images)
        for k in range(1, codec.tokenizer.num_codes + 1)
    ]
    wanted = float(levels[2].median())
    for index, data in enumerate(codec.compress(images, SHAPES, Length(psnr=wanted))):
        reached = [float(level[index]) >= wanted for level in levels]
        first = reached.index(True) + 1 if any(reached) else len(levels)
        assert len(codec.read(data).codes) == first


def test_a_higher_effort_describes_pictures_better(codec: Codec, blob_images: BlobImages) -> None:
    images = to_uint8(blob_images(32, SIZE, 4))

    def quality(effort: int) -> float:
        made = codec.tokenizer.decode(codec.encode(images, effort))
        return float(psnr(to_uint8(made), images).mean())

    assert quality(0) < quality(9)
    assert quality(2) < quality(9)


def test_a_cut_file_is_a_coarser_picture_and_says_so(codec: Codec, images: Tensor) -> None:
    data = codec.compress(images[:1], SHAPES[:1])[0]
    whole = codec.read(data)
    content = codec.read(data[:-1])
    assert not content.whole
    assert 0 < len(content.codes) < len(whole.codes)
    assert content.codes == whole.codes[: len(content.codes)]
    with pytest.raises(FormatError, match="cut off before its first picture"):
        codec.read(data[:HEADER])


@pytest.mark.parametrize("mode", Mode)
def test_damage_is_told_apart_from_a_cut(codec: Codec, images: Tensor, mode: Mode) -> None:
    data = codec.compress(images[:1], SHAPES[:1], mode=mode)[0]
    for place in range(len(data)):
        for bit in range(8):
            flipped = bytearray(data)
            flipped[place] ^= 1 << bit
            if flipped[5] > data[5]:  # as if more bytes had followed: nothing tells it from a cut
                assert not codec.read(bytes(flipped)).whole
                continue
            with pytest.raises(FormatError):
                codec.read(bytes(flipped))


def test_another_models_file_is_refused(
    codec: Codec, images: Tensor, tiny_tokenizer: Tokenizer
) -> None:
    data = bytearray(codec.compress(images[:1], SHAPES[:1])[0])
    data[1] ^= 255
    with pytest.raises(FormatError, match="written with the model"):
        codec.read(bytes(data))


def test_another_prior_never_shows_a_picture(codec: Codec, images: Tensor) -> None:
    """Be it known as another one, or one that computes other numbers."""
    files = codec.compress(images, SHAPES, mode=Mode.CONTEXT)
    other = make_prior(TINY, 0, Codebooks.of(codec.tokenizer.quantizer))
    with torch.no_grad():
        other.position_embedding.add_(0.1)
    desynced = Codec(codec.tokenizer, {Mode.CONTEXT: ContextCoder(other)})
    other.content_hash = "another"
    foreign = Codec(codec.tokenizer, {Mode.CONTEXT: ContextCoder(other)})
    for data in files:
        with pytest.raises(FormatError, match="damaged: its checksum does not fit"):
            desynced.read(data)
        with pytest.raises(FormatError, match="written with the model"):
            foreign.read(data)


def test_a_mode_whose_needs_are_missing_says_them(tiny_tokenizer: Tokenizer) -> None:
    codec = Codec(tiny_tokenizer, {})
    with pytest.raises(UserError, match="pqvae tables"):
        codec.coder(Mode.STATIC)
    with pytest.raises(UserError, match="--prior"):
        codec.coder(Mode.CONTEXT)


@pytest.mark.parametrize("size", [1, 2, 3, 4])
def test_a_placeholder_is_the_payload_as_text(codec: Codec, images: Tensor, size: int) -> None:
    codes = codec.encode(images).tolist()
    for text, row in zip(codec.placeholders(images, size), codes, strict=True):
        assert len(text) == -(-4 * min(size, codec.fixed.bytes_of(len(row))) // 3)
        assert codec.read_placeholder(text) == row[: codec.fixed.codes_in(size)]


def test_a_placeholder_may_be_cut_anywhere(codec: Codec, images: Tensor) -> None:
    row = codec.encode(images[:1]).tolist()[0]
    text = codec.placeholders(images[:1], 4)[0]
    held = [len(codec.read_placeholder(text[:size])) for size in range(2, len(text) + 1)]
    assert held == sorted(held)
    assert codec.read_placeholder(text[:4]) == row[: held[2]]
    for bad in ("", "A", "a b", "a+b/", text + "\n"):
        with pytest.raises(FormatError):
            codec.read_placeholder(bad)


def test_too_few_bytes_are_refused_with_their_number(codec: Codec, images: Tensor) -> None:
    with pytest.raises(UserError, match="8 bytes hold no picture"):
        codec.compress(images[:1], SHAPES[:1], Length(bytes=8))


def test_mutated_files_give_a_picture_or_a_format_error(codec: Codec) -> None:
    generator, begun = np.random.default_rng(0), fuzz.seeds(codec)
    outcomes = Counter(
        fuzz.outcome(codec, fuzz.mutate(begun[index], generator))
        for index in generator.integers(len(begun), size=3000)
    )
    assert outcomes["a picture, cut off"] > 50
    assert outcomes["a placeholder"] > 50
    assert sum(n for name, n in outcomes.items() if name.startswith("refused")) > 500
