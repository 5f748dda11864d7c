"""Settings that ``sampling.tune`` has found for a prior: ``sampling.json`` in its model folder."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pqvae.files import read_json, write_json

SETTINGS = ("prefix", "temperature", "top_p", "guidance")
BUILT_IN = {"prefix": None, "temperature": 1.0, "top_p": 0.95, "guidance": 1.0}  # None: all codes


def found_path(prior: Path) -> Path:
    """Where the settings of the prior in this run or model folder are."""
    return (prior / "model" if (prior / "model").is_dir() else prior) / "sampling.json"


def write_found(prior: Path, values: Mapping[str, Any]) -> Path:
    """Keep what was found; ``values`` has ``SETTINGS`` and "prior_hash" among others."""
    path = found_path(prior)
    write_json(path, values)
    return path


def read_found(prior: Path, prior_hash: str) -> dict[str, Any]:
    """What was found for the prior of this content hash; empty where nothing was.

    Raises:
        UserError: The file is damaged.
    """
    path = found_path(prior)
    values = read_json(path) if path.is_file() else {}
    if not isinstance(values, dict) or values.get("prior_hash") != prior_hash:
        return {}
    return {name: values[name] for name in SETTINGS if name in values}
