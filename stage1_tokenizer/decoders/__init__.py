"""Kinds of decoders, by the class of their config: one file and one line each."""

from stage1_tokenizer.config import DirectConfig
from stage1_tokenizer.decoders.direct import DirectDecoder

KINDS = {DirectConfig: DirectDecoder}
