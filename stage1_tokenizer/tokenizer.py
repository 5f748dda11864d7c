"""Tokenizer = encoder + progressive quantizer + decoder: images <-> ordered codes."""

import math
from dataclasses import dataclass, field
from pathlib import Path

import torch
from einops import rearrange
from torch import Tensor, nn

from pqvae.cli import UserError
from pqvae.config import config_from_dict, config_to_dict
from pqvae.pretrained import load_model, save_model
from stage1_tokenizer.decoder import Decoder
from stage1_tokenizer.encoder import ArchitectureConfig, Encoder
from stage1_tokenizer.gumbel import GumbelQuantizer
from stage1_tokenizer.quantizer import ProgressiveQuantizer, QuantizerConfig


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenizerConfig:
    image_size: int  # pixels, height and width
    architecture: ArchitectureConfig = field(default_factory=ArchitectureConfig)
    quantizer: QuantizerConfig = field(default_factory=QuantizerConfig)


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

    @torch.no_grad()
    def encode(self, images: Tensor, beam: int = 1) -> Tensor:
        """Write images as codes.

        Args:
            images: float (B, 3, H, W) in [-1, 1], H = W = ``config.image_size``.
            beam: Width of the search for codes that describe the latent best when all N are used;
                takes so many times as long. 1 is greedy.

        Returns:
            Codes, int64 (B, N), coarse first; row b depends on image b alone.

        Raises:
            ValueError: The images have another size, or the beam is below 1.
        """
        if beam < 1:
            raise ValueError(f"beam is {beam}, but must be at least 1")
        size = self.config.image_size
        if images.ndim != 4 or images.shape[1:] != (3, size, size):
            raise ValueError(f"images must be (B, 3, {size}, {size}), not {tuple(images.shape)}")
        latents = self.quantizer.normalize(self.encoder(images))
        if beam == 1:
            return self.quantizer.quantize(latents)[0]
        return self.quantizer.search(latents, beam)

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
        latents = self.quantizer.dequantize(codes)
        lengths = torch.full((len(codes),), codes.shape[1], device=codes.device)
        return self.decoder(latents, lengths).float().clamp(-1, 1)

    @torch.no_grad()
    def start_from(self, images: Tensor) -> None:
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
