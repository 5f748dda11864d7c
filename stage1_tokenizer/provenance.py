"""A trained tokenizer, and the images that it was trained on, where they are now."""

from pathlib import Path

from pqvae.data.dataset import ImageDataset
from pqvae.errors import UserError
from stage1_tokenizer.tokenizer import Tokenizer


def open_tokenizer(folder: str) -> Tokenizer:
    """The tokenizer in a run or model folder of stage 1.

    Raises:
        UserError: There is none.
    """
    if not Path(folder).is_dir():
        raise UserError(
            f"{folder}: no tokenizer here; "
            f"run python -m stage1_tokenizer.train, or give tokenizer=FOLDER"
        )
    return Tokenizer.from_pretrained(folder)


def check_data(tokenizer: Tokenizer, folder: str, path: str, images: ImageDataset) -> None:
    """Check that these are the images that a tokenizer was trained on, as far as it knows.

    Raises:
        UserError: They are others.
    """
    before = tokenizer.provenance.get("data_hash")
    if before is not None and not images.matches(before):
        raise UserError(
            f"{folder} was trained on other images than those in {path}; restore them, or say "
            "where they are now (data.path=...)"
        )
