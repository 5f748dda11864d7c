"""Our files, measured: prefixes of many lengths, in each mode, by efforts and decoders."""

import copy
import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

import torch
from torch import Tensor

from benchmarks.rates import Curve, Judge, Ladder, Point
from pqvae.errors import UserError
from pqvae.images import psnr, to_uint8
from stage1_tokenizer.tokenizer import FAITHFUL, VIVID
from stage2_prior.codec.container import HEADER, Mode
from stage2_prior.codec.pictures import Codec, Length

OURS = "ours"  # how the names of our curves begin
SIZES = (2, 4, 5, 8, 10, 13, 16, 20, 24, 26, 32, 40, 56, 72, 96, 120)  # bytes of payload, at most
EFFORTS = (0, 4, 7)
JUDGED_EFFORTS = (0, 7)  # of the ladders
CONTEXT_PICTURES = 16  # as mode context takes a second or so for each
TIMED = 9  # pictures, one at a time
TIMED_SIZE = 24  # bytes of payload, at which each curve is timed

T = TypeVar("T")


class OnceEncoding(Codec):
    """A codec that looks for the codes of the same pictures once, however often it writes them."""

    def __init__(self, codec: Codec) -> None:
        super().__init__(codec.tokenizer, codec.coders)
        self._found: dict[tuple[bytes, int], Tensor] = {}

    def encode(self, images: Tensor, effort: int = 0) -> Tensor:
        key = images.numpy().tobytes(), effort
        if key not in self._found:
            self._found[key] = super().encode(images, effort)
        return self._found[key]


def our_curves(codec: OnceEncoding, images: Tensor, judge: Judge) -> Iterable[Curve]:
    """A curve for each effort, decoder and mode that is there, of pictures uint8 (n, 3, S, S)."""
    for effort in EFFORTS:
        yield _curve(codec, images, judge, Mode.FIXED, effort, FAITHFUL)
    if VIVID in codec.tokenizer.decoders:
        yield _curve(codec, images, judge, Mode.FIXED, 0, VIVID)
    for mode in sorted(codec.coders.keys() - {Mode.FIXED}):
        yield _curve(codec, pictures_of(mode, images), judge, mode, 0, FAITHFUL)


def name_of(mode: Mode, effort: int = 0, decoder: str = FAITHFUL) -> str:
    """What a curve of ours is called."""
    name = f"{OURS} {mode.name.lower()}, effort {effort}"
    return name if decoder == FAITHFUL else f"{name}, {decoder}"


def ladder_of(codec: Codec, images: Tensor, effort: int) -> Ladder:
    """All prefixes up to the largest size, of pictures uint8 (n, 3, S, S)."""
    codes, longest = codec.encode(images, effort), _longest_prefixes(codec)
    made = (to_uint8(codec.tokenizer.decode(codes[:, :k])) for k in longest.values())
    psnrs = [float(psnr(each, images).mean()) for each in made]
    return Ladder(effort, list(longest), psnrs)


def savings(codec: Codec, images: Tensor, mode: Mode) -> list[tuple[int, float]]:
    """What a mode saves against mode fixed where both write the same codes: at equal PSNR.

    Args:
        codec: It has this mode.
        images: uint8 (n, 3, S, S).
        mode: Another than fixed.

    Returns:
        Bytes of prefixes in mode fixed, headers not counted, and the percentage of them saved; of
        those that the mode can write, as a prior may know the first codes alone.
    """
    coder = codec.coder(mode)
    rows = [list(map(len, coder.payloads(row))) for row in codec.encode(images).tolist()]
    known = min(map(len, rows))
    longest = {size: k for size, k in _longest_prefixes(codec).items() if k <= known}
    sizes = {max((size for size in longest if size <= most), default=0) for most in SIZES} - {0}
    means = {size: statistics.fmean(row[longest[size] - 1] for row in rows) for size in sizes}
    return [(size, 100 * (1 - means[size] / size)) for size in sorted(sizes)]


def pictures_of(mode: Mode, images: Tensor) -> Tensor:
    """Those of the pictures, uint8 (n, 3, S, S), that a mode is measured on: the first ones."""
    return images[:CONTEXT_PICTURES] if mode is Mode.CONTEXT else images


def decode_files(codec: Codec, files: Sequence[bytes], decoder: str) -> Tensor:
    """The squares of files, uint8 (n, 3, S, S): those of equal length together, as that is fast."""
    rows = [codec.read(data).codes for data in files]
    size = codec.image_size
    made = torch.empty(len(rows), 3, size, size, dtype=torch.uint8)
    for k in {len(row) for row in rows}:
        places = [place for place, row in enumerate(rows) if len(row) == k]
        codes = torch.tensor([rows[place] for place in places])
        made[places] = to_uint8(codec.tokenizer.decode(codes, decoder))
    return made


def median_ms(function: Callable[[T], object], inputs: Iterable[T]) -> float:
    """The median time of a call, in milliseconds."""
    times = []
    for one in inputs:
        started = time.perf_counter()
        function(one)
        times.append(time.perf_counter() - started)
    return 1000 * statistics.median(times)


def _curve(
    codec: OnceEncoding, images: Tensor, judge: Judge, mode: Mode, effort: int, decoder: str
) -> Curve:
    shapes = [(codec.image_size, codec.image_size)] * len(images)
    times = _times(codec, images[:TIMED], mode, effort, decoder)
    points: list[Point] = []
    for size in SIZES:
        try:
            files = codec.compress(images, shapes, Length(HEADER + size), mode=mode, effort=effort)
        except UserError:  # one of the pictures has a first code that takes more
            continue
        mean = statistics.fmean(map(len, files))
        if points and mean == points[-1].bytes:  # there are no more codes
            break
        values = judge(decode_files(codec, files, decoder))
        points.append(Point(f"{size} bytes", mean, mean - HEADER, *values, *times))
    return Curve(name_of(mode, effort, decoder), len(images), points)


def _longest_prefixes(codec: Codec) -> dict[int, int]:
    """By bytes in mode fixed, up to the largest size: the most codes that take so many."""
    prefixes = {codec.fixed.bytes_of(k): k for k in codec.cuts}
    return {size: k for size, k in prefixes.items() if size <= SIZES[-1]}


def _times(
    codec: OnceEncoding, images: Tensor, mode: Mode, effort: int, decoder: str
) -> tuple[float, float]:
    """Milliseconds to write a picture and to show its file, without others to fill a block."""
    tokenizer = copy.copy(codec.tokenizer)
    tokenizer.images_at_once = 1
    plain, side = Codec(tokenizer, codec.coders), codec.image_size
    length, files = Length(HEADER + TIMED_SIZE), []

    def write(image: Tensor) -> None:
        files.extend(plain.compress(image[None], [(side, side)], length, mode=mode, effort=effort))

    written = median_ms(write, images)
    return written, median_ms(lambda data: plain.show(plain.read(data).codes, decoder), files)
