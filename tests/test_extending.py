"""Every example of docs/extending.md adds its part from one file, and what it adds is used."""

import importlib.util
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from PIL import Image

from eval.fid import main as fid
from eval.measures.metrics import METRICS
from eval.networks import NETWORKS
from pqvae.config_help import describe_keys
from pqvae.data import sources
from pqvae.data.config import DataConfig
from pqvae.data.dataset import open_dataset
from pqvae.images import to_float, to_uint8
from stage1_tokenizer import Tokenizer, decoder_config, decoders, quantizers
from stage1_tokenizer import config as stage1_config
from stage1_tokenizer.train import main as train
from stage2_prior.books import Codebooks
from stage2_prior.codec.container import FormatError, Mode
from stage2_prior.codec.pictures import Codec
from stage2_prior.codec.static import StaticCoder
from stage2_prior.config import PriorConfig
from stage2_prior.prior import Prior
from stage2_prior.sequence import Sequence
from stage2_prior.unroll import unroll

if TYPE_CHECKING:
    from tests.conftest import BlobImages, TinyRun

PAGE = Path(__file__).parents[1] / "docs" / "extending.md"
EXAMPLES = dict(re.findall(r"^```python (\w+)\n(.*?)^```$", PAGE.read_text("utf-8"), re.S | re.M))
TABLES: list[dict[Any, Any]] = [
    stage1_config.QUANTIZERS,
    decoder_config.DECODERS,
    quantizers.KINDS,
    decoders.KINDS,
    sources.SOURCES,
    METRICS,
]


@pytest.fixture(autouse=True)
def tables() -> Iterator[None]:
    """The tables as they were, after each test."""
    before = [dict(table) for table in TABLES]
    yield
    for table, entries in zip(TABLES, before, strict=True):
        table.clear()
        table.update(entries)


def load(name: str, folder: Path) -> ModuleType:
    """Write an example into a file of its own, and import that."""
    path = folder / f"added_{name}.py"
    path.write_text(EXAMPLES[name], encoding="utf-8")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    try:
        spec.loader.exec_module(module)
    finally:
        del sys.modules[path.stem]
    return module


def small_prior(sequence: Sequence | None = None) -> Prior:
    torch.manual_seed(0)
    codebooks = Codebooks((16, 9, 16, 5, 16), (0, 1, 0, 2, 0), (None, None, None))
    config = PriorConfig(width=64, depth=2, heads=2, code_features=4)
    prior = Prior(config, codebooks, ("a", "b"), (1, 1), sequence)
    for parameter in prior.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return prior.eval()


def test_each_recipe_has_an_example() -> None:
    assert set(EXAMPLES) == {"quantizer", "source", "score", "decoder", "order", "coder"}
    for name, text in EXAMPLES.items():
        assert len(text.splitlines()) <= 70, name


def test_a_quantizer_trains_through_the_one_loop(tmp_path: Path, tiny_run: "TinyRun") -> None:
    load("quantizer", tmp_path)
    keys = {row.key: row.kind for row in describe_keys(stage1_config.Config)}
    assert "signs" in keys["quantizer.num_codes"]
    out = tmp_path / "run"
    settings = ["data.image_size=16", "trainer.steps=20", "trainer.batch_size=32"]
    settings += ["architecture.widths=16,32", "architecture.latent_channels=4", "device=cpu"]
    settings += ["quantizer.kind=signs", "quantizer.num_codes=4", "trainer.evaluate_every=10"]
    assert train([f"out={out}", f"data.path={tiny_run.data}", *settings]) == 0
    tokenizer = Tokenizer.from_pretrained(out)
    dataset = open_dataset(DataConfig(path=str(tiny_run.data), image_size=16), "train")
    images = to_float(dataset.images(range(len(dataset))))
    codes = tokenizer.encode(images)
    assert codes.shape == (len(dataset), 4)
    assert len(codes.unique()) > 50
    with torch.no_grad():
        latents = tokenizer.latents(images)
        prefixes = [tokenizer.quantizer.decode(codes[:, :k]) for k in (1, 2, 4)]
    errors = [float((latents - prefix).square().mean()) for prefix in prefixes]
    assert errors[0] > errors[1] > errors[2]


def test_a_source_is_opened_by_its_path(tmp_path: Path) -> None:
    load("source", tmp_path)
    pixels = np.random.default_rng(0).integers(0, 256, (60, 16, 16, 3), np.uint8)
    np.save(tmp_path / "pictures.npy", pixels)
    config = DataConfig(path=str(tmp_path / "pictures.npy"), image_size=16)
    train_images, test_images = open_dataset(config, "train"), open_dataset(config, "test")
    assert len(train_images) + len(test_images) + len(open_dataset(config, "val")) == 60
    index = int(train_images.keys[0])
    found = train_images.images([0])[0].permute(1, 2, 0).numpy()
    assert np.array_equal(found, pixels[index])
    assert len(open_dataset(DataConfig(), "test")) > 600  # the others are still there


def test_a_score_is_a_column_of_the_command(
    tmp_path: Path,
    tiny_run: "TinyRun",
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    load("score", tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "added_network.py").write_text(
        "import torch\n"
        "from eval.networks.features import FeatureNetwork\n\n\n"
        "class Means(torch.nn.Module):\n"
        "    def forward(self, images):\n"
        "        return (images.float().mean((2, 3)),)\n\n\n"
        "def load(weights):\n"
        "    return FeatureNetwork(Means(), 'means', 3, 'none', 'none', '0', False, '')\n"
    )
    monkeypatch.setitem(NETWORKS, "means", "added_network:load")
    for seed in range(4):
        pixels = np.random.default_rng(seed).integers(0, 256, (16, 16, 3), np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{seed}.png")
    arguments = ["--samples", str(tmp_path), "--reference", str(tiny_run.data), "--device", "cpu"]
    report = tmp_path / "report.json"
    arguments += ["--metrics", "fid,spread", "--extractor", "means", "--json", str(report)]
    assert fid(arguments) == 0
    assert capsys.readouterr().out.splitlines()[0].endswith("wider by, log2")
    scored, floor = json.loads(report.read_text())["rows"]
    # Noise has nearly the same mean everywhere; held-out images vary as the training images do.
    assert scored["spread"] < -1 < floor["spread"] < 1


def test_a_decoder_is_kept_beside_the_faithful_one(
    tmp_path: Path, tiny_tokenizer: Tokenizer
) -> None:
    added = load("decoder", tmp_path)
    tiny_tokenizer.save_pretrained(tmp_path / "one")
    tokenizer = Tokenizer.from_pretrained(tmp_path / "one")
    codes = tokenizer.encode(torch.rand(3, 3, 16, 16) * 2 - 1)
    tokenizer.add_decoder("linear", added.LinearConfig())
    tokenizer.save_pretrained(tmp_path / "two")
    again = Tokenizer.from_pretrained(tmp_path / "two")
    assert list(again.decoders) == ["faithful", "linear"]
    assert torch.equal(again.decode(codes), tiny_tokenizer.decode(codes))
    assert torch.equal(again.decode(codes, "linear"), tokenizer.decode(codes, "linear"))
    assert not torch.equal(again.decode(codes, "linear"), again.decode(codes))
    assert again.codes_hash == tiny_tokenizer.codes_hash
    assert again.content_hash != tiny_tokenizer.content_hash


def test_an_order_is_kept_and_unrolled(tmp_path: Path) -> None:
    order = load("order", tmp_path).in_pairs(5)
    assert order.steps == ((0, 1), (2, 3), (4,))
    small_prior(order).save_pretrained(tmp_path / "prior")
    prior = Prior.from_pretrained(tmp_path / "prior")
    seen = []

    def choose(step: int, logits: torch.Tensor) -> torch.Tensor:
        seen.append(logits.log_softmax(2))
        return logits.argmax(2)

    codes = unroll(prior, torch.tensor([0, 1]), 3, choose)
    assert codes.shape == (2, 5)
    logs = torch.cat(seen, dim=1).gather(2, codes.unsqueeze(2)).squeeze(2)
    bits = prior.bits(codes, torch.tensor([0, 1]))
    assert torch.allclose(-logs / np.log(2), bits, atol=1e-4)  # cached against whole, float32


def test_a_coder_writes_files_that_it_alone_reads(
    tmp_path: Path, tiny_tokenizer: Tokenizer, blob_images: "BlobImages"
) -> None:
    added = load("coder", tmp_path)
    first = torch.arange(512) % 16  # all that follows is said by the first code, by and large
    codes = (first.unsqueeze(1) % 4 + torch.randint(0, 2, (512, 6))) % 8
    codes[:, 0] = first
    coder = added.FirstCodeCoder(codes, tiny_tokenizer.quantizer.sizes)
    tables = StaticCoder.of_codes(codes, tiny_tokenizer.quantizer.sizes)
    rows = codes[:32].tolist()
    for row in rows:
        for k, payload in enumerate(coder.payloads(row), start=1):
            assert coder.read(payload)[:k] == row[:k]
    lengths = [sum(len(list(each.payloads(row))[-1]) for row in rows) for each in (coder, tables)]
    assert lengths[0] < 0.9 * lengths[1]  # by bits about 9 to 15.5

    codec = Codec(tiny_tokenizer, {Mode.STATIC: coder})
    images = to_uint8(blob_images(2, 16, 1))
    files = codec.compress(images, [(16, 16)] * 2, mode=Mode.STATIC)
    assert [codec.read(data).codes for data in files] == codec.encode(images).tolist()
    other = Codec(tiny_tokenizer, {Mode.STATIC: tables})
    with pytest.raises(FormatError, match="written with the model"):
        other.read(files[0])
