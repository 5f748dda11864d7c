"""Kinds of decoders, by the class of their config: one file and one line each."""

from collections.abc import Callable
from typing import Any

from stage1_tokenizer.config import ArchitectureConfig
from stage1_tokenizer.decoder_config import (
    DecoderConfig,
    DirectConfig,
    DrawnConfig,
    RefinedConfig,
    SmallConfig,
)
from stage1_tokenizer.decoders.contract import Decoder
from stage1_tokenizer.decoders.direct import DirectDecoder
from stage1_tokenizer.decoders.drawn import DrawnDecoder
from stage1_tokenizer.decoders.refined import RefinedDecoder
from stage1_tokenizer.decoders.small import SmallDecoder

# Of a config, the architecture, a latent's shape and the number of codes.
Build = Callable[[Any, ArchitectureConfig, tuple[int, int, int], int], Decoder]

KINDS: dict[type[DecoderConfig], Build] = {
    DirectConfig: DirectDecoder,
    RefinedConfig: RefinedDecoder,
    DrawnConfig: DrawnDecoder,
    SmallConfig: SmallDecoder,
}
