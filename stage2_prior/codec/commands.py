"""What ``pqvae encode``, ``decode``, ``info``, ``placeholder``, ``similar`` and ``tables`` do."""

import argparse
import functools
import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from pqvae.data.dataset import open_dataset
from pqvae.errors import UserError
from pqvae.images import decode_whole, encode_png
from pqvae.pretrained import model_folder, recorded_data
from pqvae.runtime import select_device
from stage1_tokenizer import Tokenizer
from stage1_tokenizer.shipped import find_model
from stage2_prior.codec.container import HEADER, FormatError, Mode
from stage2_prior.codec.jobs import PICTURES, PQ, Job, Reader, check_free, find_files, plan, write
from stage2_prior.codec.near import near_pairs
from stage2_prior.codec.pictures import Codec, Content, Length
from stage2_prior.codec.static import StaticCoder
from stage2_prior.codes import encode_dataset


def encode(args: argparse.Namespace) -> None:
    """Write pictures as .pq files.

    Raises:
        UserError: An input is missing or no picture, a result is there, or so few bytes hold none.
    """
    jobs = plan(args.inputs, PICTURES, args.out, ".pq")
    check_free([job.place for job in jobs], args.force)
    codec = _open_codec(args, one_by_one=len(jobs) == 1)
    length = Length(args.bytes, args.prefix, args.psnr)
    mode, sizes = Mode[args.mode.upper()], []
    reader = Reader(jobs, "encoding")
    for chunk, images, shapes in _pictures(reader, codec):
        files = codec.compress(images, shapes, length, mode=mode, effort=args.effort)
        for job, data in zip(chunk, files, strict=True):
            write(job.place, data)
            sizes.append(len(data))
    made = f"{len(sizes)} files" if len(jobs) > 1 else str(jobs[0].place)
    least, most = min(sizes), max(sizes)
    of_bytes = f"{least} bytes" if least == most else f"{least} to {most} bytes"
    print(f"made {made} of {of_bytes}{_but(reader)}; look: pqvae decode {args.out} -o ...")


def decode(args: argparse.Namespace) -> None:
    """Draw .pq files, or a placeholder, as PNGs.

    Raises:
        UserError: An input is missing or damaged, or a result is there.
    """
    if args.placeholder is not None and args.inputs:
        raise UserError("give .pq files or --placeholder, not both")
    if args.placeholder is None and not args.inputs:
        raise UserError("give .pq files, folders of them, or --placeholder TEXT")
    jobs = plan(args.inputs, PQ, args.out, ".png") if args.inputs else []
    if not jobs and args.out.suffix.lower() != ".png":
        raise UserError(f"-o {args.out}: must end in .png")
    check_free([job.place for job in jobs] or [args.out], args.force)
    codec = _open_codec(args, one_by_one=True)
    if not jobs:
        codes = codec.read_placeholder(args.placeholder)
        write(args.out, encode_png(codec.show(codes, args.decoder, args.side)))
        print(f"made {args.out} of {len(codes)} codes")
        return
    reader, cut = Reader(jobs, "decoding"), 0
    for chunk in reader(codec.read):
        for job, content in chunk:
            cut += not content.whole
            picture = codec.decompress(content, args.decoder, args.side)
            write(job.place, encode_png(picture))
    made = f"{len(jobs) - reader.passed_over} pictures" if len(jobs) > 1 else str(jobs[0].place)
    were = f"; {cut} cut off, and so coarser" if cut else ""
    print(f"made {made}{were}{_but(reader)}")


def info(args: argparse.Namespace) -> None:
    """Print what .pq files hold, a line each.

    Raises:
        UserError: An input is missing or damaged.
    """
    jobs = find_files(args.inputs, PQ)
    codec = _open_codec(args)
    reader = Reader(jobs, "reading")
    for chunk in reader(lambda data: (len(data), codec.read(data))):
        for job, (size, content) in chunk:
            print(f"{job.source}: {_describe(size, content)}")


def placeholder(args: argparse.Namespace) -> None:
    """Print pictures as text: the codes of a few bytes as base64url.

    Raises:
        UserError: An input is missing or no picture, or so few bytes hold none.
    """
    jobs = find_files(args.inputs, PICTURES)
    codec = _open_codec(args, one_by_one=len(jobs) == 1)
    for chunk, images, _ in _pictures(Reader(jobs, "encoding"), codec):
        texts = codec.placeholders(images, args.bytes, args.effort)
        for job, text in zip(chunk, texts, strict=True):
            print(text if len(jobs) == 1 else f"{text}\t{job.source}")


def similar(args: argparse.Namespace) -> None:
    """Print groups of pictures or .pq files that are nearly the same.

    Raises:
        UserError: An input is missing, or none of the files can be read.
    """
    jobs = find_files(args.inputs, PICTURES | PQ)
    codec = _open_codec(args)
    k = codec.fixed.codes_in(args.bytes)
    reader, names, latents = Reader(jobs, "reading"), [], []

    def read(data: bytes) -> Tensor | list[int]:
        try:
            return codec.read(data).codes
        except FormatError:
            return decode_whole(data, codec.image_size)[0]

    for chunk in reader(read):
        codes = codec.first_codes([each for _, each in chunk], k)
        names += [str(job.source) for job, _ in chunk]
        latents.append(codec.tokenizer.quantizer.decode(codes))
    pairs = near_pairs(torch.cat(latents), args.within)
    for a, b, distance in pairs:
        print(f"{distance:.3f}\t{names[a]}\t{names[b]}")
    print(f"{len(pairs)} pairs of {len(names)} files within {args.within:g}{_but(reader)}")


def tables(args: argparse.Namespace) -> None:
    """Count the codes of the training images, for the static mode.

    Raises:
        UserError: There is no such model, or its images are not where they were.
    """
    model = find_model(args.model)
    tokenizer = Tokenizer.from_pretrained(model).to(select_device(args.device))
    data = recorded_data(tokenizer.provenance, str(model), args.data, "--data PATH")
    place = model_folder(model)
    images = open_dataset(data, "train")
    with tempfile.TemporaryDirectory() as folder:
        codes = encode_dataset(tokenizer, images, None, 1, 0, Path(folder)).codes[0]
    coder = StaticCoder.of_codes(codes, tokenizer.quantizer.sizes)
    coder.save(place, tokenizer.codes_hash)
    print(f"made {place}/{StaticCoder.FILE} of {len(codes):,} images")


def _open_codec(args: argparse.Namespace, one_by_one: bool = False) -> Codec:
    """The model; ``one_by_one`` where a block of images would mostly be padding."""
    codec = Codec.from_pretrained(args.model, args.prior)
    codec.tokenizer.to(select_device(args.device))
    codec.tokenizer.images_at_once = int(one_by_one)
    return codec


def _pictures(
    reader: Reader, codec: Codec
) -> Iterator[tuple[list[Job], Tensor, list[tuple[int, int]]]]:
    """Chunks of jobs, their squares, uint8 (B, 3, S, S), and width and height of each picture."""
    for chunk in reader(functools.partial(decode_whole, size=codec.image_size)):
        squares, shapes = zip(*[read for _, read in chunk], strict=True)
        yield [job for job, _ in chunk], torch.stack(squares), list(shapes)


def _describe(size: int, content: Content) -> str:
    header = content.header
    width, height = header.shown_in()
    cut = "" if content.whole else f", cut off: {HEADER + header.size_of_payload} bytes are all"
    return (
        f"{size} bytes ({HEADER} of header), {header.mode.name.lower()}, {len(content.codes)} codes"
        f"{cut}, model {header.model.hex()}, shown in {width}x{height}"
    )


def _but(reader: Reader) -> str:
    return f"; {reader.passed_over} files passed over" if reader.passed_over else ""
