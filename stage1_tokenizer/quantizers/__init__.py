"""Kinds of quantizers, by the class of their config: one file and one line each."""

from stage1_tokenizer.config import FSQConfig, GumbelConfig, ResidualConfig, SpatialConfig
from stage1_tokenizer.quantizers.fsq import FSQQuantizer
from stage1_tokenizer.quantizers.gumbel import GumbelQuantizer
from stage1_tokenizer.quantizers.residual import ResidualQuantizer
from stage1_tokenizer.quantizers.spatial import SpatialQuantizer

KINDS = {
    ResidualConfig: ResidualQuantizer,
    GumbelConfig: GumbelQuantizer,
    SpatialConfig: SpatialQuantizer,
    FSQConfig: FSQQuantizer,
}
