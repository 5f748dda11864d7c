"""Finite scalar quantization at each place of the latent map, to compare with.

Mentzer et al., "Finite scalar quantization: VQ-VAE made simple", 2023: each place is projected to a
few numbers, each rounded to a few levels. There is no codebook to learn.
"""

import math

import torch
from einops import rearrange
from torch import Tensor, nn

from pqvae.errors import UserError
from stage1_tokenizer.config import FSQConfig
from stage1_tokenizer.quantizers.contract import CutsDescription, Description, Quantizer


class FSQDescription(CutsDescription):
    """All codes or none; gradients pass the rounding straight through, to the projections, too."""

    def prefix(self, lengths: Tensor) -> Tensor:
        return self.sums[0]


class FSQQuantizer(Quantizer[FSQConfig]):
    """Codes (B, places), of which only all together decode."""

    def __init__(self, config: FSQConfig, latent_shape: tuple[int, int, int]) -> None:
        try:  # only here, as every command would wait for it as long as for torch
            from vector_quantize_pytorch import FSQ  # type: ignore[missing-import]
        except ImportError:
            raise UserError(
                "quantizer.kind=fsq needs vector-quantize-pytorch: pip install 'pqvae[baselines]'"
            ) from None
        self.channels, height, width = latent_shape
        self.places = height * width
        sizes = (math.prod(config.levels),) * self.places
        super().__init__(config, sizes, (0,) * self.places, (self.places,))
        self.rounding = FSQ(levels=list(config.levels))
        numbers = len(config.levels)
        # The layers before and after have biases.
        self.into = nn.Linear(self.channels, numbers, bias=False)
        self.out_of = nn.Linear(numbers, self.channels, bias=False)

    def encode(self, latents: Tensor, beam: int = 1) -> Tensor:
        with torch.no_grad():
            return self._quantize(latents)[0]

    def _quantize(self, latents: Tensor) -> tuple[Tensor, Tensor]:
        with torch.autocast(latents.device.type, enabled=False):
            vectors = rearrange(latents, "b (c p) -> b p c", c=self.channels)
            rounded, codes = self.rounding(self.into(vectors))
            return codes.long(), rearrange(self.out_of(rounded), "b p c -> b (c p)")

    def _decode(self, codes: Tensor) -> Tensor:
        vectors = self.out_of(self.rounding.indices_to_codes(codes.int()))
        return rearrange(vectors, "b p c -> b (c p)")

    def meaning(self, book: int) -> Tensor:
        codes = torch.arange(self.sizes[0], device=self.scale.device, dtype=torch.int32)
        return self.out_of(self.rounding.indices_to_codes(codes.unsqueeze(0))).squeeze(0)

    def placement(self, position: int) -> Tensor | None:
        vectors = self.scale.new_zeros(self.channels, self.channels, self.places)
        vectors[:, :, position] = torch.eye(self.channels, device=vectors.device)
        return vectors.flatten(1)

    @torch.no_grad()
    def start(self, encoded: Tensor, generator: torch.Generator) -> None:
        self.scale.copy_(encoded.float().std())
        vectors = rearrange(self.normalize(encoded), "b (c p) -> (b p) c", c=self.channels)
        # At first the numbers of a place are its leading components, at a deviation that FSQ's tanh
        # hardly bends. From a random start it ended 1.5 dB lower after 250 steps on emoji.
        numbers = len(self.config.levels)
        axes = torch.linalg.eigh(torch.cov(vectors.T)).eigenvectors[:, -numbers:].T
        scale = 2 * (vectors @ axes.T).std(0).unsqueeze(1)
        self.into.weight.copy_(axes / scale)
        self.out_of.weight.copy_((axes * scale).T)

    def describe(
        self, latents: Tensor, progress: float, generator: torch.Generator
    ) -> FSQDescription:
        codes, quantized = self._quantize(latents)
        return FSQDescription(latents, codes, quantized.unsqueeze(0), self.cuts)

    def _learn(
        self,
        description: Description,
        progress: float,
        finite: Tensor,
        generator: torch.Generator,
    ) -> None:
        """The optimizer does it; under it a scale that moves would only shift what is rounded."""
