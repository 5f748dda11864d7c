"""Codebooks as the prior knows them: tables that all positions which read a codebook share."""

import bisect
import itertools
from collections.abc import Iterator
from collections.abc import Sequence as Numbers
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from stage1_tokenizer.quantizers.contract import Quantizer
from stage2_prior.sequence import Sequence

TINY = 1e-12  # no smaller norms


@dataclass(frozen=True)
class Codebooks:
    """Which codebook each position reads, and how large they are: the shape of a prior's tables."""

    sizes: tuple[int, ...]  # K_i of every position: it reads the first K_i entries of its codebook
    books: tuple[int, ...]  # the codebook of every position, numbered from 0 in order of first use
    # Of every codebook: None where entries are latents; where each position lays them into the
    # latent in a way of its own, how many numbers an entry has.
    placed: tuple[int | None, ...]

    @classmethod
    def separate(cls, sizes: Numbers[int]) -> "Codebooks":
        """A codebook for every position."""
        return cls(tuple(sizes), tuple(range(len(sizes))), (None,) * len(sizes))

    @classmethod
    def of(cls, quantizer: Quantizer) -> "Codebooks":
        """Those of a quantizer."""
        placed: list[int | None] = [None] * (max(quantizer.books) + 1)
        for position, book in enumerate(quantizer.books):
            if quantizer.placement(position) is not None:
                placed[book] = quantizer.meaning(book).shape[1]
        return cls(quantizer.sizes, quantizer.books, tuple(placed))


class Book(nn.Module):
    """One codebook, for the P positions that read it: codes -> inputs, hidden states -> logits.

    Entry c says m_i[c] = meaning[c] @ placements[i] at position i, in F directions of the latent.
    It is read as embedding[c] and m_i[c]. From a hidden state h, and v = W h in those directions,

        logit_i[c] = (gain_i * h) . head[c]  +  v . m_i[c] / |m_i[c]|  +  bias_i[c]

    so that nothing of size P x K is wider than a number.
    """

    meaning: Tensor  # (K, n), or (K, F) without placements
    placements: Tensor | None  # (P, n, F): how a position lays n numbers into the F directions
    norms: Tensor  # (P, K): |m_i[c]|
    missing: Tensor  # bool (P, K): codes that a position does not have

    def __init__(self, sizes: Numbers[int], width: int, features: int, placed: int | None) -> None:
        """Build tables without values; ``Prior.init_weights`` sets them.

        Args:
            sizes: K_i of each of the P positions; K is the largest.
            width: Of the network.
            features: F.
            placed: n; None where entries are given in the F directions themselves.
        """
        super().__init__()
        P, K = len(sizes), max(sizes)
        self.sizes = sizes
        self.embedding = nn.Embedding(K, width)
        self.head = nn.Parameter(torch.empty(K, width))
        self.gain = nn.Parameter(torch.empty(P, width))
        self.bias = nn.Parameter(torch.empty(P, K))
        self.register_buffer("meaning", torch.zeros(K, placed or features))
        placements = torch.zeros(P, placed, features) if placed else None
        self.register_buffer("placements", placements)
        self.register_buffer("norms", torch.ones(P, K))
        missing = torch.arange(K) >= torch.tensor(sizes).unsqueeze(1)
        self.register_buffer("missing", missing, persistent=False)

    @torch.no_grad()
    def describe(self, codes: Tensor, members: slice) -> Tensor:
        """m_i[c] of codes (B, p) at some of the positions: float32 (B, p, F)."""
        numbers = self.meaning[codes]
        if self.placements is None:
            return numbers
        # Autocast would round what is summed over many positions to bfloat16.
        with torch.autocast(codes.device.type, enabled=False):
            return torch.einsum("bpn,pnf->bpf", numbers, self.placements[members])

    def logits(self, hidden: Tensor, directed: Tensor, members: slice) -> Tensor:
        """Logits at some of the positions.

        Args:
            hidden: h, float (B, p, width).
            directed: v, float (B, p, F).
            members: Which p of the P positions.

        Returns:
            float32 (B, p, K), or float64 of such a prior; -inf where a position has no such code.
        """
        by_table = F.linear(hidden * self.gain[members], self.head)
        if self.placements is not None:
            directed = torch.einsum("bpf,pnf->bpn", directed, self.placements[members])
        by_meaning = F.linear(directed, self.meaning) / self.norms[members]
        precision = torch.promote_types(by_table.dtype, torch.float32)
        logits = by_table.to(precision) + by_meaning.to(precision) + self.bias[members]
        if min(self.sizes) == max(self.sizes):  # none is missing
            return logits
        return logits.masked_fill(self.missing[members], -torch.inf)

    @torch.no_grad()
    def set_bias(self, member: int, codes: Tensor) -> None:
        """Make a position the unigram model of codes (n,): an add-one histogram."""
        size = self.sizes[member]
        counts = torch.bincount(codes, minlength=size) + 1.0
        self.bias[member, :size] = (counts / counts.mean()).log()

    @torch.no_grad()
    def set_meaning(self, meaning: Tensor, placements: Tensor | None) -> None:
        """Take over what entries say: (K, n) and (P, n, F'), or (K, F') and None; F' <= F."""
        self.meaning.zero_()
        self.meaning[:, : meaning.shape[1]] = meaning
        if placements is None:
            norms = self.meaning.norm(dim=1).unsqueeze(0)
        else:
            assert self.placements is not None
            self.placements.zero_()
            self.placements[..., : placements.shape[2]] = placements
            norms = torch.stack([(meaning @ placement).norm(dim=1) for placement in placements])
        self.norms.copy_(norms.clamp_min(TINY).masked_fill(self.missing, TINY))

    @torch.no_grad()
    def scale_meaning(self, factor: Tensor) -> None:
        """Let entries say so many times as much."""
        (self.meaning if self.placements is None else self.placements).mul_(factor)
        self.norms.mul_(factor)


class Books(nn.ModuleList):
    """All codebooks of a prior; codes come and go by place."""

    def __init__(self, codebooks: Codebooks, sequence: Sequence, width: int, features: int) -> None:
        numbers = [codebooks.books[position] for position in sequence.order]
        # Of each codebook: the places where it is read, rising; and the positions that these are.
        self.places = [
            [place for place, number in enumerate(numbers) if number == book]
            for book in range(len(codebooks.placed))
        ]
        self.positions = [[sequence.order[place] for place in places] for places in self.places]
        self.largest = max(codebooks.sizes)
        super().__init__(
            Book([codebooks.sizes[position] for position in positions], width, features, placed)
            for positions, placed in zip(self.positions, codebooks.placed, strict=True)
        )

    def __iter__(self) -> Iterator[Book]:
        return super().__iter__()  # type: ignore[bad-return]

    def read(self, codes: Tensor, begin: int) -> tuple[Tensor, Tensor]:
        """Codes (B, n) from place ``begin`` on: their embeddings (B, n, width), and m (B, n, F)."""
        embedded, described, order = [], [], []
        for book, members, places in self._at(begin, begin + codes.shape[1]):
            part = _columns(codes, places)
            embedded.append(book.embedding(part))
            described.append(book.describe(part, members))
            order += places
        return _join(embedded, order), _join(described, order)

    def logits(self, hidden: Tensor, directed: Tensor, begin: int) -> Tensor:
        """As those of a book, at all places from ``begin`` on: (B, n, width) -> (B, n, K)."""
        parts, order = [], []
        for book, members, places in self._at(begin, begin + hidden.shape[1]):
            logits = book.logits(_columns(hidden, places), _columns(directed, places), members)
            if logits.shape[2] < self.largest:
                logits = F.pad(logits, (0, self.largest - logits.shape[2]), value=-torch.inf)
            parts.append(logits)
            order += places
        return _join(parts, order)

    def set_bias(self, codes: Tensor) -> None:
        """Become the unigram model of codes by position, (n, N)."""
        for book, positions in zip(self, self.positions, strict=True):
            for member, position in enumerate(positions):
                book.set_bias(member, codes[:, position])

    @torch.no_grad()
    def set_meaning(self, quantizer: Quantizer, features: int) -> None:
        """Take over what the entries of a quantizer say, in so many directions of its latent."""
        directions = _principal_directions(quantizer, features)
        for number, (book, positions) in enumerate(zip(self, self.positions, strict=True)):
            meaning = quantizer.meaning(number)
            if book.placements is None:
                book.set_meaning(meaning @ directions, None)
                continue
            laid = [quantizer.placement(position) for position in positions]
            laid = [directions if one is None else one @ directions for one in laid]
            book.set_meaning(meaning, torch.stack(laid))
        # The sum of N entries has about unit size per image then.
        longest = torch.stack([book.norms.max() for book in self]).max()
        for book in self:
            book.scale_meaning(1 / longest)

    def _at(self, begin: int, end: int) -> Iterator[tuple[Book, slice, list[int]]]:
        """The books that are read at these places; which of their positions, at which of these."""
        for book, places in zip(self, self.places, strict=True):
            members = slice(bisect.bisect_left(places, begin), bisect.bisect_left(places, end))
            if members.start < members.stop:
                yield book, members, [place - begin for place in places[members]]


def _columns(values: Tensor, places: list[int]) -> Tensor:
    """values[:, places], for rising places; as a view where they follow one another."""
    if places[-1] - places[0] == len(places) - 1:
        return values[:, places[0] : places[-1] + 1]
    return values.index_select(1, torch.tensor(places, device=values.device))


def _join(parts: list[Tensor], order: list[int]) -> Tensor:
    """Parts (B, p, ...) whose columns belong at these places, as one: (B, n, ...)."""
    joined = torch.cat(parts, dim=1) if len(parts) > 1 else parts[0]
    if all(before < after for before, after in itertools.pairwise(order)):
        return joined
    return joined.index_select(1, torch.tensor(order, device=joined.device).argsort())


def _principal_directions(quantizer: Quantizer, count: int) -> Tensor:
    """The directions of the latent along which entries differ most: float32 (D, <= count)."""
    step = max(1, sum(quantizer.sizes) // 16384)
    rows = torch.cat([quantizer.entries(i)[::step] for i in range(quantizer.num_codes)])
    with torch.random.fork_rng(devices=[]):  # the training's random numbers stay what they are
        torch.manual_seed(0)
        return torch.svd_lowrank(rows, q=min(count, *rows.shape))[2]
