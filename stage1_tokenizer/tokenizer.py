"""Tokenizer = encoder + progressive quantizer + decoder: images <-> ordered codes."""

import math
from pathlib import Path

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from pqvae.config import config_from_dict, config_to_dict
from pqvae.errors import UserError
from pqvae.pretrained import load_model, save_model
from stage1_tokenizer.config import TokenizerConfig
from stage1_tokenizer.decoders.direct import Decoder
from stage1_tokenizer.encoder import Encoder
from stage1_tokenizer.quantizers.gumbel import GumbelQuantizer
from stage1_tokenizer.quantizers.residual import ProgressiveQuantizer

FEATURE_GRID = 4  # cells on a side, whose features are averaged
REFINE_STEP = 0.06  # times the gradient of an image's squared error: far from overshooting


class Tokenizer(nn.Module):
    """Writes an image as N discrete codes, coarse to fine; every prefix decodes to a whole image.

    tokenizer = Tokenizer.from_pretrained("runs/tokenizer")
    codes = tokenizer.encode(images)           # (B, N)
    rough = tokenizer.decode(codes[:, :4])     # (B, 3, H, W) from the first four codes
    """

    def __init__(self, config: TokenizerConfig) -> None:
        super().__init__()
        self.config = config
        shape = config.architecture.latent_shape(config.image_size)
        self.encoder = Encoder(config.architecture)
        gumbel = config.quantizer.assignment == "gumbel"
        kind = GumbelQuantizer if gumbel else ProgressiveQuantizer
        self.quantizer: ProgressiveQuantizer = kind(config.quantizer, math.prod(shape))
        self.decoder = Decoder(config.architecture, shape, config.quantizer.num_codes)
        self.content_hash = ""  # set by save_pretrained and from_pretrained
        self.to(memory_format=torch.channels_last)  # several times faster convolutions on CPUs

    @property
    def num_codes(self) -> int:
        """N: the codes of one image."""
        return self.config.quantizer.num_codes

    @property
    def device(self) -> torch.device:
        """Where the model is, and where its inputs must be."""
        return self.quantizer.scale.device

    def latents(self, images: Tensor) -> Tensor:
        """The latents f that are quantized: images (B, 3, H, W) in [-1, 1] -> float32 (B, D)."""
        return self.quantizer.normalize(self.encoder(images))

    @torch.no_grad()
    def encode(self, images: Tensor, beam: int = 1, refine: int = 0) -> Tensor:
        """Write images as codes.

        Args:
            images: float (B, 3, H, W) in [-1, 1], H = W = ``config.image_size``.
            beam: Width of the search for codes that describe the latent best when all N are used;
                takes so many times as long. 1 is greedy.
            refine: So many times, move the latent against the error of the decoded image, and
                search again; each takes about three times as long as decoding. The codes that
                decode best, all N of them, are kept.

        Returns:
            Codes, int64 (B, N), coarse first; row b depends on image b alone.

        Raises:
            ValueError: The images have another size, the beam is below 1, or refine below 0.
        """
        if beam < 1:
            raise ValueError(f"beam is {beam}, but must be at least 1")
        if refine < 0:
            raise ValueError(f"refine is {refine}, but must be at least 0")
        size = self.config.image_size
        if images.ndim != 4 or images.shape[1:] != (3, size, size):
            raise ValueError(f"images must be (B, 3, {size}, {size}), not {tuple(images.shape)}")
        latents = self.latents(images)
        codes = self._search(latents, beam)
        return self._refine(images, latents, codes, beam, refine) if refine else codes

    def _search(self, latents: Tensor, beam: int) -> Tensor:
        if beam == 1:
            return self.quantizer.quantize(latents)[0]
        return self.quantizer.search(latents, beam)

    def _refine(
        self, images: Tensor, latents: Tensor, codes: Tensor, beam: int, steps: int
    ) -> Tensor:
        """Descend the decoder's error straight through the quantizer; the best codes on the way.

        The encoder answers for all images at once; here each image has a few steps for itself
        (Campos et al., "Content adaptive optimization for neural image compression", 2019).
        """
        lengths = torch.full((len(codes),), self.num_codes, device=codes.device)
        # Callers may be in inference mode, whose tensors carry no gradients, but copies do.
        with torch.inference_mode(False), torch.enable_grad():
            images, latents, codes = images.clone(), latents.clone(), codes.clone()
            best, least = codes, images.new_full((len(codes),), torch.inf)
            for step in range(steps + 1):
                f_N = self.quantizer.dequantize(codes).requires_grad_()
                decoded = self.decoder(f_N, lengths).float().clamp(-1, 1)
                errors = (decoded - images).square().sum((1, 2, 3))
                best = torch.where((errors < least).unsqueeze(1), codes, best)
                least = torch.minimum(errors.detach(), least)
                if step < steps:
                    (gradient,) = torch.autograd.grad(errors.sum(), f_N)
                    latents = latents - REFINE_STEP * gradient
                    codes = self._search(latents, beam)
        return best

    @torch.no_grad()
    def decode(self, codes: Tensor) -> Tensor:
        """Decode any prefix of the codes to whole images.

        Args:
            codes: A prefix of an encoding, int64 (B, k) in [0, K), 1 <= k <= N.

        Returns:
            Images, float32 (B, 3, H, W) in [-1, 1]; equal for equal prefixes, whatever follows.

        Raises:
            ValueError: k is 0 or above N, or a code is outside [0, K).
        """
        return self.decoder(*self._prefix(codes)).float().clamp(-1, 1)

    @torch.no_grad()
    def features(self, codes: Tensor) -> Tensor:
        """What any prefix of the codes means: numbers to search and to classify images by.

        They are the decoder's, before the picture grows, averaged over the cells of a 4x4 grid.
        What images show is nearer at hand in them than in pixels or in the latent itself.

        Args:
            codes: As for ``decode``.

        Returns:
            float32 (B, 16 x the decoder's width at its coarsest resolution).

        Raises:
            ValueError: As ``decode`` does.
        """
        maps = self.decoder.features(*self._prefix(codes)).float()
        return F.adaptive_avg_pool2d(maps, FEATURE_GRID).flatten(1)

    def _prefix(self, codes: Tensor) -> tuple[Tensor, Tensor]:
        """What the decoder is given for prefixes (B, k): their latents and lengths."""
        lengths = torch.full((len(codes),), codes.shape[1], device=codes.device)
        return self.quantizer.dequantize(codes), lengths

    @torch.no_grad()
    def init_from_images(self, images: Tensor) -> None:
        """Set the linear shortcuts to the principal components of patches of these images."""
        patch = self.config.architecture.downsampling
        channels = self.config.architecture.latent_channels
        patches = rearrange(images, "b c (h p) (w q) -> (b h w) (c p q)", p=patch, q=patch)
        mean = patches.mean(0)
        components = torch.linalg.eigh(torch.cov(patches.T)).eigenvectors[:, -channels:].T
        scale = ((patches - mean) @ components.T).std()
        kernel = components.view(channels, 3, patch, patch)
        self.encoder.shortcut.weight.copy_(kernel / scale)
        self.encoder.shortcut.bias.copy_(-(components @ mean) / scale)  # type: ignore[union-attr]
        self.decoder.shortcut.weight.copy_(kernel * scale)
        # One bias per colour: the mean of a patch is nearly the same all over it.
        self.decoder.shortcut.bias.copy_(images.mean((0, 2, 3)))  # type: ignore[union-attr]

    def save_pretrained(self, folder: str | Path) -> str:
        """Write a model folder (config.json, model.safetensors); returns its content hash."""
        config = config_to_dict(self.config)
        self.content_hash = save_model(Path(folder), "tokenizer", config, self.state_dict())
        return self.content_hash

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> "Tokenizer":
        """Load a model or run folder, in evaluation mode, on the CPU.

        Raises:
            UserError: The folder is missing, damaged, or holds another kind of model.
        """
        folder = Path(folder)
        config, tensors, content_hash = load_model(folder, "tokenizer")
        tokenizer = cls(config_from_dict(TokenizerConfig, config, str(folder)))
        try:
            tokenizer.load_state_dict(tensors)
        except RuntimeError as error:
            raise UserError(f"{folder}: the tokenizer there is of another version") from error
        tokenizer.content_hash = content_hash
        return tokenizer.eval()
