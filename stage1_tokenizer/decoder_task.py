"""What training another decoder of a tokenizer is, for the training loop: all but its objective."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn

from pqvae.cli import next_command
from pqvae.console import format_seconds, say
from pqvae.data.batches import Prefetcher, TrainingImages, map_images, parts_of_batch
from pqvae.data.dataset import ImageDataset, open_splits
from pqvae.data.summary import say_splits
from pqvae.errors import UserError
from pqvae.files import write_json
from pqvae.images import psnr, to_float, to_uint8
from pqvae.pretrained import model_folder, recorded_data
from pqvae.runtime import Runtime, machine, versions
from pqvae.training.task import Evaluation
from stage1_tokenizer.decoder_config import DecoderRunConfig
from stage1_tokenizer.decoders.contract import Decoder
from stage1_tokenizer.prefixes import (
    evenly_spaced,
    evenly_spaced_indices,
    prefix_grid,
    reconstruct,
    save_prefix_grid,
)
from stage1_tokenizer.provenance import check_data, open_tokenizer
from stage1_tokenizer.tokenizer import FAITHFUL, Tokenizer

GRID_IMAGES = 8  # rows of the grids drawn while training
EVALUATED_IMAGES = 256  # held-out images at most while training ...
REPORTED_IMAGES = 1024  # ... and at the end


C = TypeVar("C", bound=DecoderRunConfig)
D = TypeVar("D", bound=Decoder)


class DecoderTask(ABC, Generic[C, D]):
    """Trains a decoder of a name; codes and the other decoders stay as they are.

    Attributes:
        name: Of the decoder.
        decoder: What is trained, or the average of it that is kept.
        lengths: Prefix lengths at which it is measured.
        watched: Which figures of held-out images are shown while it is trained, with their digits.
        shown: The same at the end, with what each is called.
        trained_with: The network by whose features it learns; empty for none.
        facts: What else the report is to say.
    """

    name: str
    decoder: D
    model: nn.Module
    networks: Sequence[nn.Module]
    curves: Mapping[str, Sequence[str]]
    watched: Mapping[str, int] = {"psnr": 2}
    shown: Mapping[str, tuple[str, int]] = {"psnr": ("PSNR in dB", 2)}
    trained_with = ""
    facts: Mapping[str, str] = {}

    def __init__(self, config: C, runtime: Runtime, folder: Path) -> None:
        self.config, self.runtime, self.folder = config, runtime, folder
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
        trainer = config.trainer
        self.images = TrainingImages(self.train_images, data, trainer.batch_size, trainer.seed)
        self.parts = parts_of_batch(trainer.batch_size, trainer.accumulate)
        self.batches = Prefetcher(self.images, self.parts, data.workers)
        self.lengths = prefix_grid(self.tokenizer.quantizer.cuts)

    @abstractmethod
    def start(self) -> None: ...

    @abstractmethod
    def loss(self, step: int, part: slice) -> dict[str, Tensor]: ...

    @abstractmethod
    def after_step(self, step: int, finite: Tensor) -> None: ...

    @abstractmethod
    def score(self, found: Mapping[str, Sequence[float]]) -> float:
        """What decides which step is kept, of figures as ``measure`` gives; lower is better."""

    @abstractmethod
    def learned(self) -> dict[str, Any]:
        """Everything that training changes."""

    @abstractmethod
    def load_learned(self, state: dict[str, Any]) -> None: ...

    def keys(self, step: int) -> list[str]:
        return [self.train_images.keys[index] for index in self.images.order(step).tolist()]

    def partial_latents(self, images: Tensor, lengths: Tensor) -> Tensor:
        """f_k of images (B, 3, H, W), at a length k each, 0 for none: float32 (B, D)."""
        quantizer = self.tokenizer.quantizer
        with torch.no_grad(), torch.autocast(images.device.type, enabled=False):
            latents = self.tokenizer.latents(images)
            described = quantizer.describe_by(latents, quantizer.encode(latents))
            partial = described.prefix(lengths.clamp_min(quantizer.cuts[0]))
            return torch.where(lengths.unsqueeze(1) > 0, partial, 0)

    def command_after(self, *tokenizer: str) -> str:
        """What to run when it is trained; told ``tokenizer=...`` where that is not the default."""
        return next_command("stage2_prior.train", *tokenizer)

    def measure(self, dataset: ImageDataset, decoder: str, limit: int) -> dict[str, list[float]]:
        """Means over held-out images at each prefix length: squared error and PSNR."""

        def compare(originals: Tensor) -> Tensor:
            images = to_float(originals).to(self.runtime.device)
            rows = [
                torch.stack(errors(pictures, images, originals), dim=1)
                for pictures in self.pictures(images, decoder)
            ]
            return torch.stack(rows, dim=1)

        indices = evenly_spaced_indices(dataset, min(limit, len(dataset)))
        figures = map_images(dataset, indices, compare)  # (n, lengths, 2)
        return dict(zip(("mse", "psnr"), figures.double().mean(0).T.tolist(), strict=True))

    def pictures(self, images: Tensor, decoder: str) -> Iterator[Tensor]:
        """What a decoder makes of images (B, 3, H, W), at each of the lengths."""
        codes = self.tokenizer.encode(images)
        for k in self.lengths:
            yield self.tokenizer.decode(codes[:, :k], decoder)

    def evaluate(self, step: int) -> Evaluation:
        found = self.measure(self.val_images, self.name, EVALUATED_IMAGES)
        self.draw_grid(step)
        text = " | ".join(
            f"val {name} "
            + " ".join(f"{k}:{v:.{d}f}" for k, v in zip(self.lengths, found[name], strict=True))
            for name, d in self.watched.items()
        )
        scalars = {
            f"val_{name}_{k}": value
            for name in self.watched
            for k, value in zip(self.lengths, found[name], strict=True)
        }
        return Evaluation(self.score(found), text, scalars)

    def draw_grid(self, step: int) -> None:
        (self.folder / "grids").mkdir(exist_ok=True)
        path = self.folder / "grids" / f"step-{step:08d}.png"
        images = evenly_spaced(self.val_images, GRID_IMAGES)
        decoded = reconstruct(self.tokenizer, images, self.lengths, self.name)
        save_prefix_grid(path, self.tokenizer, images, self.lengths, decoded)

    def save_model(self) -> None:
        decoders = dict(self.tokenizer.provenance.get("decoders", {}))
        if self.trained_with:
            decoders[self.name] = {"trained_with": self.trained_with}
        provenance = {**self.tokenizer.provenance, "decoders": decoders}
        self.tokenizer.save_pretrained(self.folder / "model", provenance)

    def state_dict(self) -> dict[str, Any]:
        return {
            **self.learned(),
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
        self.load_learned(state)


def errors(pictures: Tensor, images: Tensor, originals: Tensor) -> tuple[Tensor, Tensor]:
    """Squared error and PSNR of each picture: (B,), (B,).

    Args:
        pictures: float32 (B, 3, H, W).
        images: What they should be.
        originals: The same, uint8, on the CPU.
    """
    squares = (pictures - images).square().flatten(1).mean(1)
    return squares, psnr(to_uint8(pictures).cpu(), originals).to(squares)


def report(task: DecoderTask[Any, Any], trained: dict[str, float]) -> dict[str, Any]:
    """The final figures of the kept decoder, and of the faithful one, on the test split."""
    task.tokenizer = Tokenizer.from_pretrained(task.folder / "model").to(task.runtime.device)
    test = task.test_images
    images = evenly_spaced(test, GRID_IMAGES)
    decoded = reconstruct(task.tokenizer, images, task.lengths, task.name)
    path = task.folder / "prefixes.png"
    save_prefix_grid(path, task.tokenizer, images, task.lengths, decoded)
    return {
        **{name: task.measure(test, name, REPORTED_IMAGES) for name in (task.name, FAITHFUL)},
        "prefix_lengths": task.lengths,
        "split": test.name,
        "images": min(REPORTED_IMAGES, len(test)),
        **task.facts,
        "steps": trained["steps"],
        "seconds": round(trained["seconds"], 1),
        "parameters": sum(p.numel() for p in task.tokenizer.decoder(task.name).parameters()),
        "codes_hash": task.tokenizer.codes_hash,
        "machine": machine(),
        "versions": versions(),
    }


def finish(task: DecoderTask[Any, Any], trained: dict[str, float]) -> None:
    """Measure, write ``result.json``, put the decoder beside the tokenizer's others."""
    result = report(task, trained)
    write_json(task.folder / "result.json", result)
    model = model_folder(Path(task.config.tokenizer))
    task.tokenizer.save_pretrained(model)
    say(f"took {format_seconds(result['seconds'])}")
    called = " / ".join(words for words, _ in task.shown.values())
    for name in (task.name, FAITHFUL):
        columns = [[f"{v:.{d}f}" for v in result[name][key]] for key, (_, d) in task.shown.items()]
        rows = zip(task.lengths, zip(*columns, strict=True), strict=True)
        text = "  ".join(f"{k}:{'/'.join(row)}" for k, row in rows)
        print(f"test {called} by prefix length, {name}  {text}")
    again = (
        []
        if task.config.tokenizer == DecoderRunConfig().tokenizer
        else [f"tokenizer={model.parent}"]
    )
    print(
        f"gave {model} its decoder {task.name!r}; look at {task.folder}/prefixes.png, "
        f"then: {task.command_after(*again)}"
    )
