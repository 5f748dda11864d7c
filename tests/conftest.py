"""What the tests share: synthetic images, one tiny trained tokenizer, one tiny run folder."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import Tensor

from pqvae.images import encode_png, to_uint8
from pqvae.randomness import generator_for
from pqvae.training.optim import adamw
from stage1_tokenizer import train
from stage1_tokenizer.config import (
    ArchitectureConfig,
    ObjectiveConfig,
    ResidualConfig,
    TokenizerConfig,
)
from stage1_tokenizer.objective import draw_prefix_lengths, prefix_loss
from stage1_tokenizer.tokenizer import Tokenizer

# Tensors here are so small that threads cost more than they give: many times the run time where
# another program keeps a core busy.
torch.set_num_threads(1)

BlobImages = Callable[[int, int, int], Tensor]

SIZE = 16  # pixels
CLASSES = ("circles", "squares", "stripes")
IMAGES_PER_CLASS = {"train": 22, "val": 4, "test": 4}


@dataclass(frozen=True)
class TinyRun:
    tokenizer: Path  # the run folder that `stage1_tokenizer.train` made
    data: Path  # train/, val/ and test/ with the classes circles, squares and stripes: 90 PNGs


@pytest.fixture(scope="session", autouse=True)
def cache_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """An empty cache folder, so that no test reads or writes the user's own."""
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder))
        yield folder


def draw_blobs(n: int, size: int, seed: int) -> Tensor:
    """Smooth pictures: a colour gradient behind two soft blobs; float (n, 3, size, size), [-1, 1].

    The same seed gives the same pictures, and more of them begin with the same ones.
    """
    line = torch.linspace(-1, 1, size)
    y, x = line[:, None], line[None, :]
    pictures = []
    for index in range(n):
        generator = generator_for(seed, index)
        colours = torch.rand(4, 3, 1, 1, generator=generator) * 2 - 1
        picture = colours[0] * x + colours[1] * y
        for colour in colours[2:]:
            centre_y, centre_x, radius = torch.rand(3, generator=generator).tolist()
            distance = (y - 2 * centre_y + 1) ** 2 + (x - 2 * centre_x + 1) ** 2
            share = torch.exp(-distance / (0.1 + 0.3 * radius))
            picture = picture * (1 - share) + colour * share
        pictures.append(picture.clamp(-1, 1))
    return torch.stack(pictures)


@pytest.fixture(scope="session")
def blob_images() -> BlobImages:
    """``blob_images(n, size, seed)``: see ``draw_blobs``."""
    return draw_blobs


@pytest.fixture(scope="session")
def tiny_tokenizer() -> Tokenizer:
    """A tokenizer of 16x16 blobs with codebooks of mixed sizes, really trained. Do not change it.

    It has never seen the blobs of seeds other than 0.
    """
    torch.manual_seed(0)
    tokenizer = Tokenizer(
        TokenizerConfig(
            image_size=SIZE,
            architecture=ArchitectureConfig(
                widths=(16, 32), encoder_blocks=(0, 1), decoder_blocks=(0, 1), latent_channels=4
            ),
            quantizer=ResidualConfig(num_codes=6, codebook_sizes=(16, 16, 8, 32, 16, 16)),
        )
    )
    steps, images = 60, draw_blobs(512, SIZE, 0)
    quantizer, finite = tokenizer.quantizer, torch.tensor(True)
    optimizer = adamw(tokenizer, weight_decay=0.0, betas=(0.9, 0.99))
    tokenizer.init_from_images(images)
    with torch.no_grad():
        quantizer.start(tokenizer.encoder(images), generator_for(0))
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = 2e-3 * (1 - step / steps)
        generator = generator_for(0, step)
        batch = images[torch.randint(len(images), (32,), generator=generator)]
        lengths = draw_prefix_lengths(len(batch), quantizer.cuts, 0.5, generator)
        description = quantizer.describe(tokenizer.latents(batch), step / steps, generator)
        losses = prefix_loss(tokenizer, ObjectiveConfig(), description, batch, lengths)
        optimizer.zero_grad()
        losses["loss"].backward()
        optimizer.step()
        quantizer.learn(description, step, step / steps, finite, generator)
    return tokenizer.eval()


def draw_class(name: str, seed: int) -> Tensor:
    """A picture that its class can be told from: uint8 (3, SIZE, SIZE)."""
    generator = generator_for(seed, CLASSES.index(name))
    ink, paper = torch.rand(2, 3, 1, 1, generator=generator) * 2 - 1
    centre_y, centre_x, radius = torch.rand(3, generator=generator).tolist()
    line = torch.arange(SIZE).float()
    y, x = line[:, None] - 5 - 5 * centre_y, line[None, :] - 5 - 5 * centre_x
    radius = 3 + 3 * radius
    inside = {
        "circles": (y**2 + x**2 < radius**2),
        "squares": (y.abs() < radius) & (x.abs() < radius),
        "stripes": (torch.sin(y * 2 / (radius - 1)) > 0).expand(SIZE, SIZE),
    }[name]
    return to_uint8(torch.where(inside, ink, paper))


@pytest.fixture(scope="session")
def tiny_run(tmp_path_factory: pytest.TempPathFactory) -> TinyRun:
    """A run folder and its data, made by the real training command. Do not change either."""
    base = tmp_path_factory.mktemp("tiny")
    for split_index, (split, count) in enumerate(IMAGES_PER_CLASS.items()):
        for name in CLASSES:
            folder = base / "data" / split / name
            folder.mkdir(parents=True)
            for index in range(count):
                png = encode_png(draw_class(name, 1000 * split_index + index))
                (folder / f"{index:02d}.png").write_bytes(png)
    out = base / "tokenizer"
    code = train.main(
        [
            f"out={out}",
            "device=cpu",
            f"data.path={base / 'data'}",
            f"data.image_size={SIZE}",
            "data.shift=1",
            "architecture.widths=16,32",
            "architecture.encoder_blocks=0,1",
            "architecture.decoder_blocks=0,1",
            "architecture.latent_channels=4",
            "quantizer.num_codes=6",
            "quantizer.codebook_sizes=16",
            "trainer.steps=30",
            "trainer.batch_size=32",
            "trainer.learning_rate=2e-3",
            "trainer.evaluate_every=15",
        ]
    )
    assert code == 0
    return TinyRun(tokenizer=out, data=base / "data")


class Process:
    """``python ARGUMENTS`` in a process of its own, as a user starts it."""

    LIMIT = 150  # seconds; far more than anything here needs, as a hang must fail and not block

    def __init__(self, folder: Path, arguments: tuple[str, ...], extra: Mapping[str, str]) -> None:
        root, name = Path(__file__).parents[1], f"{time.monotonic_ns()}"
        self.stdout, self.stderr = folder / f"{name}.out", folder / f"{name}.err"
        environment = {**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1", **extra}
        with open(self.stdout, "wb") as out, open(self.stderr, "wb") as error:
            self._process = subprocess.Popen(
                [sys.executable, *arguments],
                cwd=folder,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=error,
                start_new_session=True,
            )
        self._ends = time.monotonic() + self.LIMIT

    def told(self) -> str:
        """What it has written to stderr so far."""
        return self.stderr.read_text()

    def wait_until(self, happened: Callable[[], bool]) -> None:
        """Return as soon as this is so; the process must not end before."""
        while not happened():
            assert self._process.poll() is None, f"ended too early:\n{self.told()}"
            assert time.monotonic() < self._ends, f"hangs:\n{self.told()}"
            time.sleep(0.002)

    def wait_for(self, text: str) -> None:
        """Return as soon as it has written this to stderr."""
        self.wait_until(lambda: text in self.told())

    def send(self, number: signal.Signals) -> None:
        assert self._process.poll() is None, f"ended too early:\n{self.told()}"
        self._process.send_signal(number)

    def end(self) -> int:
        """Wait for the end; the exit code, as a shell gives it."""
        try:
            code = self._process.wait(max(1.0, self._ends - time.monotonic()))
        except subprocess.TimeoutExpired:
            pytest.fail(f"hangs:\n{self.told()}")
        return code if code >= 0 else 128 - code

    def succeed(self) -> None:
        code = self.end()
        assert code == 0, self.told()
        assert "Traceback" not in self.told()
        assert "Warning" not in self.told()

    def refusal(self) -> str:
        """Wait for the end; its one line of bad input, without "error: "."""
        assert self.end() == 2, self.told()
        assert "Traceback" not in self.told()
        errors = [line for line in self.told().splitlines() if line.startswith("error: ")]
        assert len(errors) == 1, self.told()
        return errors[0].removeprefix("error: ")

    def clear(self) -> None:
        """End what is left of it."""
        if self._process.poll() is None:
            self._process.terminate()  # torchrun passes it on to its processes
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(45)  # it kills them after 30 seconds
        if self._process.poll() is None:
            self._process.kill()
            self._process.wait()


Start = Callable[..., Process]


@pytest.fixture(scope="session")
def start() -> Iterator[Start]:
    """``start(folder, "-m", "sampling.generate", ..., NAME="value of the environment")``."""
    processes = []

    def begin(folder: Path, *arguments: str, **extra: str) -> Process:
        processes.append(Process(folder, arguments, extra))
        return processes[-1]

    yield begin
    for process in processes:
        process.clear()
