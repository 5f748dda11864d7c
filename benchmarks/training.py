"""Where the time of a stage-1 training step goes, in images a second by part, in one run.

    python benchmarks/training.py [config.yaml] [key=value ...]

Without arguments: the defaults on the built-in emoji, a batch of 64 at 32x32. Each figure is the
median over rounds in which all parts are measured one after the other, so that a machine whose
speed moves slows all of them alike. Then the quantizer's training step against ``ResidualVQ`` of
vector-quantize-pytorch (``pip install 'pqvae[baselines]'``), on the same latents.
"""

import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor

import pqvae.data.dataset as dataset_module
from pqvae.config import load_config, parse_config_arguments
from pqvae.console import say
from pqvae.data.batches import TrainingImages
from pqvae.data.dataset import open_dataset
from pqvae.randomness import generator_for
from pqvae.runtime import machine, select_runtime
from pqvae.training.optim import adamw
from stage1_tokenizer.config import Config, ResidualConfig
from stage1_tokenizer.quantizers.residual import ResidualQuantizer
from stage1_tokenizer.task import TokenizerTask

T = TypeVar("T")

ROUNDS = 15


class Clock:
    """Seconds of each part, in every round."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.seconds: dict[str, list[float]] = {}

    def measure(self, part: str, function: Callable[..., T], *arguments: object) -> T:
        """Call the function, note how long it took, and return its result."""
        self._wait()
        start = time.perf_counter()
        result = function(*arguments)
        self._wait()
        self.seconds.setdefault(part, []).append(time.perf_counter() - start)
        return result

    def median(self, part: str) -> float:
        return statistics.median(self.seconds[part][2:])  # without what is only slow once

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()


def step_by_part(config: Config) -> None:
    """Take the step of ``pqvae.training.loop`` apart."""
    runtime = select_runtime(config.device)
    clock = Clock(runtime.device)
    task = TokenizerTask(config, runtime, Path(tempfile.gettempdir()))
    task.start()
    tokenizer, quantizer = task.tokenizer, task.tokenizer.quantizer
    optimizer = adamw(
        tokenizer, config.trainer.weight_decay, (config.trainer.beta1, config.trainer.beta2)
    )
    B, finite = config.trainer.batch_size, torch.tensor(True, device=runtime.device)
    for step in range(ROUNDS + 2):
        images = clock.measure("load", task.images, step)
        images = images.to(runtime.device)
        with runtime.autocast():
            encoded = clock.measure("encode", tokenizer.encoder, images)
            latents = quantizer.normalize(encoded)
            generator = generator_for(step)
            description = clock.measure("quantize", quantizer.describe, latents, 0.5, generator)
            lengths = torch.full((B,), tokenizer.num_codes, device=runtime.device)
            f_N = description.prefix(lengths)
            decoded = clock.measure("decode", tokenizer.decoder(), f_N, lengths)
        loss = (decoded.float() - images).square().mean()
        optimizer.zero_grad(set_to_none=True)
        clock.measure("backward", loss.backward)
        clock.measure("optimizer", optimizer.step)
        clock.measure("codebooks", quantizer.learn, description, step, 0.5, finite, generator)
    parts = list(clock.seconds)
    total = sum(clock.median(part) for part in parts)
    print(f"stage 1, batch {B}, {tokenizer.num_codes} codes, on {machine()}")
    print(f"{'part':<10} {'ms/step':>8} {'img/s':>9} {'share':>6}")
    for part in parts:
        seconds = clock.median(part)
        print(f"{part:<10} {1e3 * seconds:8.1f} {B / seconds:9,.0f} {seconds / total:6.1%}")
    print(f"{'sum':<10} {1e3 * total:8.1f} {B / total:9,.0f} {1:6.1%}")
    quantizing = clock.median("quantize") + clock.median("codebooks")
    print(f"quantizer (quantize + codebooks): {quantizing / total:.1%} of the step")


def loading(config: Config) -> None:
    """The loader alone: from memory, and decoding each image when it is asked for."""
    B, rates = config.trainer.batch_size, []
    kept = dataset_module.IN_MEMORY_BYTES
    for budget in (kept, 0):
        dataset_module.IN_MEMORY_BYTES = budget
        images = TrainingImages(open_dataset(config.data, "train"), config.data, B, seed=0)
        clock = Clock(torch.device("cpu"))
        for step in range(ROUNDS + 2):
            clock.measure("load", images, step)
        rates.append(B / clock.median("load"))
    dataset_module.IN_MEMORY_BYTES = kept
    print(f"loader alone: {rates[0]:,.0f} img/s from memory, {rates[1]:,.0f} img/s decoding")


def against_residual_vq(num_codes: int, B: int = 64, D: int = 1024, K: int = 256) -> None:
    """One training step of the quantizer, choice and moving averages, side by side."""
    try:
        from vector_quantize_pytorch import ResidualVQ  # type: ignore[missing-import]
    except ImportError:
        say("ResidualVQ: skipped; pip install 'pqvae[baselines]' for it")
        return
    # Correlated latents, as an encoder's are; both start from the data.
    mixing = torch.randn(D, D, generator=generator_for(0)) / D**0.5
    data = torch.randn(4096, D, generator=generator_for(1)) @ mixing
    theirs = ResidualVQ(
        dim=D, codebook_size=K, num_quantizers=num_codes, decay=0.99, kmeans_init=True
    ).train()
    config = ResidualConfig(num_codes=num_codes, codebook_sizes=(K,))
    quantizer, finite = ResidualQuantizer(config, (D, 1, 1)), torch.tensor(True)
    quantizer.start(data, generator_for(2))
    theirs(data[:1024].unsqueeze(1))

    def ours(latents: Tensor) -> None:
        description = quantizer.describe(latents, 0.5, generator_for(0))
        quantizer.learn(description, 0, 0.5, finite, generator_for(0))

    clock = Clock(torch.device("cpu"))
    for round_ in range(ROUNDS + 2):
        start = B * round_ % len(data)
        latents = quantizer.normalize(data[start : start + B])
        clock.measure("theirs", theirs, latents.unsqueeze(1))
        clock.measure("ours", ours, latents)
    ours_ms, theirs_ms = 1e3 * clock.median("ours"), 1e3 * clock.median("theirs")
    print(
        f"quantizer training step ({B}, {D}), K={K}, N={num_codes}: ours {ours_ms:.1f} ms, "
        f"ResidualVQ {theirs_ms:.1f} ms, {theirs_ms / ours_ms:.1f} times as long"
    )


def main() -> None:
    config = load_config(Config, *parse_config_arguments(sys.argv[1:]))
    step_by_part(config)
    loading(config)
    for num_codes in (32, 72):
        against_residual_vq(num_codes)


if __name__ == "__main__":
    main()
