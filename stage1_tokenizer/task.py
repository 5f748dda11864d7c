"""Stage 1 for the training loop: the root config, the task, the final report."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pqvae import distributed
from pqvae.cli import next_command
from pqvae.console import format_seconds, say
from pqvae.data.batches import Prefetcher, TrainingImages, parts_of_batch
from pqvae.data.dataset import ImageDataset, open_splits
from pqvae.data.summary import say_splits
from pqvae.errors import UserError
from pqvae.files import write_json
from pqvae.pretrained import provenance_of
from pqvae.randomness import Stream, stream_generator
from pqvae.runtime import Runtime, machine, versions
from pqvae.training.run import run_stage
from pqvae.training.task import Evaluation
from stage1_tokenizer.config import Config, TokenizerConfig
from stage1_tokenizer.objective import draw_prefix_lengths, prefix_loss
from stage1_tokenizer.prefixes import (
    evenly_spaced,
    measure_psnr,
    prefix_grid,
    reconstruct,
    residual_shares,
    save_prefix_grid,
)
from stage1_tokenizer.quantizers.codes import code_entropy_bits
from stage1_tokenizer.quantizers.contract import Description
from stage1_tokenizer.tokenizer import Tokenizer

GRID_IMAGES = 8  # rows of the grids drawn while training
PATCH_IMAGES = 1024  # augmented images whose patches the shortcuts start from
START_IMAGES = 8192  # augmented images that the codebooks start from
IMAGES_PER_ENTRY = 64  # augmented training images for entropy and dead entries
RESIDUAL_IMAGES = 4096  # of a split at most, for what prefixes leave of the latents
EVALUATED_IMAGES = 2048  # held-out images at most while training; all of them at the end

CURVES = {
    "loss": ["loss", "mse"],
    "held-out PSNR by prefix length, dB": ["val_psnr_*"],
    "share of the latent left after k codes, held-out": ["val_residual_*"],
    "the same on training images": ["train_residual_*"],
    "code entropy, bits": ["code_entropy_bits"],
}


class TokenizerTask:
    """Stage 1 for the training loop."""

    def __init__(self, config: Config, runtime: Runtime, folder: Path) -> None:
        self.config, self.runtime, self.folder = config, runtime, folder
        splits = open_splits(config.data)
        say_splits(splits)
        self.train_images, self.val_images, self.test_images = splits.values()
        _check_variance(self.train_images, config)
        torch.manual_seed(config.trainer.seed)
        self.tokenizer = Tokenizer(
            TokenizerConfig(
                image_size=config.data.image_size,
                architecture=config.architecture,
                quantizer=config.quantizer,
            )
        ).to(runtime.device)
        self.quantizer = self.tokenizer.quantizer
        pieces = distributed.world_size() * config.trainer.accumulate
        if self.quantizer.whole_batches and pieces > 1:
            raise UserError(
                f"quantizer.kind={config.quantizer.kind} takes each batch in one piece: "
                "train in one process, with trainer.accumulate=1"
            )
        self.model: nn.Module = self.tokenizer
        self.networks: Sequence[nn.Module] = (self.tokenizer.encoder, self.tokenizer.decoder())
        self.curves: Mapping[str, Sequence[str]] = CURVES
        trainer = config.trainer
        self.images = TrainingImages(
            self.train_images, config.data, trainer.batch_size, trainer.seed
        )
        self.parts = parts_of_batch(trainer.batch_size, trainer.accumulate)
        self.batches = Prefetcher(self.load, self.parts, config.data.workers)
        self.lengths = prefix_grid(self.quantizer.cuts)
        self._described: list[Description] = []  # of the step's parts

    def load(self, step: int, part: slice) -> Tensor:
        """Images of a part of a batch, ready to be copied to the device."""
        images = self.images(step, part)
        return images.pin_memory() if self.runtime.device.type == "cuda" else images

    def start(self) -> None:
        say("starting the shortcuts and codebooks from training images")
        device, size = self.runtime.device, self.config.trainer.batch_size
        patches = [self.images(step) for step in range(-(-PATCH_IMAGES // size))]
        self.tokenizer.init_from_images(torch.cat(patches).to(device))
        count = -(-max(START_IMAGES, 2 * max(self.quantizer.sizes)) // size)
        pieces = distributed.world_size() * self.config.trainer.accumulate
        # In the pieces of a step: of more at once the activations may not fit.
        parts = torch.arange(size).tensor_split(pieces)
        bounds = [slice(int(part[0]), int(part[-1]) + 1) for part in parts]
        batches = (self.images(step, part) for step in range(count) for part in bounds)
        with torch.inference_mode():
            encoded = torch.cat([self.tokenizer.encoder(batch.to(device)) for batch in batches])
        self.quantizer.start(encoded.clone(), self.generator(Stream.START, 0))

    def generator(self, stream: Stream, step: int) -> torch.Generator:
        return stream_generator(self.config.trainer.seed, stream, step)

    def progress(self, step: int) -> float:
        return step / self.config.trainer.steps

    def loss(self, step: int, part: slice) -> dict[str, Tensor]:
        images = self.batches(step, part).to(self.runtime.device, non_blocking=True)
        objective = self.config.objective
        lengths = draw_prefix_lengths(
            self.config.trainer.batch_size,
            self.quantizer.cuts,
            objective.full_share,
            self.generator(Stream.PREFIX_LENGTHS, step),
        )
        description = self.quantizer.describe(
            self.tokenizer.latents(images),
            self.progress(step),
            self.generator(Stream.GUMBEL_NOISE, step),
        )
        self._described.append(description)
        lengths = lengths[part].to(images.device)
        return prefix_loss(self.tokenizer, objective, description, images, lengths)

    def after_step(self, step: int, finite: Tensor) -> None:
        generator = self.generator(Stream.REVIVAL, step)
        self.quantizer.learn(self.whole_batch(), step, self.progress(step), finite, generator)

    def whole_batch(self) -> Description:
        """The description of the step's whole batch, alike in every process.

        Latents and codes are exchanged, not sums over them: they are small, and every process then
        does to its codebooks the very same.
        """
        described, self._described = self._described, []
        if len(described) == distributed.world_size() == 1:
            return described[0]
        first, total = self.parts[0].start, self.config.trainer.batch_size
        codes, latents = (
            distributed.gather(torch.cat(parts), first, total)
            for parts in (
                [part.codes for part in described],
                [part.latents.detach() for part in described],
            )
        )
        return self.quantizer.describe_by(latents, codes)

    def keys(self, step: int) -> list[str]:
        return [self.train_images.keys[index] for index in self.images.order(step).tolist()]

    def evaluate(self, step: int) -> Evaluation:
        values = measure_psnr(self.tokenizer, self.val_images, self.lengths, EVALUATED_IMAGES)
        entropy, dead = self.quantizer.usage()
        self.draw_grid(step)
        text = " ".join(f"{k}:{value:.2f}" for k, value in zip(self.lengths, values, strict=True))
        text = f"val psnr {text} dB | code entropy {entropy:.2f} bits | dead entries {dead}"
        scalars = {f"val_psnr_{k}": value for k, value in zip(self.lengths, values, strict=True)}
        scalars |= {"code_entropy_bits": entropy, "dead_entries": dead}
        count = min(EVALUATED_IMAGES, len(self.val_images))
        for split, images in (("train", self.train_images), ("val", self.val_images)):
            shares = residual_shares(self.tokenizer, images, count)
            of_cuts = dict(zip(self.quantizer.cuts, shares, strict=True))
            scalars |= {f"{split}_residual_{k}": of_cuts[k] for k in self.lengths}
        return Evaluation(-sum(values) / len(values), text, scalars)

    def draw_grid(self, step: int) -> None:
        (self.folder / "grids").mkdir(exist_ok=True)
        path = self.folder / "grids" / f"step-{step:08d}.png"
        images = evenly_spaced(self.val_images, GRID_IMAGES)
        decoded = reconstruct(self.tokenizer, images, self.lengths)
        save_prefix_grid(path, self.tokenizer, images, self.lengths, decoded)

    def save_model(self) -> None:
        provenance = provenance_of(self.config.data, self.train_images.content_hash)
        self.tokenizer.save_pretrained(self.folder / "model", provenance)

    def state_dict(self) -> dict[str, Any]:
        return {
            "tokenizer": self.tokenizer.state_dict(),
            "quantizer": self.quantizer.training_state(),
            "data_hash": self.train_images.content_hash,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if not self.train_images.matches(state["data_hash"]):
            raise UserError(
                f"{self.folder}: the training images in {self.config.data.path} are not those that "
                "this run began with; restore them, or choose another folder (out=...)"
            )
        self.tokenizer.load_state_dict(state["tokenizer"])
        self.quantizer.load_training_state(state["quantizer"])


def _check_variance(images: ImageDataset, config: Config) -> None:
    """Refuse images of one colour: what starts from their patches would divide by a zero."""
    side = config.architecture.downsampling
    repeats = config.data.image_size // side
    first = images.images([0])[..., :side, :side].tile(repeats, repeats)
    for chunk in torch.arange(len(images)).split(64):
        if (images.images(chunk) != first).any():
            return
    raise UserError(
        f"{config.data.path}: there is no variance in the training images, which are all of one "
        "colour or pattern; give images that differ"
    )


def training_codes(tokenizer: Tokenizer, task: TokenizerTask) -> Tensor:
    """Codes int64 (n, N) of augmented training images, enough to judge every entry's use."""
    needed, size = IMAGES_PER_ENTRY * max(tokenizer.quantizer.sizes), task.config.trainer.batch_size
    steps, codes = range(-(-needed // size)), []
    several = -(-tokenizer.block_size // size)  # small batches would mostly be padding
    for first in steps[::several]:
        images = torch.cat([task.images(step) for step in steps[first : first + several]])
        codes.append(tokenizer.encode(images.to(tokenizer.device)).cpu())
    return torch.cat(codes)


def report(task: TokenizerTask, trained: dict[str, float]) -> dict[str, Any]:
    """The final figures of the kept model, on the test split and on training codes."""
    tokenizer = Tokenizer.from_pretrained(task.folder / "model").to(task.runtime.device)
    test_images = task.test_images
    values = measure_psnr(tokenizer, test_images, task.lengths, len(test_images))
    residuals = [
        residual_shares(tokenizer, images, RESIDUAL_IMAGES)
        for images in (task.train_images, test_images)
    ]
    codes = training_codes(tokenizer, task)
    images = evenly_spaced(test_images, GRID_IMAGES)
    decoded = reconstruct(tokenizer, images, task.lengths)
    save_prefix_grid(task.folder / "prefixes.png", tokenizer, images, task.lengths, decoded)
    sizes = tokenizer.quantizer.sizes
    used = [codes[:, position].unique().numel() for position in range(tokenizer.num_codes)]
    return {
        "psnr": {str(k): round(v, 3) for k, v in zip(task.lengths, values, strict=True)},
        "psnr_split": test_images.name,
        "psnr_images": len(test_images),
        "residual_train": [round(share, 4) for share in residuals[0]],
        "residual_test": [round(share, 4) for share in residuals[1]],
        "code_entropy_bits": [round(bits, 3) for bits in code_entropy_bits(codes, sizes)],
        "dead_entries": sum(sizes) - sum(used),
        "bits_per_image": sum(tokenizer.quantizer.bits),
        "steps": trained["steps"],
        "images_seen": trained["steps"] * task.config.trainer.batch_size,
        "seconds": round(trained["seconds"], 1),
        "parameters": sum(parameter.numel() for parameter in tokenizer.parameters()),
        "content_hash": tokenizer.content_hash,
        "codes_hash": tokenizer.codes_hash,
        "machine": machine(),
        "versions": versions(),
    }


def run(config: Config) -> None:
    """Train as the config says, or resume, and write ``result.json``."""
    run_stage(config, TokenizerTask, finish)


def finish(task: TokenizerTask, trained: dict[str, float]) -> None:
    """Measure the kept model, write ``result.json``, and say what to do next."""
    folder, out = task.folder, str(task.folder)  # without a last slash
    result = report(task, trained)
    write_json(folder / "result.json", result)
    say(f"took {format_seconds(result['seconds'])}; dead entries {result['dead_entries']}")
    text = "  ".join(f"{k}:{value:.2f}" for k, value in result["psnr"].items())
    print(f"test PSNR in dB by prefix length  {text}")
    again = [] if out == Config().out else [f"tokenizer={out}", f"out={out}-prior"]
    print(
        f"made {folder}/model; look at {folder}/prefixes.png, "
        f"then: {next_command('stage2_prior.train', *again)}"
    )
