"""Our files beside BlurHash, ThumbHash, WebP, JPEG, AVIF and JPEG XL, in one run.

    python benchmarks/compression.py --model photos --images kodak=data/kodak --json kodak.json
    python benchmarks/compression.py --model photos --images birds=birds/ --n 50 --strip birds.png

Each picture is squeezed whole into the tokenizer's square, and all methods write that square. Of a
set that has a test split, that is taken. Bytes are those of real files, also without what is the
same in all files of a setting: of ours the header of 8 bytes, of others see
``benchmarks.rates.constant_bytes``. Of BlurHash, a byte is a character of its text.

PSNR is the mean of the pictures'. The perceptual distance is that of ``pqvae.lite0``, no LPIPS.
Times are medians of one picture at a time on one thread; ours are taken at 24 bytes, BlurHash is in
plain Python and ThumbHash in numpy. Needs ``pip install -e '.[bench,plots]'``; of what is not
installed a line says so, and the others go on.
"""

import argparse
import dataclasses
import os
import shlex
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.other_codecs import (
    BLURHASH,
    THUMBHASH,
    WEBP,
    Setting,
    codec_versions,
    settings_here,
)
from benchmarks.our_codec import (
    JUDGED_EFFORTS,
    OnceEncoding,
    ladder_of,
    median_ms,
    name_of,
    our_curves,
    pictures_of,
    savings,
)
from benchmarks.rates import (
    Curve,
    Judge,
    Ladder,
    Point,
    constant_bytes,
)
from benchmarks.tokenizers import aligned
from benchmarks.verdicts import BLURHASH_SETTING, answers, saving_line
from eval.subjects.selection import SUBSET_SEED
from pqvae.cli import SIGNALLED, Parser, command, positive_int
from pqvae.console import say
from pqvae.data.dataset import list_images
from pqvae.errors import ImageError, UserError
from pqvae.files import write_json
from pqvae.images import decode_whole, save_grid
from pqvae.plots import NO_PLOT, Panel, save_plot
from pqvae.randomness import generator_for
from pqvae.runtime import machine, versions
from pqvae.signals import Stopped
from stage2_prior.codec.container import Mode
from stage2_prior.codec.pictures import Codec

LEAST_PICTURES = 2  # of one, all bytes are constant
PLOTTED_BYTES = 200
STRIP_PICTURES, STRIP_ZOOM, STRIP_BYTES = 6, 4, 16


def read_pictures(path: str, size: int, n: int) -> Tensor:
    """Pictures of a set's test split, or of all where it has none: uint8 (n, 3, size, size).

    The first n of a fixed random order, or all where there are fewer.

    Raises:
        UserError: There are none, or hardly any, or one is damaged.
    """
    splits = list_images(path).samples
    parts = [splits["test"]] if "test" in splits else splits.values()
    samples = sorted((sample for part in parts for sample in part), key=lambda each: each.key)
    if len(samples) < LEAST_PICTURES:
        raise UserError(f"{path}: {len(samples)} pictures; give at least {LEAST_PICTURES}")
    order, images = torch.randperm(len(samples), generator=generator_for(SUBSET_SEED)), []
    for sample in (samples[place] for place in order[:n].tolist()):
        try:
            images.append(decode_whole(sample.read(), size)[0])
        except ImageError as error:
            raise UserError(f"{path}: {sample.place}: {error}; take it out") from None
    return torch.stack(images)


def measure(setting: Setting, images: Tensor, judge: Judge) -> Point:
    """One setting of others on all pictures, uint8 (n, 3, S, S)."""
    files: list[bytes] = []
    made: list[Tensor] = []
    written = median_ms(lambda image: files.append(setting.encode(image)), images)
    shown = median_ms(lambda data: made.append(setting.decode(data)), files)
    mean = statistics.fmean(map(len, files))
    bare = mean - constant_bytes(files)
    return Point(setting.setting, mean, bare, *judge(torch.stack(made)), written, shown)


def measure_set(
    codec: OnceEncoding, images: Tensor, settings: Sequence[Setting]
) -> tuple[list[Curve], list[Ladder], list[str]]:
    """All curves of a set, ours first; our ladders; and what they say, in lines."""
    judge, curves = Judge(images), []
    for curve in our_curves(codec, images, judge):
        say(f"  {curve.method}, {curve.pictures} pictures")
        curves.append(curve)
    for method in dict.fromkeys(each.method for each in settings):
        say(f"  {method}")
        points = [measure(s, images, judge) for s in settings if s.method == method]
        curves.append(Curve(method, len(images), points))
    ladders = [ladder_of(codec, images, effort) for effort in JUDGED_EFFORTS]
    lines = answers(curves, ladders)
    for mode in sorted(codec.coders.keys() - {Mode.FIXED}):
        some = pictures_of(mode, images)
        name = f"{mode.name.lower()}, {len(some)} pictures:"
        lines.append(saving_line(name, savings(codec, some, mode)))
    return curves, ladders, lines


def table(curves: Sequence[Curve]) -> str:
    """Every point, a line each."""
    rows = [["method", "setting", "bytes", "bare", "PSNR, dB", "SSIM", "lite0 distance"]]
    rows[0] += ["encode, ms", "decode, ms", "pictures"]
    for curve in curves:
        for point in curve.points:
            sizes = f"{point.bytes:.1f}", f"{point.bare_bytes:.1f}"
            values = f"{point.psnr:.2f}", f"{point.ssim:.3f}", f"{point.lite0_distance:.4f}"
            times = f"{point.encode_ms:.1f}", f"{point.decode_ms:.1f}"
            rows.append([curve.method, point.setting, *sizes, *values, *times, str(curve.pictures)])
    return aligned(rows)


def panel(name: str, curves: Sequence[Curve]) -> Panel:
    """PSNR against bytes without headers; of each format, the better way to keep colours."""
    shown = {
        name_of(Mode.FIXED): "ours",
        name_of(Mode.STATIC): "ours, static",
        **{each: each for each in (BLURHASH, THUMBHASH, WEBP, "JPEG XL")},
        "JPEG 4:2:0": "JPEG 4:2:0",
        "AVIF 4:4:4": "AVIF 4:4:4",
    }
    lines = {}
    for curve in curves:
        near = [point for point in curve.points if point.bare_bytes <= PLOTTED_BYTES]
        if near and curve.method in shown:
            places = [point.bare_bytes for point in near]
            lines[shown[curve.method]] = places, [point.psnr for point in near]
    title = f"PSNR in dB, {name}, {max(curve.pictures for curve in curves)} pictures"
    return Panel(title, "bytes a picture without header", lines, log=True)


def strip(codec: OnceEncoding, images: Tensor, settings: Sequence[Setting], path: Path) -> None:
    """A picture in a row, a method in a column, of pictures uint8 (n, 3, S, S); ours for eyes."""
    by_name = {(each.method, each.setting): each for each in settings}
    columns = {"original": images}
    smallest = next(each for each in settings if each.method == WEBP)
    for key in ((BLURHASH, BLURHASH_SETTING), (THUMBHASH, ""), (WEBP, smallest.setting)):
        if each := by_name.get(key):
            files = [each.encode(image) for image in images]
            mean = statistics.fmean(map(len, files))
            name = " ".join(filter(None, key))
            columns[f"{name}, {mean:.0f} B"] = torch.stack([each.decode(data) for data in files])
    thumb = len(by_name[THUMBHASH, ""].encode(images[0]))
    for size in (thumb, STRIP_BYTES):
        rows = map(codec.read_placeholder, codec.placeholders(images, size))
        columns[f"ours, {size} B"] = torch.stack([codec.show(codes) for codes in rows])
    tiles = torch.stack(list(columns.values()), dim=1).flatten(0, 1)
    save_grid(path, tiles, len(columns), captions=list(columns), zoom=STRIP_ZOOM)


@command
def main(argv: Sequence[str] | None = None) -> None:
    """The command line."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    args = _parser().parse_args(arguments)
    sets = _sets(args.images)
    for path, suffix in ((args.json, ".json"), (args.plot, ".png"), (args.strip, ".png")):
        _check_place(path, suffix)
    torch.set_num_threads(1)  # as the times are of one
    codec = OnceEncoding(Codec.from_pretrained(args.model, args.prior))
    pictures = {name: read_pictures(path, codec.image_size, args.n) for name, path in sets.items()}
    settings, missing = settings_here(codec.image_size)
    for line in missing:
        say(line)
    report: dict[str, Any] = {
        "command": shlex.join(["python", "benchmarks/compression.py", *arguments]),
        "codes_hash": codec.tokenizer.codes_hash,
        "content_hash": codec.tokenizer.content_hash,
        "machine": machine(),
        "versions": versions() | codec_versions(),
        "missing": missing,
        "sets": {},
    }
    panels = []
    try:
        for name, images in pictures.items():
            say(f"{name}: {len(images)} pictures")
            curves, ladders, lines = measure_set(codec, images, settings)
            print(f"{name}: {len(images)} pictures of {codec.image_size} pixels\n")
            print(table(curves), "", *lines, sep="\n", flush=True)
            panels.append(panel(name, curves))
            report["sets"][name] = {"path": sets[name], "pictures": len(images), "answers": lines}
            report["sets"][name]["curves"] = [dataclasses.asdict(curve) for curve in curves]
            report["sets"][name]["ladders"] = [dataclasses.asdict(ladder) for ladder in ladders]
            if args.json:
                write_json(args.json, report)
    except Stopped as stopped:
        say("stopped; --json keeps the sets that were finished")
        raise SystemExit(SIGNALLED + stopped.signum) from None
    if args.plot and not save_plot(args.plot, panels):
        say(NO_PLOT)
    if args.strip:
        each = max(1, STRIP_PICTURES // len(pictures))
        shown = torch.cat([images[:each] for images in pictures.values()])
        strip(codec, shown, settings, args.strip)


def _sets(given: Sequence[str]) -> dict[str, str]:
    sets: dict[str, str] = {}
    for text in given:
        name, _, path = text.partition("=")
        if not name or not path:
            raise UserError(f"--images {text}: give NAME=PATH, as in kodak=data/kodak")
        if name in sets:
            raise UserError(f"--images {text}: there is a set {name} already; give another name")
        sets[name] = path
    return sets


def _check_place(path: Path | None, suffix: str) -> None:
    if path is None:
        return
    folder = path.parent
    if path.suffix != suffix or not (folder.is_dir() and os.access(folder, os.W_OK)):
        raise UserError(f"{path}: give a {suffix} file in a folder that can be written to")


def _parser() -> argparse.ArgumentParser:
    summary, examples = __doc__.split("\n\n")[:2]
    parser = Parser("benchmarks.compression", summary, examples)
    parser.prog = "python benchmarks/compression.py"
    add = parser.add_argument
    add("--model", required=True, help="a shipped one, as photos, or a folder")
    add(
        "--images",
        action="append",
        required=True,
        metavar="NAME=PATH",
        help="a folder of pictures or of shards, and what to call it; may be given several times",
    )
    add("--n", type=positive_int, default=200, help="pictures of each set (default: %(default)s)")
    add("--prior", type=Path, metavar="DIR", help="of the model's codes, for mode context")
    add("--json", type=Path, metavar="FILE", help="where all numbers go")
    add("--plot", type=Path, metavar="FILE", help="a PNG: PSNR against bytes, a panel for each set")
    add("--strip", type=Path, metavar="FILE", help="a PNG: some pictures, a column for each method")
    return parser


if __name__ == "__main__":
    sys.exit(main())
