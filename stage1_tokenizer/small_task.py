"""The small decoder for the training loop: squared error from the first codes alone."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pqvae.cli import next_command
from pqvae.errors import UserError
from pqvae.randomness import Stream, stream_generator
from pqvae.runtime import Runtime
from pqvae.training.run import run_stage
from stage1_tokenizer.decoder_task import DecoderTask, finish
from stage1_tokenizer.decoders.small import SmallDecoder
from stage1_tokenizer.directions import as_residual, first_directions
from stage1_tokenizer.prefixes import log_uniform
from stage1_tokenizer.quantizers.codes import codes_of_bytes
from stage1_tokenizer.small_config import Config
from stage1_tokenizer.tokenizer import SMALL

CURVES = {
    "squared error": ["mse"],
    "held-out PSNR by prefix length, dB": ["val_psnr_*"],
}


class SmallTask(DecoderTask[Config, SmallDecoder]):
    """A decoder of the first codes, small enough to be loaded with a page."""

    name, curves = SMALL, CURVES

    def __init__(self, config: Config, runtime: Runtime, folder: Path) -> None:
        super().__init__(config, runtime, folder)
        quantizer = as_residual(self.tokenizer.quantizer)
        codes = codes_of_bytes(quantizer.sizes, config.bytes)
        if not codes:
            raise UserError(f"bytes={config.bytes}: hold no code of {config.tokenizer}; give more")
        self.lengths = [k for k in self.lengths if k < codes] + [codes]
        self.cuts = [k for k in quantizer.cuts if k <= codes]
        decoder = self.tokenizer.add_decoder(
            SMALL, dataclasses.replace(config.decoder, codes=codes)
        )
        assert isinstance(decoder, SmallDecoder)
        count = decoder.directions.shape[1]
        decoder.directions.copy_(first_directions(quantizer, codes, count))
        decoder.init_from_faithful(self.tokenizer.decoder())
        self.model = self.decoder = decoder
        self.networks = (decoder,)

    def start(self) -> None:
        """It starts as the faithful decoder's linear picture, and needs to know no images."""

    def loss(self, step: int, part: slice) -> dict[str, Tensor]:
        images = self.batches(step, part).to(self.runtime.device)
        trainer = self.config.trainer
        generator = stream_generator(trainer.seed, Stream.PREFIX_LENGTHS, step)
        drawn = log_uniform(torch.rand(trainer.batch_size, generator=generator), self.cuts)
        lengths = drawn[part].to(images.device)
        loss, scalars = self.decoder.loss(self.partial_latents(images, lengths), lengths, images)
        return {"loss": loss, **scalars}

    def after_step(self, step: int, finite: Tensor) -> None:
        """Nothing follows the weights."""

    def score(self, found: Mapping[str, Sequence[float]]) -> float:
        return -sum(found["psnr"])

    def learned(self) -> dict[str, Any]:
        return {"decoder": self.decoder.state_dict()}

    def load_learned(self, state: dict[str, Any]) -> None:
        self.decoder.load_state_dict(state["decoder"])

    def command_after(self, *tokenizer: str) -> str:
        given = [word for each in tokenizer for word in ("--tokenizer", each.split("=", 1)[1])]
        return next_command("stage2_prior.export_web", *given)


def run(config: Config) -> None:
    """Train as the config says, or resume; give the decoder to the tokenizer."""
    run_stage(config, SmallTask, finish)
