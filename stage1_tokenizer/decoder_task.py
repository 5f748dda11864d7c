"""What training another decoder of a tokenizer is, for the training loop: all but its objective."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Generic, TypeVar

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
from pqvae.images import psnr, to_float, to_levels, to_uint8
from pqvae.pretrained import model_folder, recorded_data
from pqvae.runtime import Runtime, machine, versions
from pqvae.training.task import Evaluation
from stage1_tokenizer.decoder_config import COMPARED, DecoderRunConfig
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
        network: The feature network that it is trained with.
        lengths: Prefix lengths at which it is measured.
    """

    name: str
    decoder: D
    network: lite0.Lite0
    model: nn.Module
    networks: Sequence[nn.Module]
    curves: Mapping[str, Sequence[str]]

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

    def measure(self, dataset: ImageDataset, decoder: str, limit: int) -> dict[str, list[float]]:
        """Figures of held-out images at each prefix length.

        They are means of distance, squared error and PSNR, and the kernel distance of all pictures
        from all originals.
        """

        def features(images: Tensor) -> tuple[list[Tensor], Tensor]:
            layers = lite0.enlarged_layers(self.network, to_levels(images))
            return lite0.unit_lengths(layers, COMPARED), self.network.pooled(layers[-1])

        def compare(originals: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            images = to_float(originals).to(self.runtime.device)
            codes = self.tokenizer.encode(images)
            wanted, real = features(images)
            rows, made = [], []
            for k in self.lengths:
                pictures = self.tokenizer.decode(codes[:, :k], decoder)
                errors = (pictures - images).square().flatten(1).mean(1)
                levels = psnr(to_uint8(pictures).cpu(), originals).to(errors)
                found, pooled = features(pictures)
                rows.append(torch.stack([lite0.layers_distance(found, wanted), errors, levels], 1))
                made.append(pooled)
            return torch.stack(rows, dim=1), torch.stack(made, dim=1), real

        indices = evenly_spaced_indices(dataset, min(limit, len(dataset)))
        figures, made, real = map_images(dataset, indices, compare)  # (n, lengths, 3) ...
        means = figures.double().mean(0).T.tolist()
        kernel = [kernel_distance(made[:, place], real) for place in range(len(self.lengths))]
        return dict(zip(("distance", "mse", "psnr", "kernel"), [*means, kernel], strict=True))

    def evaluate(self, step: int) -> Evaluation:
        found = self.measure(self.val_images, self.name, EVALUATED_IMAGES)
        self.draw_grid(step)
        pairs = [("kernel", "4"), ("distance", "4"), ("psnr", "2")]
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
        return Evaluation(self.score(found), text, scalars)

    def draw_grid(self, step: int) -> None:
        (self.folder / "grids").mkdir(exist_ok=True)
        path = self.folder / "grids" / f"step-{step:08d}.png"
        images = evenly_spaced(self.val_images, GRID_IMAGES)
        decoded = reconstruct(self.tokenizer, images, self.lengths, self.name)
        save_prefix_grid(path, self.tokenizer, images, self.lengths, decoded)

    def save_model(self) -> None:
        trained_with = {"trained_with": "efficientnet-lite0, trained on the labels of ImageNet"}
        decoders = {**self.tokenizer.provenance.get("decoders", {}), self.name: trained_with}
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


def kernel_distance(made: Tensor, real: Tensor) -> float:
    """The squared distance of two sets' features, (n, F) and (m, F); about 0 where they are alike.

    The unbiased estimate by the cubic kernel, as in KID (Bińkowski et al., 2018).
    """

    def inside(one: Tensor) -> Tensor:
        kernel, n = _kernel(one, one), len(one)
        return (kernel.sum() - kernel.trace()) / max(n * (n - 1), 1)

    made, real = made.double(), real.double()
    return float(inside(made) + inside(real) - 2 * _kernel(made, real).mean())


def _kernel(first: Tensor, second: Tensor) -> Tensor:
    return (first @ second.T / first.shape[1] + 1) ** 3


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
        "distance_by": f"{lite0.PACKAGE} {lite0.PACKAGE_VERSION}, the network trained with",
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
    for name in (task.name, FAITHFUL):
        pairs = zip(task.lengths, result[name]["distance"], result[name]["psnr"], strict=True)
        text = "  ".join(f"{k}:{d:.4f}/{p:.2f}" for k, d, p in pairs)
        print(f"test distance / PSNR in dB by prefix length, {name}  {text}")
    again = (
        []
        if task.config.tokenizer == DecoderRunConfig().tokenizer
        else [f"tokenizer={model.parent}"]
    )
    print(
        f"gave {model} its decoder {task.name!r}; look at {task.folder}/prefixes.png, "
        f"then: {next_command('stage2_prior.train', *again)}"
    )
