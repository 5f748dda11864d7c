"""The drawing decoder for the training loop: what the codes leave unsaid is drawn."""

import copy
import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pqvae.console import say
from pqvae.data.batches import map_images
from pqvae.images import to_float
from pqvae.randomness import Stream, stream_generator
from pqvae.runtime import Runtime
from pqvae.training.run import run_stage
from stage1_tokenizer.decoder_task import finish
from stage1_tokenizer.decoders.drawn import DrawnDecoder
from stage1_tokenizer.drawn_config import Config
from stage1_tokenizer.drawn_objective import DrawnObjective
from stage1_tokenizer.perceptual_task import PerceptualTask
from stage1_tokenizer.prefixes import evenly_spaced_indices, log_uniform, residual_shares
from stage1_tokenizer.tokenizer import DRAWN

MEASURED = 2000  # training images at most, of whose latents the covariance is taken
AVERAGED = 200  # steps or so, over which the kept weights are an average
CURVES = {
    "energy score, by features and by colours": ["energy", "colours"],
    "what the discriminator cannot tell; 2: all": ["discriminator"],
    "held-out kernel distance of all pictures by prefix length": ["val_kernel_*"],
    "held-out distance by prefix length": ["val_distance_*"],
    "held-out PSNR by prefix length, dB": ["val_psnr_*"],
}


class DrawnTask(PerceptualTask[Config, DrawnDecoder]):
    """A decoder that draws, and the discriminator that tells its pictures from real ones."""

    def __init__(self, config: Config, runtime: Runtime, folder: Path) -> None:
        super().__init__(config, runtime, folder)
        names = self.train_images.class_names
        decoder = self.tokenizer.add_decoder(
            DRAWN, dataclasses.replace(config.decoder, class_names=names)
        )
        assert isinstance(decoder, DrawnDecoder)
        self.decoder, self.trained = decoder, copy.deepcopy(decoder)
        self.decoder.requires_grad_(False)
        self.objective = DrawnObjective(config.objective, self.tokenizer, len(names))
        self.name, self.network, self.curves = DRAWN, self.objective.network, CURVES
        self.networks: Sequence[nn.Module] = (self.trained, self.objective.discriminator)
        self.model = nn.ModuleList(self.networks)

    def start(self) -> None:
        """Measure what the codes say; the decoder starts as the faithful one."""
        say("measuring training images")
        indices = evenly_spaced_indices(self.train_images, min(MEASURED, len(self.train_images)))

        def latents(images: Tensor) -> Tensor:
            return self.tokenizer.latents(to_float(images).to(self.runtime.device))

        measured = map_images(self.train_images, indices, latents)
        shares = residual_shares(self.tokenizer, self.train_images, len(indices))
        left = dict(zip(self.tokenizer.quantizer.cuts, shares, strict=True))
        for decoder in (self.decoder, self.trained):
            decoder.init_from_faithful(self.tokenizer.decoder())
            decoder.init_from_latents(measured, left)
        self.objective.start(self.train_images)

    def loss(self, step: int, part: slice) -> dict[str, Tensor]:
        images = self.batches(step, part).to(self.runtime.device)
        lengths, noise, labels = self._drawn(step)
        lengths, labels = lengths[part].to(images.device), labels[part].to(images.device)
        noise = noise[:, part].flatten(0, 1).to(images.device)
        partial = self.partial_latents(images, lengths)
        twice = (torch.cat([one, one]) for one in (partial, lengths))
        pictures = self.trained(*twice, noise, torch.cat([labels, labels])).float()
        return self.objective.losses(pictures, images, partial, lengths, labels)

    def _drawn(self, step: int) -> tuple[Tensor, Tensor, Tensor]:
        """What is drawn for the images of a batch.

        Returns:
            Prefix lengths (B,), noise of two pictures each (2, B, size), and classes or none (B,).
        """
        size, config = self.config.trainer.batch_size, self.config.objective
        generator = stream_generator(self.config.trainer.seed, Stream.PICTURE_NOISE, step)
        noise = torch.randn(2, size, self.decoder.noise_size, generator=generator)
        chance = torch.rand(3, size, generator=generator)
        lengths = log_uniform(chance[0], self.tokenizer.quantizer.cuts)
        lengths[chance[1] < config.no_codes] = 0
        labels = torch.zeros(size, dtype=torch.int64)
        if self.train_images.labels is not None:
            labels = self.train_images.labels[self.images.order(step)]
            labels[chance[2] < config.no_class] = len(self.train_images.class_names)
        return lengths, noise, labels

    def after_step(self, step: int, finite: Tensor) -> None:
        """Let the kept weights follow."""
        share = finite / min(1 + step / 10, AVERAGED)
        pairs = zip(self.decoder.parameters(), self.trained.parameters(), strict=True)
        with torch.no_grad():
            for kept, trained in pairs:
                kept.lerp_(torch.where(finite, trained, kept), share.to(kept.dtype))

    def score(self, found: Mapping[str, Sequence[float]]) -> float:
        return sum(found["kernel"]) / len(self.lengths)

    def learned(self) -> dict[str, Any]:
        return {
            "decoder": self.trained.state_dict(),
            "average": self.decoder.state_dict(),
            "discriminator": self.objective.discriminator.state_dict(),
        }

    def load_learned(self, state: dict[str, Any]) -> None:
        self.trained.load_state_dict(state["decoder"])
        self.decoder.load_state_dict(state["average"])
        self.objective.discriminator.load_state_dict(state["discriminator"])


def run(config: Config) -> None:
    """Train as the config says, or resume; give the decoder to the tokenizer."""
    run_stage(config, DrawnTask, finish)
