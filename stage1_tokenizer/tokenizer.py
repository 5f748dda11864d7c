"""Tokenizer = encoder + quantizer + decoders: images <-> ordered codes."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pqvae.config import config_from_dict, config_to_dict
from pqvae.errors import UserError
from pqvae.pretrained import hash_model, load_model, save_model
from pqvae.randomness import normal_noise
from stage1_tokenizer import decoders, quantizers
from stage1_tokenizer.config import TokenizerConfig
from stage1_tokenizer.decoder_config import DECODERS, DecoderConfig, DirectConfig
from stage1_tokenizer.decoders.contract import Decoder
from stage1_tokenizer.encoder import Encoder
from stage1_tokenizer.inputs import check_images, check_search, in_blocks
from stage1_tokenizer.packing import pack_weights, unpack_weights
from stage1_tokenizer.patches import principal_patches
from stage1_tokenizer.quantizers.codes import Codes, as_codes
from stage1_tokenizer.quantizers.contract import Quantizer
from stage1_tokenizer.refine import refine as refined_codes
from stage1_tokenizer.shipped import find_model
from stage1_tokenizer.version1 import upgrade_config, upgrade_tensors

FAITHFUL = "faithful"  # the decoder that every tokenizer has: the mean under squared error
VIVID = "vivid"  # one for eyes, where it was trained
DRAWN = "drawn"  # another, that draws what the codes leave unsaid
SMALL = "small"  # one for browsers, of the first codes
FEATURE_GRID = 4  # cells on a side, whose features are averaged
# Pixels that the networks take at once. Always as many images, padded: kernels round by the shape
# of a batch, and the codes and pixels of an image are to depend on that image alone.
BLOCK_PIXELS = {"cpu": 1 << 15, "cuda": 1 << 18, "mps": 1 << 17}


class Tokenizer(nn.Module):
    """Writes an image as N discrete codes, coarse to fine; every prefix decodes to a whole image.

    tokenizer = Tokenizer.from_pretrained("runs/tokenizer")
    codes = tokenizer.encode(images)           # (B, N)
    rough = tokenizer.decode(codes[:, :4])     # (B, 3, H, W) from the first four codes

    Attributes:
        content_hash: Of the whole model; set by ``save_pretrained`` and ``from_pretrained``.
        provenance: What it was trained on; see ``pqvae.pretrained``.
        images_at_once: How many images the networks take at once, always; 0 for as many as suit
            the device. What an image becomes depends on it by rounding.
    """

    images_at_once = 0

    def __init__(self, config: TokenizerConfig) -> None:
        super().__init__()
        self.config = config
        self.latent_shape = config.architecture.latent_shape(config.image_size)
        self.encoder = Encoder(config.architecture)
        kind = quantizers.KINDS[type(config.quantizer)]
        self.quantizer: Quantizer[Any] = kind(config.quantizer, self.latent_shape)
        self.decoders = nn.ModuleDict()
        self.content_hash = ""
        self.provenance: Mapping[str, Any] = {}
        self.add_decoder(FAITHFUL, DirectConfig())

    def add_decoder(self, name: str, config: DecoderConfig) -> Decoder:
        """Give the tokenizer another decoder of its codes, untrained; returns it."""
        kind = decoders.KINDS[type(config)]
        decoder = kind(config, self.config.architecture, self.latent_shape, self.num_codes)
        self.decoders[name] = decoder.to(self.device)
        self.to(memory_format=torch.channels_last)  # several times faster on CPUs
        return decoder

    def decoder(self, name: str = FAITHFUL) -> Decoder:
        """A decoder by its name.

        Raises:
            UserError: There is none of that name.
        """
        if name not in self.decoders:
            raise UserError(
                f"this tokenizer has no decoder {name!r}, only {', '.join(self.decoders)}"
            )
        return self.decoders[name]  # type: ignore[bad-return]

    @property
    def decoder_to_see(self) -> str:
        """The decoder whose pictures are to be looked at: the best for eyes of those trained."""
        return next(name for name in (DRAWN, VIVID, FAITHFUL) if name in self.decoders)

    def trained_with(self, decoder: str) -> str:
        """The network that a decoder was trained with, as its trainer says; empty for none."""
        return self.provenance.get("decoders", {}).get(decoder, {}).get("trained_with", "")

    @property
    def num_codes(self) -> int:
        """N: the codes of one image."""
        return self.quantizer.num_codes

    @property
    def device(self) -> torch.device:
        """Where the model is, and where its inputs must be."""
        return self.quantizer.scale.device

    @property
    def block_size(self) -> int:
        """How many images the networks take at once, always; multiples of it waste nothing."""
        suited = max(1, BLOCK_PIXELS[self.device.type] // self.config.image_size**2)
        return self.images_at_once or suited

    @property
    def codes_hash(self) -> str:
        """SHA-256 of what makes codes, encoder and quantizer: equal for equal codes."""
        tensors = self.state_dict()
        parts = {k: v for k, v in tensors.items() if k.startswith(("encoder.", "quantizer."))}
        quantizer = config_to_dict(self.config.quantizer)
        config = {"image_size": self.config.image_size, "quantizer": quantizer}
        return hash_model("codes", config, parts)

    def decoder_hash(self, name: str = FAITHFUL) -> str:
        """SHA-256 of what makes pictures of codes: the quantizer and a decoder."""
        tensors = self.state_dict()
        parts = {k: v for k, v in tensors.items() if k.startswith("quantizer.")}
        parts |= {f"decoder.{k}": v for k, v in self.decoder(name).state_dict().items()}
        return hash_model("decoder", config_to_dict(self.decoder(name).config), parts)

    def latents(self, images: Tensor) -> Tensor:
        """The latents f that are quantized: images (B, 3, H, W) in [-1, 1] -> float32 (B, D)."""
        images = images.to(self.encoder.shortcut.weight.dtype)  # after `half()`
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
            ValueError: The images have another size or range, the beam is below 1, or refine
                below 0.
        """
        check_search(beam, refine)
        check_images(images, self.config.image_size)

        def encode_block(block: Tensor) -> Tensor:
            latents = self.latents(block)
            if refine:
                decoder = self.decoder()
                return refined_codes(self.quantizer, decoder, block, latents, refine, beam)
            return self.quantizer.encode(latents, beam)

        return in_blocks(encode_block, images, self.block_size)

    @torch.no_grad()
    def decode(
        self,
        codes: Codes,
        decoder: str = FAITHFUL,
        *,
        seed: int = 0,
        indices: Tensor | None = None,
        labels: Tensor | None = None,
    ) -> Tensor:
        """Decode any prefix of the codes to whole images.

        Args:
            codes: A prefix of an encoding, whole numbers of any type, (B, k) in [0, K), with k
                among ``quantizer.cuts``: of the progressive quantizer every k from 1 to N; of a
                decoder that draws, also 0.
            decoder: Which decoder. One that draws what the codes leave unsaid takes what follows.
            seed: Of what is drawn.
            indices: int64 (B,), the number of each image, which decides its noise beside the seed;
                by default its place among the codes.
            labels: int64 (B,), the class of each image; None for no class.

        Returns:
            Images, float32 (B, 3, H, W) in [-1, 1]; equal for equal prefixes, whatever follows.

        Raises:
            ValueError: k is 0 or above N, or a code is no whole number in [0, K).
            UserError: There is no such decoder.
        """
        network, codes = self.decoder(decoder), as_codes(codes, self.device)
        indices = torch.arange(len(codes)) if indices is None else indices

        def decode_block(rows: Tensor) -> Tensor:
            noise = None
            if network.noise_size:
                noise = normal_noise(seed, indices[rows], network.noise_size).to(self.device)
            classes = None if labels is None else labels[rows].to(self.device)
            latents, lengths = self._prefix(codes[rows], network.noise_size > 0)
            return network(latents, lengths, noise, classes).float().clamp(-1, 1)

        return in_blocks(decode_block, torch.arange(len(codes)), self.block_size)

    @torch.no_grad()
    def features(self, codes: Codes) -> Tensor:
        """What any prefix of the codes means: numbers to search and to classify images by.

        They are the faithful decoder's, before the picture grows, averaged over the cells of a 4x4
        grid. What images show is nearer at hand in them than in pixels or in the latent itself.

        Args:
            codes: As for ``decode``.

        Returns:
            float32 (B, 16 x the decoder's width at its coarsest resolution).

        Raises:
            ValueError: As ``decode`` does.
        """

        def features_of_block(block: Tensor) -> Tensor:
            maps = self.decoder().features(*self._prefix(block)).float()
            return F.adaptive_avg_pool2d(maps, FEATURE_GRID).flatten(1)

        return in_blocks(features_of_block, as_codes(codes, self.device), self.block_size)

    def _prefix(self, codes: Tensor, may_be_empty: bool = False) -> tuple[Tensor, Tensor]:
        """What a decoder is given for prefixes (B, k): their latents and lengths."""
        if may_be_empty and codes.ndim == 2 and not codes.shape[1]:
            latents = self.quantizer.scale.new_zeros(len(codes), math.prod(self.latent_shape))
        else:
            latents = self.quantizer.decode(codes)
        return latents, torch.full((len(codes),), codes.shape[1], device=codes.device)

    @torch.no_grad()
    def init_from_images(self, images: Tensor) -> None:
        """Set the linear shortcuts to the principal components of patches of these images."""
        architecture = self.config.architecture
        kernel, scale, mean = principal_patches(
            images, architecture.downsampling, architecture.latent_channels
        )
        self.encoder.shortcut.weight.copy_(kernel / scale)
        self.encoder.shortcut.bias.copy_(-mean / scale)  # type: ignore[union-attr]
        colours = images.mean((0, 2, 3))
        for decoder in self.decoders.values():
            decoder.init_from_patches(kernel, scale, colours)  # type: ignore[not-callable]

    def save_pretrained(
        self,
        folder: str | Path,
        provenance: Mapping[str, Any] | None = None,
        *,
        packed: bool = False,
    ) -> str:
        """Write a model folder (config.json, model.safetensors); returns its content hash.

        Args:
            folder: Where to.
            provenance: What it was trained on; by default what it says already.
            packed: In 8 bits a weight, which makes it another model; see ``packing``.
        """
        self.provenance = self.provenance if provenance is None else provenance
        config = config_to_dict(self.config)
        config["decoders"] = {
            name: config_to_dict(self.decoder(name).config) for name in self.decoders
        }
        tensors = pack_weights(self.state_dict()) if packed else self.state_dict()
        self.content_hash = save_model(Path(folder), "tokenizer", config, tensors, self.provenance)
        return self.content_hash

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> "Tokenizer":
        """Load a model or run folder, in evaluation mode, on the CPU.

        Args:
            folder: Its path; or the name of a model that comes with the package, as "photos".

        Raises:
            UserError: The folder is missing, damaged, or holds another kind of model.
        """
        folder = find_model(folder)
        stored = load_model(folder, "tokenizer")
        config, tensors = dict(stored.config), unpack_weights(stored.tensors)
        if stored.version == 1:
            config, tensors = upgrade_config(config), upgrade_tensors(tensors)
        others = config.pop("decoders", {})
        tokenizer = cls(config_from_dict(TokenizerConfig, config, str(folder)))
        try:
            for name, values in others.items():
                if name != FAITHFUL:
                    kind = DECODERS[values["kind"]]
                    tokenizer.add_decoder(name, config_from_dict(kind, values, str(folder)))
            tokenizer.load_state_dict(tensors)
        except (RuntimeError, KeyError) as error:
            raise UserError(f"{folder}: the tokenizer there is of another version") from error
        tokenizer.content_hash, tokenizer.provenance = stored.content_hash, stored.provenance
        return tokenizer.eval()
