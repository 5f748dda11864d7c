"""One ``.tar`` shard in WebDataset's form, or a glob of them."""

import glob
from pathlib import Path

from pqvae.data.sample import Listing
from pqvae.data.shard_index import list_by_split
from pqvae.errors import UserError


def list_samples(path: str) -> Listing | None:
    place = Path(path).expanduser()
    if place.exists():
        is_shard = place.is_file() and place.suffix == ".tar"
        return list_by_split(path, [place]) if is_shard else None
    if not any(wildcard in path for wildcard in "*?["):
        return None
    matches = sorted(Path(match) for match in glob.glob(str(place)))
    if not matches:
        raise UserError(f"{path}: matches no file; give a glob such as 'folder/train-*.tar'")
    for match in matches:
        if not match.is_file() or match.suffix != ".tar":
            raise UserError(f"{path}: matches {match}, which is not a .tar shard")
    return list_by_split(path, matches)
