"""Stage 2 for the training loop: the root config, the task, the final report."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pqvae.cli import next_command
from pqvae.console import format_seconds, say
from pqvae.data.batches import Augmentation, BatchOrder
from pqvae.data.dataset import ImageDataset, open_splits
from pqvae.data.sample import Split
from pqvae.data.summary import say_splits
from pqvae.errors import UserError
from pqvae.files import write_json
from pqvae.images import save_grid, to_uint8
from pqvae.plots import NO_PLOT, Panel, save_plot
from pqvae.pretrained import provenance_of, recorded_data
from pqvae.randomness import Stream, stream_generator
from pqvae.runtime import Runtime, machine, versions
from pqvae.training.run import run_stage
from pqvae.training.task import Evaluation
from stage1_tokenizer.provenance import check_data, open_tokenizer
from stage2_prior.books import Codebooks
from stage2_prior.codes import EncodedDataset, encode_dataset, unigram_bits
from stage2_prior.config import Config
from stage2_prior.drawing import class_labels, draw_codes, nucleus
from stage2_prior.prior import Prior
from stage2_prior.provenance import labels_to_decode
from stage2_prior.unroll import unroll

GRID_SAMPLES = 64
# By the second name where the prior knows classes, but the images of val have none.
VAL_BITS = ("val_bits_per_code", "val_bits_per_code_without_class")
PREFIX_BITS = "val_bits_per_code_of_prefix"  # where only a prefix is trained on
CURVES = {"bits per code": ["loss", *VAL_BITS, PREFIX_BITS]}
GRID_TOP_P = 0.95


class PriorTask:
    """Stage 2 for the training loop."""

    def __init__(self, config: Config, runtime: Runtime, folder: Path) -> None:
        self.runtime, self.folder = runtime, folder
        self.tokenizer = open_tokenizer(config.tokenizer).to(runtime.device)
        data = recorded_data(
            self.tokenizer.provenance, config.tokenizer, config.data.path, "data.path=..."
        )
        splits = open_splits(data)
        say_splits(splits)
        train_images, val_images, self.test_images = splits.values()
        check_data(self.tokenizer, config.tokenizer, data.path, train_images)
        self.train_images, self.val_images = train_images, val_images
        self.provenance = {
            **provenance_of(data, train_images.content_hash),
            "tokenizer": config.tokenizer,
            "codes_hash": self.tokenizer.codes_hash,
            **({"prefix": config.prefix} if config.prefix else {}),
        }
        self.augmentation = Augmentation(train_images, data)
        torch.manual_seed(config.trainer.seed)
        labels = train_images.labels if config.class_conditional else None
        self.config = config = replace(config, class_conditional=labels is not None)
        check_classes(config, splits)
        if config.prefix:
            self.tokenizer.quantizer.check_cut(config.prefix, f"prefix={config.prefix}")
        class_names = train_images.class_names if labels is not None else ()
        counts = torch.bincount(labels, minlength=len(class_names)) if labels is not None else None
        self.prior = Prior(
            config.prior,
            Codebooks.of(self.tokenizer.quantizer),
            class_names,
            tuple(counts.tolist()) if counts is not None else (),
        ).to(runtime.device)
        self.prior.set_code_features(self.tokenizer.quantizer)
        self.model: nn.Module = self.prior
        self.networks: Sequence[nn.Module] = (self.prior.layers,)
        self.curves: Mapping[str, Sequence[str]] = CURVES
        self.order = BatchOrder(len(train_images), config.trainer.batch_size, config.trainer.seed)

    def encode_splits(self) -> None:
        """Encode what is trained on, into the run folder; call it before the training."""
        self.train_codes = self.encode(self.train_images, self.augmentation, self.config.views)
        self.val_codes = self.encode(self.val_images, None, 1)

    def encode_test(self) -> None:
        """Encode what is reported on; call it after the training."""
        self.test_codes = self.encode(self.test_images, None, 1)

    def encode(
        self, dataset: ImageDataset, augmentation: Augmentation | None, views: int
    ) -> EncodedDataset:
        folder, seed = self.folder / "codes", self.config.trainer.seed
        return encode_dataset(self.tokenizer, dataset, augmentation, views, seed, folder)

    def start(self) -> None:
        self.prior.init_from_codes(self.train_codes.codes.flatten(0, 1))

    def loss(self, step: int, part: slice) -> dict[str, Tensor]:
        indices = self.order(step)
        generator = stream_generator(self.config.trainer.seed, Stream.VIEW_CHOICE, step)
        views = torch.randint(self.config.views, (len(indices),), generator=generator)
        dropped = torch.rand(len(indices), generator=generator) < self.config.prior.label_dropout
        codes = self.train_codes.codes[views[part], indices[part]].long()
        labels = self.labels(self.train_codes, indices[part])
        if labels is not None:
            unlabelled = dropped[part].to(labels.device)
            labels = labels.masked_fill(unlabelled, len(self.prior.class_names))
        codes = codes[:, : self.config.prefix or None]
        return {"loss": self.prior.bits(codes.to(self.runtime.device), labels).mean()}

    def after_step(self, step: int, finite: Tensor) -> None:
        """Everything learns by gradient here."""

    def keys(self, step: int) -> list[str]:
        return [self.train_images.keys[index] for index in self.order(step).tolist()]

    def labels(self, encoded: EncodedDataset, indices: Tensor) -> Tensor | None:
        if not self.prior.class_names or encoded.labels is None:
            return None
        return encoded.labels[indices].to(self.runtime.device)

    def lacks_classes(self, encoded: EncodedDataset) -> bool:
        """Whether the prior knows classes, but these images have none: their bits are without."""
        return bool(self.prior.class_names) and encoded.labels is None

    def bits_per_code(self, prior: Prior, encoded: EncodedDataset) -> Tensor:
        """Mean bits of each position over the unaugmented images of a split: float64 (N,)."""
        chunks = torch.arange(encoded.codes.shape[1]).split(256)
        device = self.runtime.device
        bits = [
            prior.bits(encoded.codes[0, chunk].long().to(device), self.labels(encoded, chunk)).cpu()
            for chunk in chunks
        ]
        return torch.cat(bits).double().mean(0)

    def evaluate(self, step: int) -> Evaluation:
        bits = self.bits_per_code(self.prior, self.val_codes)
        mean, first = float(bits.mean()), bits[: self.config.prefix or None]
        self.draw_grid(step)
        shown = [0, 1, 3, 7, 15, 31, 63, 127]
        text = " ".join(f"{i + 1}:{bits[i]:.2f}" for i in shown if i < len(bits))
        name = VAL_BITS[self.lacks_classes(self.val_codes)]
        scalars = {name: mean, name.replace("code", "image", 1): float(bits.sum())}
        text = f"{name.replace('_', ' ')} {mean:.3f} (position {text})"
        if len(first) < len(bits):
            scalars[PREFIX_BITS] = float(first.mean())
            text += f", of the first {len(first)} {float(first.mean()):.3f}"
        return Evaluation(float(first.mean()), text, scalars)

    def draw_grid(self, step: int) -> None:
        """Samples of seed 0, sorted by class; the same noise at every step of the training."""
        indices = torch.arange(GRID_SAMPLES)
        counts = self.prior.class_counts
        labels = torch.full_like(indices, self.prior.no_class)
        if counts:
            labels = class_labels(0, indices, counts).sort().values

        sequence = self.prior.sequence

        def choose(step: int, logits: Tensor) -> Tensor:
            probabilities = nucleus(logits.softmax(dim=-1), GRID_TOP_P)
            return draw_codes(probabilities, 0, indices, sequence.steps[step])

        known = self.config.prefix or self.tokenizer.num_codes
        codes = unroll(self.prior, labels, sequence.steps_for(known), choose)[:, :known]
        (self.folder / "grids").mkdir(exist_ok=True)
        decoder = self.tokenizer.decoder_to_see
        told = labels_to_decode(self.prior, self.tokenizer, decoder, labels)
        images = to_uint8(self.tokenizer.decode(codes, decoder, labels=told)).cpu()
        save_grid(self.folder / "grids" / f"step-{step:08d}.png", images, columns=16)

    def save_model(self) -> None:
        self.prior.save_pretrained(self.folder / "model", self.provenance)

    def state_dict(self) -> dict[str, Any]:
        hashes = {key: self.provenance[key] for key in ("codes_hash", "data_hash")}
        return {"prior": self.prior.state_dict(), **hashes}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if "codes_hash" not in state:
            raise UserError(
                f"{self.folder}: an older version of this program began this run, which cannot be "
                "resumed; its model can be sampled and scored; choose another folder (out=...)"
            )
        before, now = state["codes_hash"], self.tokenizer.codes_hash
        if before != now:
            raise UserError(
                f"{self.folder} was trained on tokenizer {before[:8]}, but {self.config.tokenizer} "
                f"is {now[:8]}; choose another folder (out=...) or remove it"
            )
        if not self.train_images.matches(state["data_hash"]):
            raise UserError(
                f"{self.folder}: the training images are not those that this run began with; "
                "restore them, or choose another folder (out=...)"
            )
        self.prior.load_state_dict(state["prior"])


def check_classes(config: Config, splits: Mapping[Split, ImageDataset]) -> None:
    """Check that a prior of classes can be judged by held-out images that have none.

    Raises:
        UserError: It would never have been trained without a class.
    """
    lacking = [images.name for images in splits.values() if images.labels is None]
    if config.class_conditional and lacking and config.prior.label_dropout == 0:
        raise UserError(
            f"{lacking[0]}: no classes, but train has some; put the images into class folders, or "
            "set prior.label_dropout above 0, or class_conditional=false"
        )


@torch.inference_mode()
def report(
    task: PriorTask, test_codes: EncodedDataset, trained: dict[str, float]
) -> dict[str, Any]:
    """The final figures of the kept model: bits on each split, by position."""
    prior = Prior.from_pretrained(task.folder / "model").to(task.runtime.device)
    test = task.bits_per_code(prior, test_codes)
    on_val, on_train = (
        task.bits_per_code(prior, codes) for codes in (task.val_codes, task.train_codes)
    )
    every_view = task.train_codes.codes.flatten(0, 1)
    unigram = unigram_bits(every_view, test_codes.codes[0].long(), task.prior.sizes)

    def figures(bits: Tensor, labels: Tensor | None = None) -> dict[str, Any]:
        return {
            "class_conditional": bool(prior.class_names) and labels is not None,
            "bits_per_image": round(float(bits.sum()), 2),
            "mean_bits_per_code": round(float(bits.mean()), 4),
            "bits_per_code": [round(value, 3) for value in bits.tolist()],
        }

    return {
        "test": figures(test, test_codes.labels),
        "val": figures(on_val, task.val_codes.labels),
        "train": figures(on_train, task.train_codes.labels),
        "test_unigram": figures(unigram),
        "fixed_length_bits_per_image": sum(task.tokenizer.quantizer.bits),
        "test_images": test_codes.codes.shape[1],
        "class_conditional": bool(prior.class_names),
        "steps": trained["steps"],
        "sequences_seen": trained["steps"] * task.config.trainer.batch_size,
        "seconds": round(trained["seconds"], 1),
        "parameters": sum(parameter.numel() for parameter in prior.parameters()),
        "content_hash": prior.content_hash,
        "codes_hash": prior.provenance["codes_hash"],
        "machine": machine(),
        "versions": versions(),
    }


def bits_by_position(result: Mapping[str, Any], task: PriorTask) -> Panel:
    """What each position costs on each split, beside the unigram model and a fixed length."""
    names = {"test": "test", "val": "val", "train": "train", "test_unigram": "unigram model, test"}
    curves = {label: result[split]["bits_per_code"] for split, label in names.items()}
    curves["fixed length, log2 K"] = task.tokenizer.quantizer.bits
    places = range(1, len(task.prior.sizes) + 1)
    lines = {label: (places, bits) for label, bits in curves.items()}
    return Panel("bits of each code", "code", lines)


def run(config: Config) -> None:
    """Train as the config says, or resume, and write ``result.json``."""
    run_stage(
        config, PriorTask, finish, before=PriorTask.encode_splits, after=PriorTask.encode_test
    )


def finish(task: PriorTask, trained: dict[str, float]) -> None:
    """Measure the kept model, write ``result.json``, and say what to do next."""
    folder, out = task.folder, str(task.folder)  # without a last slash
    test_codes = task.test_codes
    result = report(task, test_codes, trained)
    write_json(folder / "result.json", result)
    drawn = save_plot(folder / "bits.png", [bits_by_position(result, task)])
    if not drawn:
        say(NO_PLOT)
    say(f"took {format_seconds(result['seconds'])}")
    bits = {name: result[name]["mean_bits_per_code"] for name in ("test", "train", "test_unigram")}
    lacking = " without class" if task.lacks_classes(test_codes) else ""
    print(
        f"bits per code: test {bits['test']:.3f}{lacking} (unigram model "
        f"{bits['test_unigram']:.3f}), train {bits['train']:.3f}{' given class' if lacking else ''}"
    )
    again = [] if out == Config().out else ["--prior", out]
    print(
        f"made {folder}/model; look at {folder}/grids{f', {folder}/bits.png' * drawn}, then: "
        f"{next_command('sampling.generate', '--n', '10000', *again)}"
    )
