"""The pictures of a page: each has a number, and all of them lie side by side on sheets."""

import base64
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from eval.subjects.tokenized import decode
from pqvae.console import Progress
from pqvae.errors import UserError
from pqvae.images import encode_sheet
from stage1_tokenizer import Tokenizer
from stage1_tokenizer.tokenizer import FAITHFUL
from stage2_prior import Prior
from stage2_prior.provenance import labels_to_decode

LARGEST_SHEET = 16383  # pixels on a side, of a WebP file

Picture = dict[str, Any]  # what the page knows of one: its number "at", its "name", its "bits" ...


class Album:
    """Pictures of codes, which are shown by prefix, and pictures that stay as they are."""

    def __init__(self, prior: Prior, tokenizer: Tokenizer, lengths: Sequence[int]) -> None:
        """Start without pictures; ``lengths`` are the prefix lengths that can be chosen."""
        self.prior, self.tokenizer, self.lengths = prior, tokenizer, list(lengths)
        self.decoders = list(dict.fromkeys([tokenizer.decoder_to_see, FAITHFUL]))
        self._codes: list[Tensor] = []
        self._numbers: list[Tensor] = []  # of their noise
        self._labels: list[Tensor] = []
        self._stills: list[Tensor] = []

    def add(
        self,
        codes: Tensor,
        labels: Tensor | None,
        names: Sequence[str],
        noise: int | None = None,
    ) -> list[Picture]:
        """Take pictures of codes.

        Args:
            codes: int64 (B, N).
            labels: int64 (B,), by which the prior counts the bits; None for no class.
            names: What each is called.
            noise: Of a decoder that draws: a number that all of them draw by; by default each draws
                by its own.
        """
        device = self.prior.device
        first = sum(map(len, self._codes))
        self._codes.append(codes.cpu())
        numbers = torch.arange(first, first + len(codes))
        self._numbers.append(numbers if noise is None else torch.full_like(numbers, noise))
        none = torch.full_like(numbers, self.prior.no_class)
        self._labels.append(none if labels is None else labels.cpu())
        bits = self.prior.bits(codes.to(device), None if labels is None else labels.to(device))
        spent = bits.double().cumsum(1).cpu()[:, [k - 1 for k in self.lengths]]
        return [
            {"at": first + place, "name": name, "bits": [round(value, 1) for value in row]}
            for place, (name, row) in enumerate(zip(names, spent.tolist(), strict=True))
        ]

    def add_stills(self, images: Tensor) -> list[int]:
        """Take pictures that stay, uint8 (B, 3, H, W); returns their numbers."""
        first = sum(map(len, self._stills))
        self._stills.append(images)
        return list(range(first, first + len(images)))

    def content(self) -> dict[str, Any]:
        """What the page needs to show the pictures."""
        bits = torch.tensor(self.tokenizer.quantizer.bits).double().cumsum(0)
        codes, sheets = torch.cat(self._codes), {}
        numbers, labels = torch.cat(self._numbers), torch.cat(self._labels)
        progress = Progress("drawing", len(codes) * len(self.lengths) * len(self.decoders))
        for name in self.decoders:
            told = labels_to_decode(self.prior, self.tokenizer, name, labels)
            sheets[name] = []
            for k in self.lengths:
                images = decode(self.tokenizer, codes[:, :k], name, indices=numbers, labels=told)
                sheets[name].append(sheet(images))
                progress.advance(len(codes))
        progress.close()
        return {
            "size": self.tokenizer.config.image_size,
            "codes": self.prior.known_codes,
            "lengths": self.lengths,
            "bits": [round(bits[k - 1].item(), 1) for k in self.lengths],
            "decoders": self.decoders,
            "sheets": sheets,
            "stills": sheet(torch.cat(self._stills)) if self._stills else None,
        }


def sheet(images: Tensor) -> dict[str, Any]:
    """Images, uint8 (B, 3, H, W), as the page reads them.

    Raises:
        UserError: They are too many for one file.
    """
    columns, size = math.ceil(math.sqrt(len(images))), images.shape[-1]
    if columns * size > LARGEST_SHEET:
        raise UserError(
            f"--per-class: {len(images):,} pictures of {size} pixels are too many for one page; "
            "give a smaller number"
        )
    data = base64.b64encode(encode_sheet(images, columns)).decode()
    return {"columns": columns, "image": f"data:image/webp;base64,{data}"}
