"""A code for each place of the latent map: VQ-VAE and residual VQ, to compare with.

van den Oord et al., "Neural discrete representation learning", 2017; with ``levels`` above 1, each
place has further codes of what those before it left (Lee et al., "Autoregressive image generation
using residual quantization", 2022), level after level. Only whole levels decode. The codebooks are
those of vector-quantize-pytorch: k-means start, moving averages, revival.
"""

import contextlib
from collections.abc import Iterator

import torch
from einops import rearrange
from torch import Tensor, nn

from pqvae.errors import UserError
from stage1_tokenizer.config import SpatialConfig
from stage1_tokenizer.quantizers.contract import Description, Quantizer

DECAY = 0.99  # of the library's moving averages
CLUSTERED = 256  # latents that the library's k-means, which is slow, starts from


class SpatialQuantizer(Quantizer[SpatialConfig]):
    """Codes (B, levels * places): all places of the first level, then those of the next."""

    def __init__(self, config: SpatialConfig, latent_shape: tuple[int, int, int]) -> None:
        try:  # only here, as every command would wait for it as long as for torch
            from vector_quantize_pytorch import VectorQuantize  # type: ignore[missing-import]
        except ImportError:
            raise UserError(
                "quantizer.kind=spatial needs vector-quantize-pytorch: "
                "pip install 'pqvae[baselines]'"
            ) from None
        self.channels, height, width = latent_shape
        fold = config.fold
        if height % fold or width % fold:
            raise UserError(f"quantizer.fold={fold} does not divide a map of {height}x{width}")
        self.shape, self.places = latent_shape, height * width // fold**2
        N = config.levels * self.places
        super().__init__(
            config,
            (config.codebook_size,) * N,
            tuple(position // self.places for position in range(N)),
            range(self.places, N + 1, self.places),
        )
        self.levels = nn.ModuleList(
            VectorQuantize(
                dim=self.channels * fold**2,
                codebook_size=config.codebook_size,
                decay=DECAY,
                kmeans_init=True,
                threshold_ema_dead_code=config.least_uses,
                commitment_weight=0.0,  # the objective has it
                rotation_trick=False,  # with it a VQ-VAE on emoji ended 2.4 dB lower
                sync_codebook=False,  # `learn` sees the batch of all processes already
            )
            for _ in range(config.levels)
        )

    def split(self, latents: Tensor) -> Tensor:
        """Latents (B, D) as a vector for each place: (B, places, C)."""
        c, h, w = self.shape
        f = self.config.fold
        pattern = "b (c h p w q) -> b (h w) (c p q)"
        return rearrange(latents, pattern, c=c, h=h // f, p=f, w=w // f, q=f)

    def join(self, vectors: Tensor) -> Tensor:
        """The inverse of ``split``."""
        h, f = self.shape[1] // self.config.fold, self.config.fold
        return rearrange(vectors, "b (h w) (c p q) -> b (c h p w q)", h=h, p=f, q=f)

    @torch.no_grad()
    def encode(self, latents: Tensor, beam: int = 1) -> Tensor:
        residual, codes = self.split(latents), []
        for book in range(len(self.levels)):
            codes.append(self._nearest(book, residual))
            residual = residual - self.meaning(book)[codes[-1]]
        return torch.cat(codes, dim=1)

    def _nearest(self, book: int, residual: Tensor) -> Tensor:
        with torch.autocast(residual.device.type, enabled=False):
            return torch.cdist(residual, self.meaning(book)).argmin(2)

    def _decode(self, codes: Tensor) -> Tensor:
        total = self.scale.new_zeros(())
        for book, chosen in enumerate(codes.split(self.places, dim=1)):
            total = total + self.meaning(book)[chosen]
        return self.join(total)

    def meaning(self, book: int) -> Tensor:
        return self.levels[book].codebook  # type: ignore[bad-return]

    def placement(self, position: int) -> Tensor | None:
        place = position % self.places
        F = self.channels * self.config.fold**2
        vectors = self.scale.new_zeros(F, self.places, F)
        vectors[:, place] = torch.eye(F, device=vectors.device)
        return self.join(vectors)

    @torch.no_grad()
    def start(self, encoded: Tensor, generator: torch.Generator) -> None:
        self.scale.copy_(encoded.float().std())
        residual = self.split(self.normalize(encoded[:CLUSTERED]))
        with _drawing_from(generator):
            for book, level in enumerate(self.levels):
                level(residual, freeze_codebook=True)  # the first call runs the k-means
                residual = residual - self.meaning(book)[self._nearest(book, residual)]

    def describe(self, latents: Tensor, progress: float, generator: torch.Generator) -> Description:
        return self.describe_by(latents, self.encode(latents))

    @torch.no_grad()
    def _learn(
        self,
        description: Description,
        progress: float,
        finite: Tensor,
        generator: torch.Generator,
    ) -> None:
        super()._learn(description, progress, finite, generator)
        if not finite:
            return
        residual = self.split(description.latents)
        with _drawing_from(generator):  # the library revives entries in every step
            for book, chosen in enumerate(description.codes.split(self.places, dim=1)):
                left = residual - self.meaning(book)[chosen]
                self.levels[book].update_indices(residual, chosen)  # type: ignore[not-callable]
                residual = left


@contextlib.contextmanager
def _drawing_from(generator: torch.Generator) -> Iterator[None]:
    """Let the library, which draws from the global generator, draw what this one stands for."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(generator.initial_seed())
        yield
