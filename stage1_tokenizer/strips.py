"""Picture files as prefixes of their codes, drawn as a strip each."""

import argparse

import torch

from pqvae.images import image_size, psnr, read_picture
from pqvae.runtime import select_device
from stage1_tokenizer.prefixes import prefix_grid, reconstruct, save_prefix_grid
from stage1_tokenizer.tokenizer import Tokenizer


def draw_strips(args: argparse.Namespace) -> None:
    """Draw pictures at every prefix length to a PNG, and print their PSNR.

    Args:
        args: As ``stage1_tokenizer.reconstruct`` documents them.

    Raises:
        UserError: A file is no picture, or there is no such tokenizer or decoder.
    """
    tokenizer = Tokenizer.from_pretrained(args.tokenizer).to(select_device(args.device))
    decoder = args.decoder or tokenizer.decoder_to_see
    size = tokenizer.config.image_size
    originals = []
    for path in args.images:
        originals.append(read_picture(path, size))
        width, height = image_size(path.read_bytes())
        if (width, height) != (size, size):
            print(f"{path}: {width}x{height} pixels, cut and resized to {size}x{size}")
    images = torch.stack(originals)
    lengths = prefix_grid(tokenizer.quantizer.cuts)
    rows = reconstruct(tokenizer, images, lengths, decoder, args.beam, args.refine)
    save_prefix_grid(args.out, tokenizer, images, lengths, rows)
    values = torch.stack([psnr(row, images) for row in rows], dim=1)
    for path, row in zip(args.images, values, strict=True):
        text = "  ".join(f"{k}:{value:.2f}" for k, value in zip(lengths, row, strict=True))
        print(f"{path}: PSNR in dB by prefix length  {text}")
    print(f"made {args.out}: by the {decoder} decoder, a row for each picture, original last")
