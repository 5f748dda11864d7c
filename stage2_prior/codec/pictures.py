"""Pictures <-> .pq bytes, by the codes of a tokenizer.

The whole picture, of any shape, is squeezed into the tokenizer's square; a file says what shape it
had, and is shown in it, scaled up smoothly.
"""

import base64
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from pqvae.errors import UserError
from pqvae.images import psnr, to_float, to_uint8
from stage1_tokenizer import Tokenizer
from stage1_tokenizer.shipped import find_model
from stage2_prior.codec.coders import NEEDS, Coder, open_coders
from stage2_prior.codec.container import (
    HEADER,
    LARGEST_BOOK,
    MOST_BYTES,
    FormatError,
    Header,
    Mode,
    checksum_fits,
    model_id,
    pack,
    unpack,
)
from stage2_prior.codec.fixed import FixedCoder

# Beam and refinements by effort: each takes about twice as long as the one before.
EFFORTS = ((1, 0), (2, 0), (4, 0), (8, 0), (16, 0), (1, 4), (4, 4), (8, 4), (16, 4), (16, 8))
_BASE64URL = re.compile(r"[A-Za-z0-9_-]+")


@dataclass(frozen=True, slots=True)
class Content:
    """What a file holds.

    Attributes:
        header: What it says of itself.
        codes: All of them, or the first ones.
        whole: Whether these are all: nothing was cut off.
    """

    header: Header
    codes: list[int]
    whole: bool


@dataclass(frozen=True, slots=True)
class Length:
    """How long a file is to be; without any limit, all codes are written.

    Attributes:
        bytes: Of the whole file at most.
        codes: At most.
        psnr: In dB, of the square: no more codes than reach it.
    """

    bytes: int | None = None
    codes: int | None = None
    psnr: float | None = None


ALL = Length()


class Codec:
    """Writes pictures as files and shows files as pictures."""

    def __init__(self, tokenizer: Tokenizer, coders: Mapping[Mode, Coder]) -> None:
        """Take a tokenizer, and the coders that are at hand beside that of fixed lengths.

        Raises:
            UserError: The tokenizer's codes do not fit into a file.
        """
        sizes = tokenizer.quantizer.sizes
        if max(sizes) > LARGEST_BOOK:
            raise UserError(f"a file holds codes below {LARGEST_BOOK}, but here are {max(sizes)}")
        self.tokenizer = tokenizer
        self.fixed = FixedCoder(sizes)
        self.coders: dict[Mode, Coder] = {Mode.FIXED: self.fixed, **coders}
        codes_hash = tokenizer.codes_hash
        self.models = {
            mode: model_id(codes_hash, *filter(None, [coder.content_hash]))
            for mode, coder in self.coders.items()
        }
        self.cuts = list(tokenizer.quantizer.cuts)

    @classmethod
    def from_pretrained(cls, model: str | Path, prior: str | Path | None = None) -> "Codec":
        """Load a tokenizer, its tables where it has any, and a prior where one is given.

        Raises:
            UserError: One is missing, damaged, or does not belong to the other.
        """
        folder = find_model(model)
        tokenizer = Tokenizer.from_pretrained(folder)
        return cls(tokenizer, open_coders(folder, tokenizer, prior))

    def coder(self, mode: Mode) -> Coder:
        """The coder of a mode.

        Raises:
            FormatError: What it needs is not there; says what.
        """
        if mode not in self.coders:
            raise FormatError(f"mode {mode.name.lower()} needs {NEEDS[mode]}")
        return self.coders[mode]

    def compress(
        self,
        images: Tensor,
        shapes: Sequence[tuple[int, int]],
        length: Length = ALL,
        *,
        mode: Mode = Mode.FIXED,
        effort: int = 0,
    ) -> list[bytes]:
        """Write pictures as files; each is read back before it is given out.

        Args:
            images: The pictures, squeezed into squares, uint8 (B, 3, S, S).
            shapes: Width and height of each as it was.
            length: Of each file.
            mode: How codes are written.
            effort: 0 to 9: how long to search for codes that describe the picture well.

        Raises:
            UserError: So few bytes or codes make no picture, or the mode needs what is not there.
        """
        coder, codes = self.coder(mode), self.encode(images, effort)
        lengths = self._lengths(images, codes, length)
        files = []
        for row, shape, k in zip(codes.tolist(), shapes, lengths, strict=True):
            most = MOST_BYTES if length.bytes is None else length.bytes - HEADER
            payloads = self._payloads(coder, row[:k], most)
            header = Header.of_picture(mode, self.models[mode], len(payloads[-1]), *shape)
            data = pack(header, row[: len(payloads)], payloads[-1])
            assert self.read(data).codes == row[: len(payloads)]
            files.append(data)
        return files

    def encode(self, images: Tensor, effort: int = 0) -> Tensor:
        """Codes int64 (B, N), on the CPU, of squares uint8 (B, 3, S, S); see ``compress``."""
        beam, refine = EFFORTS[effort]
        return self.tokenizer.encode(to_float(images).to(self.tokenizer.device), beam, refine).cpu()

    def _lengths(self, images: Tensor, codes: Tensor, length: Length) -> list[int]:
        """How many codes each picture gets at most, whatever bytes they take."""
        cuts = [k for k in self.cuts if length.codes is None or k <= length.codes]
        if not cuts:
            raise UserError(f"{length.codes} codes make no picture, {self.cuts[0]} make the first")
        lengths = torch.full((len(codes),), cuts[-1])
        if length.psnr is None:
            return lengths.tolist()
        for k in reversed(cuts):
            made = to_uint8(self.tokenizer.decode(codes[:, :k])).cpu()
            lengths[psnr(made, images) >= length.psnr] = k
        return lengths.tolist()

    def _payloads(self, coder: Coder, codes: list[int], most: int) -> list[bytes]:
        """Payloads of the prefixes of codes, up to the longest that decodes and fits."""
        payloads = []
        for payload in coder.payloads(codes):
            if len(payload) > min(most, MOST_BYTES):
                break
            payloads.append(payload)
        if not (k := self._cut(len(payloads))):
            raise UserError(f"{HEADER + most} bytes hold no picture; give more")
        return payloads[:k]

    def read(self, data: bytes) -> Content:
        """The codes of a file, so many of them as make a picture.

        Raises:
            FormatError: These bytes are no .pq file, are damaged, are of another model, or of a
                mode that needs what is not there.
        """
        header, payload = unpack(data)
        coder = self.coder(header.mode)
        if header.model != self.models[header.mode]:
            raise FormatError(
                f"written with the model {header.model.hex()}, but this one is "
                f"{self.models[header.mode].hex()}; give the one that wrote it"
            )
        codes = coder.read(payload)
        if len(payload) < header.size_of_payload:
            return Content(header, self._prefix(codes), whole=False)
        for k, its_payload in enumerate(coder.payloads(codes), start=1):
            if its_payload == payload and checksum_fits(data, codes[:k]):
                return Content(header, self._prefix(codes[:k]), whole=True)
        raise FormatError("damaged: its checksum does not fit")

    def _prefix(self, codes: list[int]) -> list[int]:
        """As many of the codes as make a picture."""
        if not (k := self._cut(len(codes))):
            raise FormatError("cut off before its first picture")
        return codes[:k]

    def _cut(self, most: int) -> int:
        """The longest prefix of at most so many codes that makes a picture; 0 where none does."""
        return max((cut for cut in self.cuts if cut <= most), default=0)

    def placeholders(self, images: Tensor, size: int, effort: int = 0) -> list[str]:
        """Codes alone as text, base64url without padding: of squares uint8 (B, 3, S, S).

        Args:
            images: The pictures.
            size: Bytes of each, before they are text.
            effort: As of ``compress``.

        Raises:
            UserError: So few bytes make no picture.
        """
        texts = []
        for row in self.encode(images, effort).tolist():
            payload = self._payloads(self.fixed, row, size)[-1]
            texts.append(base64.urlsafe_b64encode(payload).decode().rstrip("="))
        return texts

    def read_placeholder(self, text: str) -> list[int]:
        """The codes of a placeholder; of one that was cut, so many as make a picture.

        Raises:
            FormatError: It is no such text, or of another model.
        """
        if not _BASE64URL.fullmatch(text):
            raise FormatError("not a placeholder: letters, digits, - and _ are")
        payload = base64.urlsafe_b64decode(text[: len(text) - (len(text) % 4 == 1)] + "==")
        return self._prefix(self.fixed.read(payload))

    @property
    def image_size(self) -> int:
        """Pixels, height and width of the square."""
        return self.tokenizer.config.image_size

    def first_codes(self, forms: Sequence[Tensor | list[int]], k: int) -> Tensor:
        """The first k codes, int64 (B, k), of squares uint8 (3, S, S) and of codes.

        Raises:
            UserError: Codes are fewer.
        """
        images = [form for form in forms if isinstance(form, Tensor)]
        encoded = iter(self.encode(torch.stack(images)).tolist() if images else [])
        rows = [next(encoded) if isinstance(form, Tensor) else form for form in forms]
        if fewest := min((len(row) for row in rows if len(row) < k), default=0):
            raise UserError(f"a file has {fewest} codes, but {k} are to be compared; give fewer")
        return torch.tensor([row[:k] for row in rows])

    def decompress(
        self, content: Content, decoder: str | None = None, side: int | None = None
    ) -> Tensor:
        """Show what a file holds.

        Args:
            content: Of ``read``.
            decoder: By default the one for eyes; its noise, where it draws, is that of seed 0.
            side: Pixels of the longest side; by default about as many as the picture had.

        Returns:
            uint8 (3, height, width).
        """
        width, height = content.header.shown_in(side)
        return self._draw(content.codes, decoder, width, height)

    def show(self, codes: list[int], decoder: str | None = None, side: int | None = None) -> Tensor:
        """The square of a placeholder's codes: uint8 (3, side, side), by default as it is made."""
        side = side or self.image_size
        return self._draw(codes, decoder, side, side)

    def _draw(self, codes: list[int], decoder: str | None, width: int, height: int) -> Tensor:
        name = decoder or self.tokenizer.decoder_to_see
        square = self.tokenizer.decode(torch.tensor([codes]), name).cpu()
        if square.shape[2:] != (height, width):
            square = F.interpolate(square, (height, width), mode="bicubic", antialias=True)
        return to_uint8(square)[0]
