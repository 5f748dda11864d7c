"""The ways to write codes: what each is asked, and which there are for a model."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Protocol

from pqvae.errors import UserError
from stage1_tokenizer import Tokenizer
from stage2_prior.codec.container import Mode
from stage2_prior.codec.context import ContextCoder
from stage2_prior.codec.static import StaticCoder
from stage2_prior.prior import Prior
from stage2_prior.provenance import tokenizer_hashes

NEEDS = {
    Mode.STATIC: "tables of how frequent codes are: pqvae tables writes them",
    Mode.CONTEXT: "the prior that files are written with: --prior DIR",
}


class Coder(Protocol):
    """Codes <-> payload; what is read are all codes that it surely holds, cut or not."""

    @property
    def content_hash(self) -> str: ...  # of what it needs beside the tokenizer, if anything

    def payloads(self, codes: Sequence[int], /) -> Iterator[bytes]: ...

    def read(self, payload: bytes, /) -> list[int]: ...


def open_coders(
    folder: Path, tokenizer: Tokenizer, prior: str | Path | None = None
) -> dict[Mode, Coder]:
    """Those that a tokenizer in a model or run folder has beside that of fixed lengths.

    Raises:
        UserError: Tables or prior are damaged, or of another tokenizer.
    """
    sizes = tokenizer.quantizer.sizes
    coders: dict[Mode, Coder] = {}
    if tables := StaticCoder.load(folder, tokenizer.codes_hash, sizes):
        coders[Mode.STATIC] = tables
    if prior is not None:
        loaded = Prior.from_pretrained(prior)
        wanted, found = tokenizer_hashes(loaded, tokenizer)
        if wanted != found:
            raise UserError(f"{prior}: a prior of other codes than those of {folder}")
        coders[Mode.CONTEXT] = ContextCoder(loaded)
    return coders
