"""Tokenizers with a small decoder, filled at random: browsers are to show what it says."""

import torch

from pqvae.randomness import generator_for
from stage1_tokenizer import Tokenizer
from stage1_tokenizer.config import ArchitectureConfig, ResidualConfig, TokenizerConfig
from stage1_tokenizer.decoder_config import SmallConfig
from stage1_tokenizer.decoders.small import SmallDecoder
from stage1_tokenizer.directions import as_residual, first_directions
from stage1_tokenizer.tokenizer import SMALL

CODES = 7  # that the small decoder knows, of 10


def add_small(tokenizer: Tokenizer, config: SmallConfig) -> SmallDecoder:
    """Give a tokenizer a small decoder with its directions, otherwise untrained."""
    decoder = tokenizer.add_decoder(SMALL, config)
    assert isinstance(decoder, SmallDecoder)
    count = decoder.directions.shape[1]
    directions = first_directions(as_residual(tokenizer.quantizer), config.codes, count)
    decoder.directions.copy_(directions)
    return decoder


def random_tokenizer(latent_channels: int = 4) -> Tokenizer:
    """Of 16x16 pixels: 2 codes with entries of their own, then 8 that share a codebook."""
    torch.manual_seed(0)
    config = TokenizerConfig(
        image_size=16,
        architecture=ArchitectureConfig(
            widths=(16, 32),
            encoder_blocks=(0, 0),
            decoder_blocks=(0, 0),
            latent_channels=latent_channels,
        ),
        quantizer=ResidualConfig(
            num_codes=10,
            codebook_sizes=(12, 16, *[32] * 8),  # 12: four codes of the first four bits are none
            learned_codes=2,
            rank=24,
            subspace=6,
        ),
    )
    tokenizer = Tokenizer(config)
    latents = torch.randn(400, 16 * latent_channels, generator=generator_for(1))
    tokenizer.quantizer.start(latents, generator_for(2))
    decoder = add_small(tokenizer, SmallConfig(width=16, depth=1, directions=40, codes=CODES))
    with torch.no_grad():
        for parameter in decoder.parameters():
            parameter.normal_(std=0.15)
    return tokenizer.eval()


def tokenizer_of_photos() -> Tokenizer:
    """Untrained, of the shape of the tokenizer of photos: 24 bytes hold 19 of its codes."""
    config = TokenizerConfig(
        image_size=32,
        architecture=ArchitectureConfig(widths=(32, 96)),
        quantizer=ResidualConfig(num_codes=98, codebook_sizes=(256, 1024), learned_codes=2),
    )
    tokenizer = Tokenizer(config)
    add_small(tokenizer, SmallConfig(codes=19))
    return tokenizer
