"""Which tokenizer a prior belongs to, and where it is now."""

from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from pqvae.errors import UserError
from pqvae.pretrained import recorded_places
from stage1_tokenizer import Tokenizer
from stage2_prior.prior import Prior


def open_pair(
    folder: Path, given: Path | None, device: torch.device
) -> tuple[Prior, Tokenizer, Path]:
    """Load a prior and its tokenizer, in evaluation mode.

    Args:
        folder: Of the prior.
        given: The tokenizer's folder, if the user says so.
        device: Where both are to run.

    Returns:
        The prior, the tokenizer, and the tokenizer's folder.

    Raises:
        UserError: There is no prior, or as ``open_tokenizer_of`` does.
    """
    if not folder.is_dir():
        raise UserError(
            f"{folder}: no prior here; run python -m stage2_prior.train, or give --prior FOLDER"
        )
    prior = Prior.from_pretrained(folder).to(device)
    tokenizer, tokenizer_folder = open_tokenizer_of(prior, folder, given)
    return prior, tokenizer.to(device), tokenizer_folder


def open_tokenizer_of(
    prior: Prior, folder: Path, given: Path | None = None
) -> tuple[Tokenizer, Path]:
    """Find and load the tokenizer whose codes a prior was trained on.

    It is known by its hash. So it is looked for where the prior's folder says, seen from here and
    from where that was typed, and else among the folders beside the prior's.

    Args:
        prior: The prior.
        folder: Where it was loaded from.
        given: The tokenizer's folder, if the user says so; no other is tried then.

    Returns:
        The tokenizer, in evaluation mode on the CPU, and its folder.

    Raises:
        UserError: There is none, or it is another one; names --tokenizer.
    """
    recorded = prior.provenance.get("tokenizer", "")
    places = [given] if given else _recorded_places(recorded, prior)
    others: list[tuple[Path, str]] = []
    for place in places:
        tokenizer = Tokenizer.from_pretrained(place)
        wanted, found = tokenizer_hashes(prior, tokenizer)
        if wanted == found:
            return tokenizer, place
        others.append((place, found))
    for place in () if given else _neighbours(folder):
        try:
            tokenizer = Tokenizer.from_pretrained(place)
        except UserError:  # not a tokenizer, or a damaged one
            continue
        wanted, found = tokenizer_hashes(prior, tokenizer)
        if wanted == found:
            return tokenizer, place
    short = _wanted(prior)[:8] or "of an unknown hash"
    if others:
        place, found = others[0]
        raise UserError(
            f"{folder} was trained on tokenizer {short}, but {place} is {found[:8]}; "
            "pass --tokenizer FOLDER, or train the prior again"
        )
    raise UserError(
        f"{recorded or folder}: no tokenizer here, and {folder} was trained on {short}; "
        "pass --tokenizer FOLDER"
    )


def labels_to_decode(
    prior: Prior, tokenizer: Tokenizer, decoder: str, labels: Tensor | None
) -> Tensor | None:
    """The prior's labels (B,), where the decoder knows its very classes; else None."""
    known = tokenizer.decoder(decoder).class_names
    return labels if known and known == prior.class_names else None


def check_known(prior: Prior, option: str, k: int) -> None:
    """Check that a prior has been trained on the first k codes.

    Raises:
        UserError: It has not; names the option.
    """
    if k > prior.known_codes:
        known = f"this prior was trained on the first {prior.known_codes} codes alone"
        raise UserError(f"{option} {k}: {known}")


def tokenizer_hashes(prior: Prior, tokenizer: Tokenizer) -> tuple[str, str]:
    """What a prior wants its tokenizer's hash to be, and what it is.

    The codes count, whatever decodes them; priors of version 1 knew the whole tokenizer's hash.
    """
    by_codes = "tokenizer_hash" not in prior.provenance
    return _wanted(prior), tokenizer.codes_hash if by_codes else tokenizer.content_hash


def _wanted(prior: Prior) -> str:
    provenance = prior.provenance
    return provenance.get("tokenizer_hash") or provenance.get("codes_hash") or ""


def _recorded_places(recorded: str, prior: Prior) -> list[Path]:
    places = recorded_places(recorded, prior.provenance) if recorded else []
    return [place for place in dict.fromkeys(places) if place.is_dir()]


def _neighbours(folder: Path) -> Iterator[Path]:
    folder = folder.resolve()
    run = folder.parent if folder.name == "model" else folder
    yield from (place for place in sorted(run.parent.iterdir()) if place.is_dir() and place != run)
