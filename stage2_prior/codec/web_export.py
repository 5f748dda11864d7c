"""The small decoder of a tokenizer as a file for browsers, and what it is worth."""

import argparse
import base64
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from pqvae.data.batches import map_images
from pqvae.data.dataset import ImageDataset, open_dataset
from pqvae.files import write_json
from pqvae.images import decode_whole, encode_sheet, psnr, to_float, to_uint8
from pqvae.pretrained import recorded_data
from pqvae.runtime import select_device
from stage1_tokenizer.prefixes import evenly_spaced_indices
from stage1_tokenizer.tokenizer import FAITHFUL, SMALL
from stage2_prior.codec.jobs import PICTURES, Job, Reader, find_files, write
from stage2_prior.codec.pictures import Codec
from stage2_prior.codec.web_weights import WebWeights

MEASURED = 1024  # validation pictures at most
BYTES = (5, 10, 16)  # of placeholders, at which it is measured beside those of all its codes
EXAMPLE_PIXELS = 96  # of a side of an example; ThumbHash takes up to 100
EXAMPLES = "examples.json"  # beside the weights


def export(args: argparse.Namespace) -> None:
    """Write the weights, and examples where pictures are given.

    Raises:
        UserError: There is no such tokenizer, it has no small decoder, or no images to measure by.
    """
    jobs = find_files(args.examples, PICTURES)
    codec = Codec.from_pretrained(args.tokenizer)
    weights = WebWeights.of_tokenizer(codec.tokenizer)
    data = recorded_data(codec.tokenizer.provenance, str(args.tokenizer), args.data, "--data PATH")
    images = open_dataset(data, "val")
    codec.tokenizer.to(select_device(args.device))
    content = weights.to_bytes()
    report(codec, WebWeights.from_bytes(content), images)
    write(args.out, content)
    made = f"made {args.out} of {len(content):,} bytes, for {weights.model.codes} codes"
    if jobs:
        examples = examples_of(codec, jobs, weights.model.codes)
        write_json(args.out.with_name(EXAMPLES), examples)
        made += f", and {EXAMPLES} beside it, of {len(examples)} pictures"
    print(f"{made}; web/README.md shows how to use it")


def report(codec: Codec, weights: WebWeights, images: ImageDataset) -> None:
    """Print the PSNR of three decoders: the faithful one, the small one, and the file."""
    whole = codec.fixed.bytes_of(weights.model.codes)
    sizes = [size for size in BYTES if codec.fixed.codes_in(size) and size < whole] + [whole]
    lengths = [codec.fixed.codes_in(size) for size in sizes]
    tokenizer = codec.tokenizer
    decoders: dict[str, Callable[[Tensor], Tensor]] = {
        "faithful": lambda codes: tokenizer.decode(codes, FAITHFUL),
        "small": lambda codes: tokenizer.decode(codes, SMALL),
        "file": lambda codes: weights.decode(codes.cpu()),
    }

    def compare(originals: Tensor) -> Tensor:
        codes = tokenizer.encode(to_float(originals).to(tokenizer.device))
        made = [decode(codes[:, :k]) for decode in decoders.values() for k in lengths]
        return torch.stack([psnr(to_uint8(each).cpu(), originals) for each in made], dim=1)

    indices = evenly_spaced_indices(images, min(MEASURED, len(images)))
    means = map_images(images, indices, compare, "measuring").mean(0).view(len(decoders), -1)
    print(f"PSNR in dB of {len(indices):,} pictures of {images.name}, by bytes")
    for name, row in zip(decoders, means.tolist(), strict=True):
        print(f"{name:8} " + "  ".join(f"{b}:{v:.2f}" for b, v in zip(sizes, row, strict=True)))


def examples_of(codec: Codec, jobs: Sequence[Job], codes: int) -> list[dict[str, object]]:
    """Pictures for the page: each with its placeholder of so many codes.

    Returns:
        Of each the name; the placeholder; width over height; and the picture squeezed into a
        square, as a URL of its own data: other placeholders are made of it.
    """

    def read(data: bytes) -> tuple[Tensor, Tensor, tuple[int, int]]:
        square, shape = decode_whole(data, codec.image_size)
        return square, decode_whole(data, EXAMPLE_PIXELS)[0], shape

    examples: list[dict[str, object]] = []
    size = codec.fixed.bytes_of(codes)
    for chunk in Reader(jobs, "encoding")(read):
        squares = torch.stack([square for _, (square, _, _) in chunk])
        texts = codec.placeholders(squares, size)
        for (job, (_, picture, (width, height))), text in zip(chunk, texts, strict=True):
            webp = base64.b64encode(encode_sheet(picture.unsqueeze(0), 1)).decode()
            examples.append(
                {
                    "name": Path(job.source).stem,
                    "placeholder": text,
                    "aspect": round(width / height, 4),
                    "picture": f"data:image/webp;base64,{webp}",
                }
            )
    return examples
