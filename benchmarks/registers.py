"""Register tokens as a kind of quantizer, ordered by dropping their tail: TiTok, One-D-Piece.

Yu et al., "An image is worth 32 tokens for reconstruction and generation", 2024; Miwa et al.,
"One-D-Piece: image tokenizer meets quality-controllable compression", 2025.

    f ---- read ----> N tokens, each the nearest entry of one codebook ---- write ----> f_k

A transformer on either side, between the convolutions of the other kinds: the registers read the
latent map; from those that are kept, the map is written anew. It is no sum of entries, so these
codes are not for a prior of stage 2.
"""

from typing import Literal

import torch
from einops import rearrange
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from pqvae.config import config_class
from stage1_tokenizer import quantizers
from stage1_tokenizer.config import (
    LARGEST_BOOK,
    MOST_CODES,
    QUANTIZERS,
    QuantizerConfig,
    SpatialConfig,
)
from stage1_tokenizer.quantizers.contract import Description, Quantizer
from stage1_tokenizer.quantizers.spatial import CLUSTERED, SpatialQuantizer


@config_class
class RegistersConfig(QuantizerConfig):
    kind: Literal["registers"] = Field(default="registers", description="tokens that read the map")
    num_codes: int = Field(default=64, ge=1, le=MOST_CODES, description="N: tokens of one image")
    codebook_size: int = Field(
        default=512, ge=2, le=LARGEST_BOOK, description="K: entries of their one codebook"
    )
    width: int = Field(
        default=128, ge=32, le=16384, multiple_of=32, description="of both transformers"
    )
    depth: int = Field(default=2, ge=1, le=512, description="layers of each")
    commitment: float = Field(
        default=0.25,
        ge=0,
        le=1000,
        description="weight of the tokens' squared distance to their entries",
    )
    least_uses: float = Field(
        default=0.8,
        ge=0,
        le=1000,
        description="entries used less often in a batch, on average, start anew",
    )


class RegistersDescription(Description):
    """Codes of B latents, and the tokens that the map is written from."""

    def __init__(
        self, quantizer: "RegistersQuantizer", latents: Tensor, codes: Tensor, tokens: Tensor
    ) -> None:
        """Take latents (B, D), codes (B, N), and the tokens before they were quantized."""
        self.quantizer, self.latents, self.codes, self.tokens = quantizer, latents, codes, tokens
        entries = quantizer.entries_of(codes)
        self.quantized = tokens + (entries - tokens).detach()
        self.loss = quantizer.config.commitment * F.mse_loss(tokens, entries)

    def prefix(self, lengths: Tensor) -> Tensor:
        return self.quantizer.write(self.quantized, lengths)

    @torch.no_grad()
    def left(self) -> Tensor:
        known = [torch.zeros_like(self.latents)]
        for k in self.quantizer.cuts:
            known.append(self.prefix(torch.full_like(self.codes[:, 0], k)))
        return (self.latents - torch.stack(known)).square().sum(2)


class RegistersQuantizer(Quantizer[RegistersConfig]):
    """Latents (B, D) <-> codes (B, N), of which 1, 2, 4 ... N decode."""

    whole_batches = True  # the codebook learns from tokens, which no exchange of codes brings

    def __init__(self, config: RegistersConfig, latent_shape: tuple[int, int, int]) -> None:
        N, K, W = config.num_codes, config.codebook_size, config.width
        powers = [2**i for i in range(N.bit_length()) if 2**i < N]
        super().__init__(config, (K,) * N, (0,) * N, (*powers, N))
        self.channels, height, width = latent_shape
        self.places = height * width
        layer = nn.TransformerEncoderLayer(
            W, W // 32, 4 * W, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
        )
        self.reader, self.writer = (
            nn.TransformerEncoder(layer, config.depth, nn.LayerNorm(W), enable_nested_tensor=False)
            for _ in range(2)
        )
        self.widen, self.narrow = nn.Linear(self.channels, W), nn.Linear(W, self.channels)
        self.into, self.out_of = nn.Linear(W, self.channels), nn.Linear(self.channels, W)
        # For the reader and the writer: what tells places apart, and registers.
        self.of_places = nn.Parameter(0.02 * torch.randn(2, self.places, W))
        self.of_registers = nn.Parameter(0.02 * torch.randn(2, N, W))
        # The tokens are quantized as the places of a map are.
        spatial = SpatialConfig(codebook_size=K, least_uses=config.least_uses)
        self.codebook = SpatialQuantizer(spatial, (self.channels, N, 1))

    def read(self, latents: Tensor) -> Tensor:
        """The tokens of latents (B, D), of unit variance: float32 (B, N, C)."""
        maps = rearrange(latents, "b (c p) -> b p c", p=self.places)
        places = self.widen(maps) + self.of_places[0]
        registers = self.of_registers[0].expand(len(latents), -1, -1)
        tokens = self.reader(torch.cat([places, registers], dim=1))[:, self.places :]
        return self.codebook.normalize(self.into(tokens))

    def write(self, tokens: Tensor, lengths: Tensor) -> Tensor:
        """Latents from the first ``lengths`` (B,) of the tokens (B, n, C): float32 (B, D)."""
        count = tokens.shape[1]
        places = self.of_places[1].expand(len(tokens), -1, -1)
        registers = self.out_of(tokens) + self.of_registers[1, :count]
        # Registers count from 0; the places before them are seen at every length.
        numbers = torch.arange(-self.places, count, device=lengths.device)
        dropped = numbers >= lengths.unsqueeze(1)
        written = self.writer(torch.cat([places, registers], dim=1), src_key_padding_mask=dropped)
        maps = self.narrow(written[:, : self.places])
        return rearrange(maps, "b p c -> b (c p)").float()

    def entries_of(self, codes: Tensor) -> Tensor:
        """Entries by their codes (B, k), without gradients: float32 (B, k, C)."""
        return self.meaning(0).detach()[codes]

    def encode(self, latents: Tensor, beam: int = 1) -> Tensor:
        with torch.no_grad():
            return self.codebook.encode(self.codebook.join(self.read(latents)))

    def _decode(self, codes: Tensor) -> Tensor:
        lengths = torch.full_like(codes[:, 0], codes.shape[1])
        return self.write(self.entries_of(codes), lengths)

    def meaning(self, book: int) -> Tensor:
        return self.codebook.meaning(0)

    def placement(self, position: int) -> Tensor | None:
        return None

    @torch.no_grad()
    def start(self, encoded: Tensor, generator: torch.Generator) -> None:
        self.scale.copy_(encoded.float().std())
        tokens = self.read(self.normalize(encoded[:CLUSTERED]))
        self.codebook.start(self.codebook.join(tokens), generator)

    def describe(
        self, latents: Tensor, progress: float, generator: torch.Generator
    ) -> RegistersDescription:
        tokens = self.read(latents)
        codes = self.codebook.encode(self.codebook.join(tokens.detach()))
        return RegistersDescription(self, latents, codes, tokens)

    def learn(
        self,
        description: Description,
        step: int,
        progress: float,
        finite: Tensor,
        generator: torch.Generator,
    ) -> None:
        assert isinstance(description, RegistersDescription)
        super().learn(description, step, progress, finite, generator)
        tokens = self.codebook.join(description.tokens.detach())
        seen = self.codebook.describe_by(tokens, description.codes)
        self.codebook.learn(seen, step, progress, finite, generator)

    def _learn(
        self,
        description: Description,
        progress: float,
        finite: Tensor,
        generator: torch.Generator,
    ) -> None:
        """The optimizer does it; under it a scale that moves would only shift what is read."""


def join_tables() -> None:
    """Make ``quantizer.kind=registers`` known to this process."""
    QUANTIZERS["registers"] = RegistersConfig
    quantizers.KINDS[RegistersConfig] = RegistersQuantizer
