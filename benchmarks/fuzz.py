"""Damaged .pq files and placeholders: each is a picture or a ``FormatError``, in bounded time.

    python benchmarks/fuzz.py --n 1000000
    python benchmarks/fuzz.py --n 1000 --model runs/tokenizer --prior runs/prior

Files of noise and of the model's pictures in every mode are cut, prolonged and changed, one to
four times each, and read. Any other error ends the run with a traceback and the bytes.
"""

import re
import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from pqvae.cli import Parser, command, positive_int, whole_number
from pqvae.console import Progress
from pqvae.images import to_uint8
from pqvae.runtime import machine
from stage2_prior.codec.container import FormatError, Mode
from stage2_prior.codec.pictures import Codec, Length

SHAPES = ((32, 32), (640, 480), (2, 3000))
LETTERS = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
_WHICH = re.compile(r"[,(:]| (?=[0-9a-f]{4}\b)| \d")  # begins what differs between messages
EVERY = 1000  # how often progress is shown


def seeds(codec: Codec) -> list[bytes]:
    """Files and placeholders to begin with, of random codes' pictures, in every mode at hand."""
    generator = torch.Generator().manual_seed(0)
    sizes = codec.tokenizer.quantizer.sizes
    codes = [torch.randint(K, (len(SHAPES),), generator=generator) for K in sizes]
    images = to_uint8(codec.tokenizer.decode(torch.stack(codes, dim=1)))
    found = [b"", *(text.encode() for text in codec.placeholders(images, 16))]
    for mode in codec.coders:
        for most in (None, 24, 12):
            found += codec.compress(images, SHAPES, Length(bytes=most), mode=mode)
    return found


def mutate(data: bytes, generator: np.random.Generator) -> bytes:
    """Other bytes: cut, prolonged, or changed in a few places."""
    changed = bytearray(data)
    for _ in range(generator.integers(1, 5)):
        kind, place = generator.integers(5), int(generator.integers(len(changed) + 1))
        if kind == 0:
            del changed[place:]
        elif kind == 1:
            changed[place:place] = generator.bytes(int(generator.integers(1, 300)))
        elif kind == 2 and place < len(changed):
            changed[place] ^= 1 << int(generator.integers(8))
        elif kind == 3 and place < len(changed):
            changed[place] = LETTERS[generator.integers(len(LETTERS))]
        elif place < len(changed):
            changed[place] = int(generator.integers(256))
    return bytes(changed)


def outcome(codec: Codec, data: bytes) -> str:
    """What reading these bytes comes to, as a file or, where they are text, as a placeholder."""
    try:
        if data.isascii() and data:
            codec.read_placeholder(data.decode())
            return "a placeholder"
        content = codec.read(data)
    except FormatError as error:
        return f"refused: {_WHICH.split(str(error))[0]}"
    assert 1 <= len(content.codes) <= codec.tokenizer.num_codes
    assert max(content.header.shown_in()) <= 2896
    return "a picture" if content.whole else "a picture, cut off"


@command
def main(argv: Sequence[str] | None = None) -> None:
    parser = Parser("benchmarks.fuzz", __doc__ or "", "  see above")
    add = parser.add_argument
    add("--n", type=positive_int, default=100_000, help="inputs (default: 100,000)")
    add("--seed", type=whole_number(0, 2**31), default=0, help="of the changes (default: 0)")
    add("--model", default="photos", help="a shipped one or a folder (default: photos)")
    add("--prior", type=Path, help="of the model's codes: mode context, too, which is slow")
    args = parser.parse_args(argv)
    codec = Codec.from_pretrained(args.model, args.prior)
    generator, begun = np.random.default_rng(args.seed), seeds(codec)
    outcomes: Counter[str] = Counter()
    progress, slowest = Progress("reading", args.n), 0.0
    for number in range(args.n):
        data = mutate(begun[generator.integers(len(begun))], generator)
        start = time.perf_counter()
        try:
            outcomes[outcome(codec, data)] += 1
        except Exception:
            print(f"input {number}: {data.hex()}", file=sys.stderr)
            raise
        slowest = max(slowest, time.perf_counter() - start)
        if (number + 1) % EVERY == 0:
            progress.advance(EVERY)
    progress.close()
    for name, count in outcomes.most_common():
        print(f"{count:10,}  {name}")
    modes = ", ".join(mode.name.lower() for mode in sorted(Mode) if mode in codec.coders)
    print(f"{args.n:,} inputs, modes {modes}, slowest {1e3 * slowest:.1f} ms, on {machine()}")


if __name__ == "__main__":
    sys.exit(main())
