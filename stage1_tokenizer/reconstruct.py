"""Command: any picture at k = 1, 2, 4 ... N codes, as a strip with the bits below."""

import sys
from collections.abc import Sequence
from pathlib import Path

from pqvae.cli import Parser, command, positive_int
from pqvae.errors import UserError

EXAMPLES = """\
  python -m stage1_tokenizer.reconstruct photo.jpg
  python -m stage1_tokenizer.reconstruct photo.jpg --refine 8
  python -m stage1_tokenizer.reconstruct a.png b.png --tokenizer runs/photos --out strips.png"""


@command
def main(argv: Sequence[str] | None = None) -> None:
    """The command line; --help answers before torch is imported."""
    parser = Parser(
        "stage1_tokenizer.reconstruct", "Draw pictures as prefixes of their codes.", EXAMPLES
    )
    add = parser.add_argument
    add("images", type=Path, nargs="+", metavar="IMAGE", help="picture files, a row each")
    add("--tokenizer", type=Path, default=Path("runs/tokenizer"), metavar="DIR")
    add("--out", type=Path, default=Path("reconstruction.png"), metavar="FILE")
    add(
        "--beam",
        type=positive_int,
        default=1,
        metavar="B",
        help="width of the search for better codes (default: 1, greedy); takes B times as long",
    )
    add(
        "--refine",
        type=positive_int,
        default=0,
        metavar="R",
        help="times to correct the codes by what they decode to (default: none)",
    )
    add("--device", default="auto", help="cpu, cuda, mps or auto (default: auto)")
    args = parser.parse_args(argv)
    if not args.out.parent.is_dir():
        raise UserError(f"--out {args.out}: there is no folder {args.out.parent}")

    import torch
    from PIL import Image

    from pqvae.images import ImageError, decode_image, psnr
    from pqvae.runtime import select_device
    from stage1_tokenizer import Tokenizer
    from stage1_tokenizer.prefixes import prefix_grid, save_prefix_grid

    tokenizer = Tokenizer.from_pretrained(args.tokenizer).to(select_device(args.device))
    size = tokenizer.config.image_size
    originals = []
    for path in args.images:
        try:
            originals.append(decode_image(path.read_bytes(), size))
        except (FileNotFoundError, IsADirectoryError):
            raise UserError(f"{path}: no such picture file") from None
        except ImageError as error:
            raise UserError(f"{path}: {error}; a picture file is needed") from None
        with Image.open(path) as image:
            if image.size != (size, size):
                print(
                    f"{path}: {image.width}x{image.height} pixels, cut and resized to {size}x{size}"
                )
    images = torch.stack(originals)
    lengths = prefix_grid(tokenizer.quantizer.cuts)
    rows = save_prefix_grid(args.out, tokenizer, images, lengths, args.beam, args.refine)
    values = torch.stack([psnr(row, images) for row in rows], dim=1)
    for path, row in zip(args.images, values, strict=True):
        text = "  ".join(f"{k}:{value:.2f}" for k, value in zip(lengths, row, strict=True))
        print(f"{path}: PSNR in dB by prefix length  {text}")
    print(f"made {args.out}: a row for each picture, original last")


if __name__ == "__main__":
    sys.exit(main())
