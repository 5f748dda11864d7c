"""Encoded images to pixels, in threads: all at once or on demand; what happens to damaged ones."""

import hashlib
import os
import sys
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from pqvae.data.passed_over import shorten
from pqvae.data.sample import Sample
from pqvae.errors import UserError
from pqvae.images import ImageError, decode_image

MAX_UNREADABLE = 0.01  # a larger share of damaged images is not an accident

REREAD = "+"  # behind the digest of an image that earlier versions decoded otherwise: a JPEG

_REPORTING = threading.Lock()  # not in an object, which must be picklable


def decode_all(
    name: str, samples: Sequence[Sample], size: int
) -> tuple[Tensor, list[Sample], list[str]]:
    """Decode all images; damaged ones are named on stderr.

    Args:
        name: What the data set is called in messages.
        samples: n of them.
        size: Height and width of the result, in pixels.

    Returns:
        Images uint8 (n, 3, size, size), their samples, and the sha256 of each one's encoded bytes,
        of JPEGs with ``REREAD`` behind it; damaged ones are left out of all three.

    Raises:
        UserError: Over 1% of the images are damaged.
    """
    images = np.empty((len(samples), 3, size, size), np.uint8)

    def decode(chunk: range) -> list[str | ImageError]:
        results: list[str | ImageError] = []
        for index in chunk:
            try:
                data = samples[index].read()
                images[index] = decode_image(data, size).numpy()
                mark = REREAD if data.startswith(b"\xff\xd8") else ""
                results.append(hashlib.sha256(data).hexdigest() + mark)
            except ImageError as error:
                results.append(error)
        return results

    chunks = [range(i, min(i + 64, len(samples))) for i in range(0, len(samples), 64)]
    digests: list[str] = []
    readable: list[int] = []
    unreadable: list[tuple[Sample, ImageError]] = []
    with ThreadPoolExecutor(_threads(samples)) as pool:  # Pillow decodes outside of Python's lock
        results = pool.map(decode, chunks)
        bar = tqdm(results, f"reading {name}", len(chunks), leave=False, disable=None, delay=2)
        for index, result in enumerate(result for chunk in bar for result in chunk):
            if isinstance(result, ImageError):
                unreadable.append((samples[index], result))
            else:
                readable.append(index)
                digests.append(result)
    tensor = torch.from_numpy(images)
    if unreadable:
        _report(name, unreadable, len(samples))
        tensor = tensor[torch.tensor(readable)]
    return tensor, [samples[index] for index in readable], digests


class DecodedOnDemand:
    """Images that are decoded whenever they are asked for; several threads may ask at once.

    A damaged one is named on stderr when it is met. The next readable one of its class stands in,
    the same one whenever it is asked for.
    """

    def __init__(self, name: str, samples: Sequence[Sample], size: int) -> None:
        self._name, self._samples, self._size = name, samples, size
        self._threads = _threads(samples)
        self._unreadable: dict[int, str] = {}  # met so far

    def __getitem__(self, indices: Tensor) -> Tensor:
        """Images by index, int64 (B,) in [0, n): uint8 (B, 3, size, size).

        Raises:
            UserError: Over 1% of the images have turned out damaged, or all of a class.
        """
        if not len(indices):
            return torch.empty((0, 3, self._size, self._size), dtype=torch.uint8)
        # A pool per call is cheap beside the decoding, and leaves none behind for a fork to break.
        with ThreadPoolExecutor(self._threads) as pool:
            return torch.stack(list(pool.map(self._decode, indices.tolist())))

    def _decode(self, index: int) -> Tensor:
        label, total = self._samples[index].label, len(self._samples)
        for place in range(index, index + total):
            sample = self._samples[place % total]
            if sample.label != label:
                continue
            try:
                return decode_image(sample.read(), self._size)
            except ImageError as error:
                self._leave_out(place % total, error)
        raise UserError(f"{self._name}: no image of class {label} can be read; mend or remove them")

    def _leave_out(self, index: int, error: ImageError) -> None:
        sample, total = self._samples[index], len(self._samples)
        another = "another" if sample.label is None else "another of its class"
        with _REPORTING:
            known = index in self._unreadable
            self._unreadable.setdefault(index, shorten(f"{sample.place} ({error})", 80))
            _check_damage(self._name, list(self._unreadable.values()), total)
            if not known:
                print(
                    f"{self._name}: left out {len(self._unreadable)} of {total} images so far: "
                    f"{self._unreadable[index]}; {another} stands in",
                    file=sys.stderr,
                )


def _threads(samples: Sequence[Sample]) -> int:
    """How many threads decode: of images of a few kB, more than two only wait for Python's lock."""
    mean_bytes = sum(max(sample.size, 0) for sample in samples) // len(samples)
    return min(16, os.cpu_count() or 1, max(2, mean_bytes // 1000))


def _report(name: str, unreadable: Sequence[tuple[Sample, ImageError]], total: int) -> None:
    count = len(unreadable)
    reasons = [shorten(f"{sample.place} ({error})", 80) for sample, error in unreadable]
    _check_damage(name, reasons, total)
    more = f"; and {count - 2} more" if count > 2 else ""
    print(
        f"{name}: left out {count} of {total} images: {'; '.join(reasons[:2])}{more}",
        file=sys.stderr,
    )


def _check_damage(name: str, reasons: Sequence[str], total: int) -> None:
    if len(reasons) > MAX_UNREADABLE * total:
        raise UserError(
            f"{name}: {len(reasons)} of {total} images cannot be read, over {MAX_UNREADABLE:.0%}; "
            f"the first is {reasons[0]}; mend or remove them"
        )
