"""``.tar`` shards in WebDataset's form: one, a glob, or a range in braces."""

import glob
from pathlib import Path

from webdataset.shardlists import expand_urls

from pqvae.data.sample import Listing
from pqvae.data.shard_index import list_shards
from pqvae.errors import UserError

_COMPRESSED = (".gz", ".tgz", ".bz2", ".xz", ".zst", ".zip")


def list_samples(path: str) -> Listing | None:
    place = Path(path).expanduser()
    if place.exists():
        if place.name.lower().endswith(_COMPRESSED):
            raise UserError(f"{path}: compressed; unpack it to a folder, or to a plain .tar")
        is_shard = place.is_file() and place.suffix.lower() == ".tar"
        return list_shards(path, {None: [place]}) if is_shard else None
    if not any(wildcard in path for wildcard in "*?[{"):
        return None
    shards: dict[Path, None] = {}
    for pattern in expand_urls(str(place)):
        matches = sorted(glob.glob(_literal_where_it_exists(pattern)))
        if not matches:
            name = f" ({pattern})" if pattern != str(place) else ""
            raise UserError(
                f"{path}: matches no file{name}; give a glob such as 'folder/train-*.tar', or a "
                "range such as 'folder/train-{000..009}.tar'"
            )
        shards |= dict.fromkeys(Path(match) for match in matches)
    for shard in shards:
        if not shard.is_file() or shard.suffix.lower() != ".tar":
            raise UserError(f"{path}: matches {shard}, which is not a .tar shard")
    return list_shards(path, {None: list(shards)})


def _literal_where_it_exists(pattern: str) -> str:
    """The glob with those of its folders escaped that exist under these very names."""
    literal, escaped = Path(), Path()
    for part in Path(pattern).parts:
        literal /= part
        escaped /= glob.escape(part) if literal.exists() else part
    return str(escaped)
