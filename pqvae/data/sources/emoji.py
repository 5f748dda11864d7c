"""The built-in emoji, 32x32: ``data.path=emoji``. ``pqvae/data/emoji/build.py`` made them."""

from dataclasses import replace
from pathlib import Path

from pqvae.data.sample import Listing
from pqvae.data.shard_index import list_shards

_FOLDER = Path(__file__).parents[1] / "emoji"


def list_samples(path: str) -> Listing | None:
    if path != "emoji":
        return None
    listing = list_shards(path, {None: sorted(_FOLDER.glob("emoji-*.tar"))})
    # No flag stays that flag in a mirror, and symbols hold letters, digits and arrows.
    return replace(listing, no_flip_classes=("flags", "symbols"))
