"""The vivid decoder for the training loop: codes stay as they are, pictures get better to see."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pqvae.console import say
from pqvae.randomness import Stream, stream_generator
from pqvae.runtime import Runtime
from pqvae.training.run import run_stage
from stage1_tokenizer.decoder_config import Config
from stage1_tokenizer.decoder_task import finish
from stage1_tokenizer.decoders.contract import Decoder
from stage1_tokenizer.perceptual_task import PerceptualTask
from stage1_tokenizer.tokenizer import VIVID
from stage1_tokenizer.vivid_objective import VividObjective

CURVES = {
    "distance and squared error": ["distance", "mse"],
    "Fréchet distance from real images, as a share of their variance": ["frechet"],
    "held-out distance by prefix length": ["val_distance_*"],
    "held-out PSNR by prefix length, dB": ["val_psnr_*"],
}


class VividTask(PerceptualTask[Config, Decoder]):
    """A decoder that makes one picture of the codes."""

    def __init__(self, config: Config, runtime: Runtime, folder: Path) -> None:
        self.objective = VividObjective(config.objective, runtime.device)
        self.name, self.network, self.curves = VIVID, self.objective.network, CURVES
        super().__init__(config, runtime, folder)
        self.decoder = self.tokenizer.add_decoder(VIVID, config.decoder)
        self.decoder.init_from_faithful(self.tokenizer.decoder())
        self.model, self.networks = self.decoder, (self.decoder,)
        self.lengths = [k for k in self.lengths if k >= config.objective.shortest] or self.lengths[
            -1:
        ]

    def start(self) -> None:
        """Measure the real pictures; the decoder starts as the faithful one."""
        say("measuring training images")
        self.objective.start(self.train_images)

    def loss(self, step: int, part: slice) -> dict[str, Tensor]:
        images = self.batches(step, part).to(self.runtime.device)
        trainer = self.config.trainer
        generator = stream_generator(trainer.seed, Stream.PREFIX_LENGTHS, step)
        drawn = torch.randint(len(self.lengths), (trainer.batch_size,), generator=generator)
        lengths = torch.tensor(self.lengths)[drawn][part].to(images.device)
        pictures = self.decoder(self.partial_latents(images, lengths), lengths).float()
        return self.objective.losses(pictures, images, step / trainer.steps)

    def after_step(self, step: int, finite: Tensor) -> None:
        first, total = self.parts[0].start, self.config.trainer.batch_size
        self.objective.learn(step, finite, first, total)

    def score(self, found: Mapping[str, Sequence[float]]) -> float:
        return self.objective.score(found["distance"], found["mse"])

    def learned(self) -> dict[str, Any]:
        return {"decoder": self.decoder.state_dict(), "objective": self.objective.state_dict()}

    def load_learned(self, state: dict[str, Any]) -> None:
        self.decoder.load_state_dict(state["decoder"])
        self.objective.load_state_dict(state["objective"])


def run(config: Config) -> None:
    """Train as the config says, or resume; give the decoder to the tokenizer."""
    run_stage(config, VividTask, finish)
