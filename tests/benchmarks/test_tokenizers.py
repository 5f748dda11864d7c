"""The methods of benchmarks/tokenizers.py: equal where they share, whole, and really cut."""

import copy
import importlib.util
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import Tensor

from eval.report.plot import PALETTE
from pqvae.images import encode_png, to_uint8
from pqvae.randomness import generator_for

if TYPE_CHECKING:
    from tests.conftest import BlobImages

pytest.importorskip("vector_quantize_pytorch")

PATH = Path(__file__).parents[2] / "benchmarks" / "tokenizers.py"
NAMES = ("ours", "spatial-vq", "spatial-fsq", "residual-vq", "registers", "gumbel")
specification = importlib.util.spec_from_file_location("benchmarks_tokenizers", PATH)
assert specification is not None and specification.loader is not None
benchmark: Any = importlib.util.module_from_spec(specification)
specification.loader.exec_module(benchmark)


@pytest.fixture(scope="module")
def images(blob_images: "BlobImages") -> Tensor:
    return blob_images(32, 32, 0)


@pytest.fixture(scope="module")
def methods(images: Tensor) -> Mapping[str, Any]:
    """Every method, started and in evaluation mode. Do not change them."""
    started = {}
    for name in NAMES:
        torch.manual_seed(0)
        method = started[name] = benchmark.METHODS[name]()
        method.start(images, generator_for(0))
        # The decoder's network is zero at first: its answer to the prefix length would not show.
        torch.nn.init.normal_(method.decoder.network[-1].weight, std=0.1)
        method.eval()
    return started


def test_all_methods_are_there() -> None:
    assert tuple(benchmark.METHODS) == NAMES
    assert len(set(PALETTE)) >= len(NAMES) + 2  # two of them have a line of refined codes, too


def test_encoder_and_decoder_are_equal_at_the_start() -> None:
    states = []
    for make in benchmark.METHODS.values():
        torch.manual_seed(3)
        method = make()
        state = method.encoder.state_dict(prefix="encoder.")
        state |= method.decoder.state_dict(prefix="decoder.")
        del state["decoder.prefix_embedding.weight"]  # as long as the method has prefixes
        states.append(state)
    for state in states[1:]:
        assert state.keys() == states[0].keys()
        assert all(torch.equal(state[key], states[0][key]) for key in state)


@pytest.mark.parametrize("name", NAMES)
def test_codes_lie_in_their_codebooks_and_cost_576_bits(
    name: str, methods: Mapping[str, Any], images: Tensor
) -> None:
    method = methods[name]
    with torch.inference_mode():
        codes, decoded = method.codes(images), method.decoded(images)
    assert codes.shape[1] == len(method.sizes)
    assert codes.min() >= 0
    assert (codes < torch.tensor(method.sizes)).all()
    assert len(codes.view(len(images), -1).unique(dim=0)) > 1
    assert len(codes) / len(images) * sum(map(math.log2, method.sizes)) == 576
    assert list(method.bits) == sorted(set(method.bits))
    assert method.bits[-1] == 576
    assert len(decoded) == len(method.cuts) == len(method.bits)
    assert all(one.shape == images.shape for one in decoded)


@pytest.mark.parametrize("name", NAMES)
def test_gradients_reach_every_parameter(
    name: str, methods: Mapping[str, Any], images: Tensor
) -> None:
    method = copy.deepcopy(methods[name]).train()
    lengths = torch.arange(len(images)) % method.cuts[-1] + 1
    method.loss(images, lengths, 0.0, generator_for(1)).backward()
    for key, parameter in method.named_parameters():
        assert parameter.grad is not None, key
        assert parameter.grad.isfinite().all(), key


@pytest.mark.parametrize("name", ["ours", "gumbel", "residual-vq"])
def test_codes_after_a_cut_are_not_seen(
    name: str, methods: Mapping[str, Any], images: Tensor
) -> None:
    method = copy.deepcopy(methods[name])
    kept = method.cuts[1]
    with torch.inference_mode():
        before = method.decoded(images)
        if name == "ours":
            method.quantizer.spreads[kept - len(method.quantizer.vectors) :] = 1
        elif name == "gumbel":
            method.quantizer.factors[kept:] = 1
            method.quantizer.vectors[kept:].normal_()
        else:
            for level in method.levels[kept:]:
                level.codebook.normal_()
        after = method.decoded(images)
    for cut, old, new in zip(method.cuts, before, after, strict=True):
        assert torch.equal(old, new) == (cut <= kept)


def test_dropped_registers_are_not_seen(methods: Mapping[str, Any], images: Tensor) -> None:
    method = methods["registers"]
    with torch.inference_mode():
        tokens = method.quantize(images)[0]
        kept = torch.arange(len(images)) % 64 + 1
        dropped = (torch.arange(64) >= kept.unsqueeze(1)).unsqueeze(2)
        other = torch.where(dropped, torch.randn(tokens.shape), tokens)
        decoded = method.decode(tokens, kept)
        torch.testing.assert_close(method.decode(other, kept), decoded)
        # What is kept is seen, and so is how much that is.
        other = torch.where(dropped, tokens, torch.randn(tokens.shape))
        assert not torch.isclose(method.decode(other, kept), decoded).flatten(1).all(1).any()
        told = method.decode(tokens, torch.full((len(images),), 64))
        assert not torch.isclose(told, decoded).flatten(1).all(1).any()


def test_ours_is_compared_at_no_more_bits() -> None:
    def result(bits: list[int], psnr: list[float]) -> dict[str, Any]:
        one = {"bits": bits, "psnr": psnr, "code_entropy_bits": [7.5, 8.0]}
        return one | {"images_per_second": 100.0, "parameters": 1000}

    results = {
        "residual-vq": result([144, 576], [18.0, 22.0]),
        "ours": result([8, 136, 146, 576], [15.0, 19.0, 19.5, 23.0]),
    }
    lines = [line.split() for line in benchmark.summary(results).splitlines()]
    assert ["residual-vq", "144", "18.00", "136", "19.00", "+1.00"] in lines
    assert ["residual-vq", "576", "22.00", "576", "23.00", "+1.00"] in lines
    assert "gain" not in benchmark.summary({"ours": results["ours"]})


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--minutes", "0"], "--minutes 0"),
        (["--minutes", "nan"], "--minutes nan"),
        (["--methods", "theirs"], "'registers'"),
        (["--json", "nowhere/results.json"], "nowhere/results.json"),
        (["--json", "results.png"], "results.png"),
        (["--data", "nowhere"], "nowhere: no such file"),
    ],
)
def test_bad_input_is_one_line(
    arguments: list[str],
    complaint: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert benchmark.main(["--json", "results.json", *arguments]) == 2
    message = capsys.readouterr().err
    assert message.startswith("error: ") and complaint in message
    assert message.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_a_run_leaves_numbers_and_a_picture(
    tmp_path: Path, blob_images: "BlobImages", capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("matplotlib")
    for index, image in enumerate(to_uint8(blob_images(12, 32, 1))):
        folder = tmp_path / "blobs" / ("test" if index < 4 else "train")
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{index}.png").write_bytes(encode_png(image))
    path = tmp_path / "results.json"
    arguments = ["--minutes", "0.001", "--data", str(tmp_path / "blobs"), "--json", str(path)]
    assert benchmark.main([*arguments, "--methods", "spatial-fsq"]) == 0
    report = json.loads(path.read_text())
    assert report["test_images"] == 4
    assert report["methods"]["spatial-fsq"].keys() == {
        "bits",
        "psnr",
        "code_entropy_bits",
        "images_per_second",
        "steps",
        "parameters",
        "codebook_parameters",
    }
    assert path.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    assert "spatial-fsq" in capsys.readouterr().out
