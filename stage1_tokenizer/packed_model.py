"""A trained tokenizer, written anew in 8 bits a weight."""

from pathlib import Path

from pqvae.errors import UserError
from pqvae.files import is_same_file
from pqvae.pretrained import model_folder
from stage1_tokenizer.tokenizer import Tokenizer


def write_packed(source: Path, out: Path) -> None:
    """Load a tokenizer, and write it packed.

    Args:
        source: A run or model folder.
        out: The model folder to write.

    Raises:
        UserError: There is no tokenizer in ``source``, or it is what would be written over.
    """
    weights = out / "model.safetensors"
    if is_same_file(model_folder(source) / "model.safetensors", weights):
        raise UserError(f"--out {out}: is the model itself; give another folder")
    tokenizer = Tokenizer.from_pretrained(source)
    tokenizer.save_pretrained(out, packed=True)
    codes = Tokenizer.from_pretrained(out).codes_hash[:4]
    print(f"made {out}: {weights.stat().st_size / 1e6:.2f} MB, model {codes} in .pq files")
