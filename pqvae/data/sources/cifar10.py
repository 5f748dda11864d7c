"""CIFAR-10, downloaded by torchvision: ``data.path=cifar10``.

Its files are pickles, the only ones that any source reads: torchvision checks their digest first.
"""

import http.client
import socket
import sys
import urllib.error
from collections.abc import Callable
from typing import TypeVar

from pqvae.data.sample import Listing, Sample, Split
from pqvae.errors import UserError
from pqvae.files import cache_root, one_process

T = TypeVar("T")


def list_samples(path: str) -> Listing | None:
    if path != "cifar10":
        return None
    from torchvision.datasets import CIFAR10  # late: over a second to import, and rarely needed

    root = cache_root() / "cifar10"

    def read(download: bool = False) -> dict[Split, CIFAR10]:
        train = CIFAR10(root, train=True, download=download)
        return {"train": train, "test": CIFAR10(root, train=False)}

    try:
        parts = read()
    except RuntimeError:  # not there yet, or damaged
        root.mkdir(parents=True, exist_ok=True)
        with one_process(root.with_name("cifar10.lock")):
            try:
                parts = read()  # another process may have been faster
            except RuntimeError:
                print(f"cifar10: downloading 170 MB from {CIFAR10.url} to {root}", file=sys.stderr)
                parts = _download(CIFAR10.url, read)
    samples: dict[Split, list[Sample]] = {}
    for split, part in parts.items():
        samples[split] = []
        for index, (pixels, label) in enumerate(zip(part.data, part.targets, strict=True)):
            data = b"P6 32 32 255\n" + pixels.tobytes()  # a PPM file: then it is like any other
            key = f"{index:05d}"
            samples[split].append(Sample(key, part.classes[label], data, 0, len(data)))
    return Listing(samples)


def _download(url: str, read: Callable[[bool], T]) -> T:
    timeout = socket.getdefaulttimeout()
    socket.setdefaulttimeout(5)  # seconds without an answer; torchvision sets none
    try:
        return read(True)
    except (
        urllib.error.URLError,
        http.client.HTTPException,
        ConnectionError,
        TimeoutError,
        RuntimeError,
    ) as error:
        raise UserError(
            f"cifar10: cannot be downloaded from {url} ({getattr(error, 'reason', error)}); "
            "without internet, give a copy of it, as images or shards, by data.path=FOLDER"
        ) from error
    finally:
        socket.setdefaulttimeout(timeout)
