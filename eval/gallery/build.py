"""What ``sampling.gallery`` does: open the models and the images, fill the sections, write them."""

import argparse
import time
from dataclasses import asdict

import torch

from eval.gallery.album import Album, Picture
from eval.gallery.page import check_replaceable, write_page
from eval.gallery.sections import (
    Draw,
    add_held_out,
    add_samples,
    nearest_section,
    variations_section,
)
from pqvae.console import format_seconds, say
from pqvae.data.dataset import ImageDataset, open_splits
from pqvae.data.sample import Split
from pqvae.errors import UserError
from pqvae.pretrained import recorded_data
from pqvae.runtime import select_device
from sampling.found import settle
from stage1_tokenizer import Tokenizer
from stage1_tokenizer.prefixes import prefix_grid
from stage2_prior import Prior
from stage2_prior.provenance import open_pair


@torch.no_grad()
def build_gallery(args: argparse.Namespace) -> None:
    """Write the page.

    Args:
        args: Parsed, as ``sampling.gallery`` documents them.

    Raises:
        UserError: There are no models, no images where --data says, or something else than a
            gallery at --out.
    """
    started = time.monotonic()
    check_replaceable(args.out)
    device = select_device(args.device)
    prior, tokenizer, _ = open_pair(args.prior, args.tokenizer, device)
    found, settings = settle(args.prior, prior, args.given)
    images = _open_images(args, prior)
    start = found or prior.known_codes
    cuts = [k for k in tokenizer.quantizer.cuts if k <= prior.known_codes]
    album = Album(prior, tokenizer, sorted({*prefix_grid(cuts), start}))
    draw = Draw(prior, settings, args.seed)
    samples = add_samples(album, draw, args.per_class)
    sections = [samples.section]
    if images:
        held_out = add_held_out(album, images["test"])
        variations = variations_section(album, draw, held_out, start)
        near = nearest_section(album, samples, images["train"], start)
        sections = [held_out.section, samples.section, *filter(None, [variations]), near]
    content = {
        "start": start,
        "found": found is not None,
        "meanBits": _mean_bits(samples.pictures),
        "sections": sections,
        "notes": _notes(prior, tokenizer, draw, found),
        **album.content(),
    }
    write_page(args.out, content)
    megabytes = args.out.stat().st_size / 1e6
    print(
        f"made {args.out}, {megabytes:.1f} MB, in {format_seconds(time.monotonic() - started)}; "
        "open it in a browser"
    )


def _open_images(args: argparse.Namespace, prior: Prior) -> dict[Split, ImageDataset] | None:
    """The training and the held-out images; None where they are gone, which is said.

    Raises:
        UserError: They are not where the user says.
    """
    try:
        data = recorded_data(prior.provenance, str(args.prior), args.data, "--data DATA")
        splits = open_splits(data, ("train", "test"))
        recorded = prior.provenance.get("data_hash")
        if recorded and not splits["train"].matches(recorded):
            raise UserError(
                f"{data.path}: not the images that {args.prior} was trained on; say where those "
                "are: --data DATA"
            )
    except UserError as error:
        if args.data is not None:
            raise
        say(f"without held-out and training pictures: {error}")
        return None
    return splits


def _mean_bits(pictures: list[Picture]) -> list[float]:
    columns = zip(*(picture["bits"] for picture in pictures), strict=True)
    return [round(sum(column) / len(pictures), 1) for column in columns]


def _notes(prior: Prior, tokenizer: Tokenizer, draw: Draw, found: int | None) -> list[str]:
    """What decided the pictures."""
    values = {**asdict(draw.settings), "seed": draw.seed}
    settings = ", ".join(f"{name.replace('_', '-')} {value:g}" for name, value in values.items())
    notes = [
        f"Settings: {settings}. Prior {prior.content_hash[:8]}, "
        f"tokenizer {tokenizer.content_hash[:8]}.",
        "Bits: of codes of fixed length, and in brackets what the prior would spend on the same "
        "codes; beside the slider the mean of the samples.",
    ]
    if found:
        notes.append(f"Tuned: samples of {found} codes score best, as sampling.tune has found.")
    decoder = tokenizer.decoder_to_see
    if trained_with := tokenizer.trained_with(decoder):
        notes.append(f"The {decoder} decoder was trained by the features of {trained_with}.")
    return notes
