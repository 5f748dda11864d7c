"""Kinds of quantizers, by the class of their config: one file and one line each."""

from collections.abc import Callable
from typing import Any

from stage1_tokenizer.config import (
    FSQConfig,
    GumbelConfig,
    QuantizerConfig,
    ResidualConfig,
    SpatialConfig,
)
from stage1_tokenizer.quantizers.contract import Quantizer
from stage1_tokenizer.quantizers.fsq import FSQQuantizer
from stage1_tokenizer.quantizers.gumbel import GumbelQuantizer
from stage1_tokenizer.quantizers.residual import ResidualQuantizer
from stage1_tokenizer.quantizers.spatial import SpatialQuantizer

Build = Callable[[Any, tuple[int, int, int]], Quantizer[Any]]  # of a config and a latent's shape

KINDS: dict[type[QuantizerConfig], Build] = {
    ResidualConfig: ResidualQuantizer,
    GumbelConfig: GumbelQuantizer,
    SpatialConfig: SpatialQuantizer,
    FSQConfig: FSQQuantizer,
}
