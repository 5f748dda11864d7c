"""The vivid decoder for the training loop: codes stay as they are, pictures get better to see."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pqvae import lite0
from pqvae.cli import next_command
from pqvae.console import format_seconds, say
from pqvae.data.batches import Prefetcher, TrainingImages, map_images, parts_of_batch
from pqvae.data.dataset import ImageDataset, open_splits
from pqvae.data.summary import say_splits
from pqvae.errors import UserError
from pqvae.files import write_json
from pqvae.images import psnr, to_float, to_uint8
from pqvae.pretrained import model_folder, recorded_data
from pqvae.randomness import Stream, stream_generator
from pqvae.runtime import Runtime, machine, versions
from pqvae.training.run import run_stage
from pqvae.training.task import Evaluation
from stage1_tokenizer.decoder_config import Config
from stage1_tokenizer.prefixes import (
    evenly_spaced,
    evenly_spaced_indices,
    prefix_grid,
    reconstruct,
    save_prefix_grid,
)
from stage1_tokenizer.provenance import check_data, open_tokenizer
from stage1_tokenizer.tokenizer import FAITHFUL, VIVID, Tokenizer
from stage1_tokenizer.vivid_objective import VividObjective

GRID_IMAGES = 8  # rows of the grids drawn while training
EVALUATED_IMAGES = 256  # held-out images at most while training ...
REPORTED_IMAGES = 1024  # ... and at the end
CURVES = {
    "distance and squared error": ["distance", "mse"],
    "Fréchet distance from real images, as a share of their variance": ["frechet"],
    "held-out distance by prefix length": ["val_distance_*"],
    "held-out PSNR by prefix length, dB": ["val_psnr_*"],
}


class DecoderTask:
    """A decoder of a trained tokenizer for the training loop."""

    def __init__(self, config: Config, runtime: Runtime, folder: Path) -> None:
        self.config, self.runtime, self.folder = config, runtime, folder
        self.objective = VividObjective(config.objective, runtime.device)
        self.tokenizer = open_tokenizer(config.tokenizer).to(runtime.device)
        data = recorded_data(
            self.tokenizer.provenance, config.tokenizer, config.data.path, "data.path=..."
        )
        splits = open_splits(data)
        say_splits(splits)
        self.train_images, self.val_images, self.test_images = splits.values()
        check_data(self.tokenizer, config.tokenizer, data.path, self.train_images)
        torch.manual_seed(config.trainer.seed)
        self.tokenizer.requires_grad_(False)
        self.decoder = self.tokenizer.add_decoder(VIVID, config.decoder)
        self.decoder.init_from_faithful(self.tokenizer.decoder())
        self.model: nn.Module = self.decoder
        self.networks: Sequence[nn.Module] = (self.decoder,)
        self.curves: Mapping[str, Sequence[str]] = CURVES
        trainer = config.trainer
        self.images = TrainingImages(self.train_images, data, trainer.batch_size, trainer.seed)
        self.parts = parts_of_batch(trainer.batch_size, trainer.accumulate)
        self.batches = Prefetcher(self.images, self.parts, data.workers)
        lengths = prefix_grid(self.tokenizer.quantizer.cuts)
        self.lengths = [k for k in lengths if k >= config.objective.shortest] or lengths[-1:]

    def start(self) -> None:
        """Measure the real pictures; the decoder starts as the faithful one."""
        say("measuring training images")
        self.objective.start(self.train_images)

    def loss(self, step: int, part: slice) -> dict[str, Tensor]:
        images = self.batches(step, part).to(self.runtime.device)
        trainer, quantizer = self.config.trainer, self.tokenizer.quantizer
        generator = stream_generator(trainer.seed, Stream.PREFIX_LENGTHS, step)
        drawn = torch.randint(len(self.lengths), (trainer.batch_size,), generator=generator)
        lengths = torch.tensor(self.lengths)[drawn][part].to(images.device)
        with torch.no_grad(), torch.autocast(images.device.type, enabled=False):
            latents = self.tokenizer.latents(images)
            described = quantizer.describe_by(latents, quantizer.encode(latents))
            partial = described.prefix(lengths)
        pictures = self.decoder(partial, lengths).float()
        return self.objective.losses(pictures, images, step / trainer.steps)

    def after_step(self, step: int, finite: Tensor) -> None:
        first, total = self.parts[0].start, self.config.trainer.batch_size
        self.objective.learn(step, finite, first, total)

    def keys(self, step: int) -> list[str]:
        return [self.train_images.keys[index] for index in self.images.order(step).tolist()]

    def measure(self, dataset: ImageDataset, decoder: str, limit: int) -> dict[str, list[float]]:
        """Mean distance, squared error and PSNR of held-out images at each prefix length."""

        def compare(originals: Tensor) -> Tensor:
            images = to_float(originals).to(self.runtime.device)
            codes, wanted = self.tokenizer.encode(images), self.objective.layers(images)
            rows = []
            for k in self.lengths:
                pictures = self.tokenizer.decode(codes[:, :k], decoder)
                errors = (pictures - images).square().flatten(1).mean(1)
                levels = psnr(to_uint8(pictures).cpu(), originals).to(errors)
                distances = lite0.layers_distance(self.objective.layers(pictures), wanted)
                rows.append(torch.stack([distances, errors, levels], dim=1))
            return torch.stack(rows, dim=1)  # (B, lengths, 3)

        indices = evenly_spaced_indices(dataset, min(limit, len(dataset)))
        means = map_images(dataset, indices, compare).double().mean(0)
        return dict(zip(("distance", "mse", "psnr"), means.T.tolist(), strict=True))

    def evaluate(self, step: int) -> Evaluation:
        found = self.measure(self.val_images, VIVID, EVALUATED_IMAGES)
        self.draw_grid(step)
        pairs = [("distance", "4"), ("psnr", "2")]
        text = " | ".join(
            f"val {name} "
            + " ".join(f"{k}:{v:.{d}f}" for k, v in zip(self.lengths, found[name], strict=True))
            for name, d in pairs
        )
        scalars = {
            f"val_{name}_{k}": value
            for name, _ in pairs
            for k, value in zip(self.lengths, found[name], strict=True)
        }
        return Evaluation(self.objective.score(found["distance"], found["mse"]), text, scalars)

    def draw_grid(self, step: int) -> None:
        (self.folder / "grids").mkdir(exist_ok=True)
        path = self.folder / "grids" / f"step-{step:08d}.png"
        images = evenly_spaced(self.val_images, GRID_IMAGES)
        decoded = reconstruct(self.tokenizer, images, self.lengths, VIVID)
        save_prefix_grid(path, self.tokenizer, images, self.lengths, decoded)

    def save_model(self) -> None:
        trained_with = {"trained_with": "efficientnet-lite0, trained on the labels of ImageNet"}
        decoders = {**self.tokenizer.provenance.get("decoders", {}), VIVID: trained_with}
        provenance = {**self.tokenizer.provenance, "decoders": decoders}
        self.tokenizer.save_pretrained(self.folder / "model", provenance)

    def state_dict(self) -> dict[str, Any]:
        return {
            "decoder": self.decoder.state_dict(),
            "objective": self.objective.state_dict(),
            "codes_hash": self.tokenizer.codes_hash,
            "data_hash": self.train_images.content_hash,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if state["codes_hash"] != self.tokenizer.codes_hash:
            raise UserError(
                f"{self.folder} was trained on other codes than those of {self.config.tokenizer}; "
                "choose another folder (out=...) or remove it"
            )
        if not self.train_images.matches(state["data_hash"]):
            raise UserError(
                f"{self.folder}: the training images are not those that this run began with; "
                "restore them, or choose another folder (out=...)"
            )
        self.decoder.load_state_dict(state["decoder"])
        self.objective.load_state_dict(state["objective"])


def report(task: DecoderTask, trained: dict[str, float]) -> dict[str, Any]:
    """The final figures of the kept decoder, and of the faithful one, on the test split."""
    task.tokenizer = Tokenizer.from_pretrained(task.folder / "model").to(task.runtime.device)
    test = task.test_images
    images = evenly_spaced(test, GRID_IMAGES)
    decoded = reconstruct(task.tokenizer, images, task.lengths, VIVID)
    path = task.folder / "prefixes.png"
    save_prefix_grid(path, task.tokenizer, images, task.lengths, decoded)
    return {
        **{name: task.measure(test, name, REPORTED_IMAGES) for name in (VIVID, FAITHFUL)},
        "prefix_lengths": task.lengths,
        "split": test.name,
        "images": min(REPORTED_IMAGES, len(test)),
        "distance_by": f"{lite0.PACKAGE} {lite0.PACKAGE_VERSION}, the network trained with",
        "steps": trained["steps"],
        "seconds": round(trained["seconds"], 1),
        "parameters": sum(p.numel() for p in task.tokenizer.decoder(VIVID).parameters()),
        "codes_hash": task.tokenizer.codes_hash,
        "machine": machine(),
        "versions": versions(),
    }


def run(config: Config) -> None:
    """Train as the config says, or resume; give the decoder to the tokenizer."""
    run_stage(config, DecoderTask, finish)


def finish(task: DecoderTask, trained: dict[str, float]) -> None:
    """Measure, write ``result.json``, put the decoder beside the tokenizer's others."""
    result = report(task, trained)
    write_json(task.folder / "result.json", result)
    model = model_folder(Path(task.config.tokenizer))
    task.tokenizer.save_pretrained(model)
    say(f"took {format_seconds(result['seconds'])}")
    for name in (VIVID, FAITHFUL):
        pairs = zip(task.lengths, result[name]["distance"], result[name]["psnr"], strict=True)
        text = "  ".join(f"{k}:{d:.4f}/{p:.2f}" for k, d, p in pairs)
        print(f"test distance / PSNR in dB by prefix length, {name}  {text}")
    again = [] if task.config.tokenizer == Config().tokenizer else [f"tokenizer={model.parent}"]
    print(
        f"gave {model} its decoder {VIVID!r}; look at {task.folder}/prefixes.png, "
        f"then: {next_command('stage2_prior.train', *again)}"
    )
