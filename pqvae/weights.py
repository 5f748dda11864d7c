"""Weights of feature networks: files of installed packages, downloads, digests."""

import contextlib
import hashlib
import http.client
import importlib.util
import socket
import sys
import urllib.error
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor

from pqvae.errors import UserError

SILENCE_SECONDS = 5.0  # without a connection or a byte, after which a download has failed


class DownloadError(Exception):
    """The weights could not be downloaded; the message says why, in a few words."""


def installed_file(package: str, *parts: str) -> Path | None:
    """A file of an installed package, found without importing the package."""
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        return None
    path = Path(spec.submodule_search_locations[0], *parts)
    return path if path.is_file() else None


def read_file(path: Path, what: str) -> tuple[bytes, str]:
    """The bytes of a file of weights, and their sha256.

    Raises:
        UserError: It cannot be read; the message says that no ``what`` weights are there.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}; no {what} weights there") from error
    return data, hashlib.sha256(data).hexdigest()


def tensors_digest(tensors: Mapping[str, Tensor]) -> str:
    """sha256 over the names in sorted order, each followed by the tensor's raw bytes."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(name.encode())
        digest.update(tensors[name].contiguous().numpy().data)
    return digest.hexdigest()


def download(url: str, target: Path, sha256_head: str) -> None:
    """Download a file; whole and with the right digest, or not at all.

    Each address of the server has ``SILENCE_SECONDS`` to answer. The name is looked up by the
    system, which has limits of its own: commonly 5 s and a second try for each name server.

    Args:
        url: Where it is.
        target: Where it goes; folders are made.
        sha256_head: The first digits of its sha256.

    Raises:
        DownloadError: No connection, a broken transfer, or another file.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        with _socket_timeout(SILENCE_SECONDS):
            torch.hub.download_url_to_file(
                url, str(target), hash_prefix=sha256_head, progress=sys.stderr.isatty()
            )
    except (
        urllib.error.URLError,
        http.client.HTTPException,
        ConnectionError,
        TimeoutError,
        RuntimeError,  # another digest
    ) as error:
        reason = str(getattr(error, "reason", "") or error) or type(error).__name__
        raise DownloadError(reason) from error


@contextlib.contextmanager
def _socket_timeout(seconds: float) -> Iterator[None]:
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(seconds)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)
