"""Settings that ``sampling.tune`` has found for a prior: ``sampling.json`` in its model folder."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pqvae.files import read_json, write_json
from pqvae.pretrained import model_folder
from sampling.settings import SETTINGS

FILE = "sampling.json"


def write_found(prior: Path, values: Mapping[str, Any]) -> Path:
    """Keep what was found; ``values`` has ``SETTINGS`` and "prior_hash" among others."""
    path = model_folder(prior) / FILE
    write_json(path, values)
    return path


def read_found(prior: Path, prior_hash: str) -> dict[str, Any]:
    """What was found for the prior of this content hash; empty where nothing was.

    Raises:
        UserError: The file is damaged.
    """
    path = model_folder(prior) / FILE
    values = read_json(path) if path.is_file() else {}
    if not isinstance(values, dict) or values.get("prior_hash") != prior_hash:
        return {}
    return {name: values[name] for name in SETTINGS if name in values}
