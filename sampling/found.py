"""Settings that ``sampling.tune`` has found for a prior: ``sampling.json`` in its model folder."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pqvae.console import say
from pqvae.errors import UserError
from pqvae.files import read_json, write_json
from pqvae.pretrained import model_folder
from sampling.settings import BUILT_IN, SETTINGS, SamplingSettings
from stage2_prior import Prior

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


def settle(
    folder: Path, prior: Prior, given: Mapping[str, Any], keep: int = 0
) -> tuple[int | None, SamplingSettings]:
    """Settings as given, as found, or as built in; says which were found.

    Args:
        folder: Of the prior.
        prior: The prior.
        given: What the user asks for, by the names in ``SETTINGS``.
        keep: How many codes are kept of a picture; a found prefix that leaves none to be drawn is
            not used.

    Returns:
        How many codes to draw, None for all that the prior knows, and how.

    Raises:
        UserError: Guidance is asked of a prior without classes.
    """
    found = read_found(folder, prior.content_hash)
    if keep and "prefix" in found and "prefix" not in given and found["prefix"] <= keep:
        say(f"all codes, as the prefix {found.pop('prefix')} that sampling.tune has found is kept")
    chosen: dict[str, Any] = {**BUILT_IN, **found, **given}
    used = [f"{name} {value}" for name, value in found.items() if name not in given]
    if used:
        say(f"settings that sampling.tune has found: {', '.join(used)}")
    prefix = chosen.pop("prefix")
    settings = SamplingSettings(**chosen)
    if settings.guidance != 1 and not prior.class_names:
        raise UserError("--guidance: this prior has no classes to be guided to")
    return prefix, settings
