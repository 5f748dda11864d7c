"""What a quantizer is: one latent vector <-> N ordered codes, of which some prefixes decode.

    f ---- encode ----> c_1 ... c_N ---- decode ----> f_k, for every k among the cuts

A kind of quantizer is one file here with one class, and one line in the table of kinds. The encoder
gives it latents of unit variance; whoever wants images from f_k asks a decoder.
"""

import contextlib
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from typing import Generic, Self, TypeVar

import torch
from torch import Tensor, nn

from pqvae.errors import UserError
from stage1_tokenizer.config import QuantizerConfig
from stage1_tokenizer.quantizers.codes import Codes, as_codes, check_codes

C = TypeVar("C", bound=QuantizerConfig)

SCALE_SHARE = 0.05  # of the newest batch in the running standard deviation of the latents


class Description(ABC):
    """A batch of B latents as training sees it: codes, and what every prefix says, with gradients.

    Attributes:
        latents: f, float32 (B, D).
        codes: int64 (B, N).
        loss: What the quantizer adds to the loss: scalar, a mean over the images; or None.
        scalars: To be logged, means over the images.
    """

    latents: Tensor
    codes: Tensor
    loss: Tensor | None = None
    scalars: dict[str, Tensor] = {}

    @abstractmethod
    def prefix(self, lengths: Tensor) -> Tensor:
        """f_k of each latent, for lengths int64 (B,) among the cuts: float32 (B, D).

        Gradients reach the latents, and whatever of the quantizer is trained by gradient.
        """

    @abstractmethod
    def left(self) -> Tensor:
        """|f - f_k|^2 after no code and at every cut, without gradients: float32 (cuts + 1, B)."""


class CutsDescription(Description):
    """f_k at a few cuts, each as a whole; gradients pass straight through to f."""

    def __init__(self, latents: Tensor, codes: Tensor, sums: Tensor, cuts: Sequence[int]) -> None:
        """Take latents (B, D), codes (B, N), and f_k at each of the cuts, (cuts, B, D)."""
        self.latents, self.codes, self.sums = latents, codes, sums
        self.cuts = torch.tensor(cuts, device=codes.device)

    def prefix(self, lengths: Tensor) -> Tensor:
        rows = torch.arange(len(lengths), device=lengths.device)
        quantized = self.sums[torch.searchsorted(self.cuts, lengths), rows]
        return self.latents + (quantized - self.latents).detach()

    @torch.no_grad()
    def left(self) -> Tensor:
        sums = torch.cat([torch.zeros_like(self.sums[:1]), self.sums])
        return (self.latents - sums).square().sum(2)


class Quantizer(nn.Module, ABC, Generic[C]):
    """Latents (B, D) <-> codes (B, N); float32 throughout.

    Attributes:
        config: Of this kind.
        sizes: K_i of every position, N numbers.
        books: Which codebook each position reads, numbered from 0 in order of first use.
        cuts: The prefix lengths that decode, ascending; the last is N.
        whole_batches: Whether training must see each batch in one piece, in one process.
        scale: float32 (): the standard deviation of the encoder's output; running, in most kinds.
    """

    config: C
    sizes: tuple[int, ...]
    books: tuple[int, ...]
    cuts: Sequence[int]
    whole_batches = False
    scale: Tensor

    def __init__(
        self,
        config: C,
        sizes: tuple[int, ...],
        books: tuple[int, ...],
        cuts: Sequence[int],
    ) -> None:
        super().__init__()
        self.config = config
        self.sizes, self.books, self.cuts = sizes, books, cuts
        self.register_buffer("scale", torch.ones(()))
        # Uses in the present window and in the one before, (N, K): state of training only.
        self.register_buffer("recent", torch.zeros(len(sizes), max(sizes)), persistent=False)
        self.register_buffer("window", torch.zeros(len(sizes), max(sizes)), persistent=False)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """What ``half()``, ``to(dtype)`` and their kind do to tensors; these stay float32.

        Sums of residuals leave float16, and bfloat16 cannot tell near entries apart.
        """

        def move(tensor: Tensor) -> Tensor:
            moved = fn(tensor)
            return moved if moved.dtype == tensor.dtype else tensor.to(moved.device)

        return super()._apply(move, recurse)

    @property
    def num_codes(self) -> int:
        """N: the codes of one latent."""
        return len(self.sizes)

    @property
    def cuts_in_words(self) -> str:
        """The prefix lengths that decode, for messages."""
        every = len(self.cuts) == self.num_codes
        return f"1 to {self.num_codes}" if every else " or ".join(map(str, self.cuts))

    def check_cut(self, k: int, given: str) -> None:
        """Check that prefixes of k codes decode.

        Args:
            k: How many codes.
            given: What the user typed, for the message.

        Raises:
            UserError: They do not.
        """
        if k not in self.cuts:
            raise UserError(f"{given}: an image has {self.cuts_in_words} codes")

    @property
    def bits(self) -> tuple[float, ...]:
        """log2 K_i of every position: the fixed-length cost of each code."""
        return tuple(math.log2(size) for size in self.sizes)

    def normalize(self, encoded: Tensor) -> Tensor:
        """Divide the encoder's output (B, D) by its running standard deviation.

        Without this the latent's scale drifts as training proceeds and the codebooks lag behind.
        """
        return encoded.float() / self.scale

    # Use.

    @abstractmethod
    def encode(self, latents: Tensor, beam: int = 1) -> Tensor:
        """Choose codes.

        Args:
            latents: Normalized, float32 (B, D).
            beam: Width of a search for better codes, at least 1; kinds without one ignore it.

        Returns:
            int64 (B, N); row b depends on latent b alone.
        """

    def decode(self, codes: Codes) -> Tensor:
        """What a prefix says: whole numbers (B, k) with k among the cuts -> f_k, float32 (B, D).

        Raises:
            ValueError: k is not among the cuts, or a code is no whole number in [0, K_i).
        """
        codes = as_codes(codes, self.scale.device)
        if codes.ndim != 2:
            raise ValueError(f"codes must be (B, k), not {tuple(codes.shape)}")
        k = codes.shape[1]
        if k not in self.cuts:
            raise ValueError(f"a prefix has {self.cuts_in_words} codes, but got {k}")
        check_codes(codes, self.sizes[:k])
        return self._decode(codes)

    @abstractmethod
    def _decode(self, codes: Tensor) -> Tensor:
        """``decode`` of checked codes."""

    # Meaning, for a prior: the entries of a position are meaning(book) @ placement(position).

    @abstractmethod
    def meaning(self, book: int) -> Tensor:
        """What the entries of a codebook say: float32 (K, F), in coordinates of its own."""

    @abstractmethod
    def placement(self, position: int) -> Tensor | None:
        """How a position lays its book's meaning into the latent: (F, D), or None: as it is."""

    def entries(self, position: int) -> Tensor:
        """What each code of a position adds to the latent: float32 (K_i, D)."""
        entries = self.meaning(self.books[position])[: self.sizes[position]]
        placement = self.placement(position)
        return entries if placement is None else entries @ placement

    # Training.

    @abstractmethod
    def start(self, encoded: Tensor, generator: torch.Generator) -> None:
        """Fit to outputs of the encoder (B, D) before the first step, ``scale`` included."""

    @abstractmethod
    def describe(self, latents: Tensor, progress: float, generator: torch.Generator) -> Description:
        """Describe a batch for training.

        Args:
            latents: Normalized, float32 (B, D).
            progress: Share of the training that is done, in [0, 1].
            generator: Of what is drawn at random in this step.
        """

    @torch.no_grad()
    def describe_by(self, latents: Tensor, codes: Codes) -> Description:
        """What ``describe`` gives of latents (B, D) if it chooses these codes (B, N).

        For a batch whose parts were described in several processes or one after the other.
        """
        codes = as_codes(codes, latents.device)
        sums = torch.stack([self.decode(codes[:, :k]) for k in self.cuts])
        return CutsDescription(latents, codes, sums, self.cuts)

    def learn(
        self,
        description: Description,
        step: int,
        progress: float,
        finite: Tensor,
        generator: torch.Generator,
    ) -> None:
        """Account for one whole batch: what learns without gradients learns here.

        Args:
            description: Of the batch.
            step: How many steps came before.
            progress: As in ``describe``.
            finite: bool (), false where the batch is to change nothing. A tensor, so that a GPU
                need not be waited for.
            generator: Of what is drawn at random.
        """
        self._learn(description, progress, finite, generator)
        self._count(description.codes, finite)
        # What is not finite in a skipped step must not become an entry.
        if (step + 1) % self.config.revive_every == 0 and bool(finite):
            self._revive(description, generator)
            self.window.copy_(self.recent)
            self.recent.zero_()

    def _learn(
        self,
        description: Description,
        progress: float,
        finite: Tensor,
        generator: torch.Generator,
    ) -> None:
        """Move what follows averages; by default the scale alone."""
        self._follow_scale(description.latents, finite)

    def _revive(self, description: Description, generator: torch.Generator) -> None:
        """Replace entries hardly used since the last time; by default none."""

    def _count(self, codes: Tensor, finite: Tensor) -> None:
        positions = torch.arange(self.num_codes, device=codes.device).unsqueeze(1)
        uses = (positions * self.recent.shape[1] + codes.T).flatten()
        ones = torch.ones(uses.shape, device=codes.device) * finite
        with deterministic(codes.device):
            self.recent.view(-1).index_add_(0, uses, ones)

    @torch.no_grad()
    def _follow_scale(self, latents: Tensor, finite: Tensor) -> None:
        deviation = torch.where(finite, latents, 0).std() * self.scale
        self.scale.lerp_(deviation, SCALE_SHARE * finite.to(deviation))

    def usage(self) -> tuple[float, int]:
        """Mean entropy of the codes of the last full window in bits, and its unused entries."""
        entropy, dead = 0.0, 0
        window = self.window if self.window.any() else self.recent  # before the first is full
        for uses, size in zip(window, self.sizes, strict=True):
            shares = uses[:size].double() / uses[:size].sum()
            entropy -= float(torch.special.xlogy(shares, shares).sum()) / math.log(2)
            dead += int((shares == 0).sum())
        return entropy / self.num_codes, dead

    def training_state(self) -> dict[str, Tensor]:
        """All that ``learn`` carries from step to step, besides the state dict."""
        kept = self.state_dict(keep_vars=True)
        return {name: buffer for name, buffer in self.named_buffers() if name not in kept}

    def load_training_state(self, state: dict[str, Tensor]) -> None:
        """Take over what ``training_state`` gave."""
        for name, buffer in self.named_buffers():
            if name in state:
                buffer.copy_(state[name])


@contextlib.contextmanager
def deterministic(device: torch.device) -> Iterator[None]:
    """Sums in a fixed order on GPUs too, so that several processes keep the same codebooks."""
    before = torch.are_deterministic_algorithms_enabled()
    if device.type == "cuda":
        torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        if device.type == "cuda":
            torch.use_deterministic_algorithms(before)
