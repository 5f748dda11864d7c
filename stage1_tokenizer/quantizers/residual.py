"""The progressive quantizer: learned codebooks first, then one that late positions share.

The entries of the first L positions are learned one by one (``learned.py``); the late positions
share one codebook of few dimensions, laid where most is left (``shared.py``). All of it is learned
by moving averages, never by gradient; gradients pass straight through.
"""

import math

import torch
from torch import Tensor

from stage1_tokenizer.config import ResidualConfig
from stage1_tokenizer.quantizers.codebook import Codebook, Seen
from stage1_tokenizer.quantizers.contract import Description
from stage1_tokenizer.quantizers.learned import LearnedCodebooks
from stage1_tokenizer.quantizers.progressive import Progressive, ProgressiveDescription
from stage1_tokenizer.quantizers.shared import SharedCodebook


class ResidualQuantizer(Progressive[ResidualConfig]):
    """Latents (B, D) <-> codes (B, N), by nearest entry and subtraction."""

    def __init__(self, config: ResidualConfig, latent_shape: tuple[int, int, int]) -> None:
        D, L, sizes = math.prod(latent_shape), config.num_learned, config.sizes
        learned = LearnedCodebooks(sizes[:L], D)
        rank = min(config.rank, D)
        late = sizes[L:]
        shared = SharedCodebook(late, D, rank, min(config.subspace, rank)) if late else None
        super().__init__(config, [learned, shared] if shared else [learned])
        self.learned = learned
        if shared:
            self.shared = shared

    @torch.no_grad()
    def start(self, encoded: Tensor, generator: torch.Generator) -> None:
        self.scale.copy_(encoded.float().std())
        residual = self.normalize(encoded)
        for codebook in self.codebooks:
            residual = codebook.start(residual, generator)

    def describe(
        self, latents: Tensor, progress: float, generator: torch.Generator
    ) -> ProgressiveDescription:
        return self.describe_greedily(latents)

    def decay(self, progress: float) -> float:
        """Decay of the moving averages at a progress in [0, 1]."""
        start, end = math.log(1 - self.config.decay_start), math.log(1 - self.config.decay_end)
        return 1 - math.exp(start + (end - start) * progress)

    @torch.no_grad()
    def _learn(
        self,
        description: Description,
        progress: float,
        finite: Tensor,
        generator: torch.Generator,
    ) -> None:
        assert isinstance(description, ProgressiveDescription)
        known = finite.device.type == "cpu" and bool(finite)  # for the asking, and spares copies
        if not known:
            parts = [torch.where(finite, part, 0) for part in description.parts]
            description = ProgressiveDescription(
                parts[0][0], description.codes, parts, self.codebooks
            )
        decay = self.decay(progress)
        for codebook, seen in zip(self.codebooks, self._seen(description), strict=True):
            codebook.learn(seen, decay, None if known else finite)
        self._follow_scale(description.latents, finite)

    def _seen(self, description: ProgressiveDescription) -> list[Seen]:
        energies = description.left().mean(1)
        falls, entered, first, seen = energies[:-1] - energies[1:], description.latents, 0, []
        for part in description.parts:
            stretch = slice(first, first + len(part) - 1)
            codes = description.codes[:, stretch]
            seen.append(Seen(codes, entered, part, falls[stretch]))
            entered, first = part[-1], stretch.stop
        return seen

    @torch.no_grad()
    def _revive(self, description: Description, generator: torch.Generator) -> None:
        assert isinstance(description, ProgressiveDescription)
        first = 0
        for codebook, seen in zip(self.codebooks, self._seen(description), strict=True):
            uses = self.recent[first : first + len(codebook.sizes)]
            codebook.revive(seen, uses, self.config.revive_below, generator)
            first += len(codebook.sizes)

    def training_state(self) -> dict[str, Tensor]:
        state = super().training_state()
        for name, codebook in self._named_codebooks():
            state |= {f"{name}.{key}": value for key, value in codebook.training_state().items()}
        return state

    def load_training_state(self, state: dict[str, Tensor]) -> None:
        super().load_training_state(state)
        for name, codebook in self._named_codebooks():
            prefix = f"{name}."
            own = {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
            if own:
                codebook.load_training_state(own)

    def _named_codebooks(self) -> list[tuple[str, Codebook]]:
        return [(name, part) for name, part in self.named_children() if isinstance(part, Codebook)]
