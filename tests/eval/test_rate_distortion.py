"""Rate against distortion: closed forms, the training's own figures, and clear refusals."""

import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from eval.measures import rates
from eval.measures.distortion import measure
from eval.measures.rates import mean_image, position_bits, prefix_rows
from eval.rate_distortion import main
from eval.subjects.selection import Selection
from eval.subjects.tokenized import encode
from pqvae.data import batches
from pqvae.data.config import DataConfig
from pqvae.data.dataset import ImageDataset, open_dataset
from pqvae.images import psnr, to_float
from pqvae.randomness import generator_for
from stage1_tokenizer import Tokenizer
from stage1_tokenizer.prefixes import reconstruct
from stage2_prior import Prior
from stage2_prior.books import Codebooks
from stage2_prior.codes import unigram_bits
from stage2_prior.config import PriorConfig

SIZE, SIZES = 16, (16,) * 6  # of the tiny run
N = len(SIZES)
CLASSES = ("circles", "squares", "stripes")
TINY = PriorConfig(width=32, depth=1, heads=1, code_features=4)


def make_prior(
    codes_hash: str = "", tokenizer: str = "", classes: tuple[str, ...] = CLASSES
) -> Prior:
    """A prior that knows nothing: its head starts at zero, so that its biases alone decide."""
    torch.manual_seed(0)
    codebooks = Codebooks.separate(SIZES)
    prior = Prior(TINY, codebooks, classes, (1,) * len(classes)).eval()
    prior.provenance = {"codes_hash": codes_hash, "tokenizer": tokenizer}
    return prior


def random_codes(n: int, seed: int = 0) -> Tensor:
    # Squared, so that low codes are frequent.
    return (16 * torch.rand(n, N, generator=generator_for(seed)).square()).long()


@pytest.fixture(scope="module")
def tokenizer(tiny_run: Any) -> Tokenizer:
    return Tokenizer.from_pretrained(tiny_run.tokenizer)


def dataset(tiny_run: Any, split: Any) -> ImageDataset:
    return open_dataset(DataConfig(path=str(tiny_run.data), image_size=SIZE), split)


@pytest.fixture
def prior(tiny_run: Any, tokenizer: Tokenizer, tmp_path: Path) -> Path:
    """The run folder of a prior that is the unigrams of the training codes, class or no class."""
    model = make_prior(tokenizer.codes_hash, str(tiny_run.tokenizer))
    train = dataset(tiny_run, "train")
    model.init_from_codes(encode(tokenizer, Selection(train, range(len(train)))))
    model.save_pretrained(tmp_path / "prior" / "model")
    return tmp_path / "prior"


def test_a_uniform_prior_costs_log2_of_the_codebook_size() -> None:
    bits = position_bits(make_prior(), random_codes(20))
    torch.testing.assert_close(bits, torch.full((N,), 4.0, dtype=torch.float64))


def test_a_prior_of_unigrams_costs_their_cross_entropy() -> None:
    seen, codes = random_codes(200), random_codes(50, seed=1)
    prior = make_prior()
    prior.init_from_codes(seen)
    expected = torch.zeros(N, dtype=torch.float64)
    for position in range(N):
        counts = [1 + int((seen[:, position] == code).sum()) for code in range(16)]
        costs = [-math.log2(counts[code] / sum(counts)) for code in codes[:, position].tolist()]
        expected[position] = sum(costs) / len(costs)
    # float32 in the prior
    torch.testing.assert_close(position_bits(prior, codes), expected, atol=1e-5, rtol=0)


def test_bits_depend_on_neither_order_nor_chunks_but_on_labels(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    prior = make_prior()
    for parameter in prior.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    codes, labels = random_codes(20), torch.arange(20) % 3
    with torch.inference_mode():
        expected = prior.bits(codes, labels).double().mean(0)
    torch.testing.assert_close(position_bits(prior, codes, labels), expected, atol=1e-5, rtol=0)
    monkeypatch.setattr(rates, "CHUNK", 7)
    order = torch.randperm(20, generator=generator_for(0))
    found = position_bits(prior, codes[order], labels[order])
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
    assert (position_bits(prior, codes) - expected).abs().max() > 1e-3


def test_a_source_whose_error_quarters_with_each_bit_of_a_value_gains_what_it_spends() -> None:
    # A Gaussian of variance 1 at R bits a value: 4^-R at best (Shannon). Code k is 1 bit a value.
    values = 3 * SIZE**2
    psnrs = 10 * torch.log10(4 * 4.0 ** torch.arange(5, dtype=torch.float64)).repeat(3, 1)
    rates = {"fixed": torch.full((4,), float(values)), "prior": torch.full((4,), values / 2)}
    rows = prefix_rows(psnrs, rates, range(1, 5), [1, 2, 4], SIZE)
    assert [row["mse"] for row in rows] == pytest.approx([1, 1 / 4, 1 / 16, 1 / 64, 1 / 256])
    assert [row.get("gained_bits") for row in rows[1:]] == pytest.approx(
        [values, values, None, 2 * values]
    )
    for k in (1, 2, 4):
        assert rows[k]["gained_per_fixed_bit"] == pytest.approx(1)
        assert rows[k]["gained_per_prior_bit"] == pytest.approx(2)
    assert rows[4]["fixed_bits_per_pixel"] == pytest.approx(12)


def test_segments_add_up_to_the_whole() -> None:
    psnrs = 20 + 5 * torch.rand(7, N + 1, dtype=torch.float64, generator=generator_for(0))
    rates = {"fixed": torch.full((N,), 4.0), "prior": torch.rand(N, generator=generator_for(1))}
    rows = prefix_rows(psnrs, rates, range(1, N + 1), [1, 2, 4, N], SIZE)
    ends = [rows[k] for k in (1, 2, 4, N)]
    assert [row["segment_begins_after"] for row in ends] == [0, 1, 2, 4]
    whole = 3 * SIZE**2 / 2 * math.log2(rows[0]["mse"] / rows[N]["mse"])
    assert sum(row["gained_bits"] for row in ends) == pytest.approx(whole)
    for name, bits in rates.items():
        spent = sum(row["gained_bits"] / row[f"gained_per_{name}_bit"] for row in ends)
        assert spent == pytest.approx(rows[N][f"{name}_bits"]) == pytest.approx(float(bits.sum()))
        assert [row[f"{name}_bits_of_last_code"] for row in rows[1:]] == bits.tolist()


def test_psnr_is_the_mean_of_the_images_and_mse_that_of_the_squares() -> None:
    rows = prefix_rows(torch.tensor([[10.0, 20.0], [20.0, 40.0]]).double(), {}, [1], [1], SIZE)
    assert [row["psnr"] for row in rows] == pytest.approx([15, 30])
    assert [row["mse"] for row in rows] == pytest.approx([4 * (0.1 + 0.01) / 2, 4 * 0.0101 / 2])


def test_a_prior_that_is_sure_spends_nothing_and_has_no_ratio() -> None:
    psnrs = torch.tensor([[10.0, 20.0]]).double()
    rows = prefix_rows(psnrs, {"prior": torch.zeros(1)}, [1], [1], SIZE)
    assert rows[1]["gained_per_prior_bit"] is None


def test_of_codes_that_decode_at_some_lengths_only_these_have_rows() -> None:
    psnrs = torch.tensor([[10.0, 20.0, 30.0]]).double()
    rows = prefix_rows(psnrs, {"fixed": torch.full((8,), 9.0)}, [4, 8], [4, 8], SIZE)
    assert [(row["codes"], row["psnr"], row["fixed_bits"]) for row in rows] == [
        (0, 10, 0),
        (4, 20, 36),
        (8, 30, 72),
    ]
    assert [row["segment_begins_after"] for row in rows[1:]] == [0, 4]


def test_the_mean_image_is_that_of_all_images_whatever_the_chunks(
    tiny_run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = Selection(dataset(tiny_run, "test"), [1, 3, *range(4, 11)])
    expected = images.images(range(9)).double().mean(0).round().to(torch.uint8)
    monkeypatch.setattr(batches, "CHUNK_PIXELS", 1)
    assert torch.equal(mean_image(images), expected)


@pytest.mark.parametrize("beam", [1, 4])
def test_every_prefix_is_measured_as_the_reconstruction_of_each_image(
    tiny_run: Any, tokenizer: Tokenizer, beam: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batches, "CHUNK_PIXELS", 1)  # some chunks, and a smaller one
    images = Selection(dataset(tiny_run, "test"), [5, 0, 7, 2, 1, 3, 4, 6, 8])
    codes, values = measure(tokenizer, images, range(1, N + 1), {"psnr": psnr}, beam)
    assert torch.equal(codes, encode(tokenizer, images, beam))
    for place, row in enumerate(values["psnr"]):
        image = images.images([place])
        decoded = reconstruct(tokenizer, image, range(1, N + 1), beam=beam)
        expected = [psnr(one, image) for one in decoded]
        # A value may be rounded the other way in a convolution of another batch shape.
        torch.testing.assert_close(row, torch.cat(expected), atol=0.02, rtol=0)


def test_the_report_has_the_figures_of_both_trainings(
    prior: Path, tiny_run: Any, tokenizer: Tokenizer, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--prior", str(prior), "--device", "cpu"]) == 0
    output = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in output[:6]] == ["codes", "0", "1", "2", "4", "6"]
    assert output[-1].startswith(f"wrote {prior}/rate_distortion.json")
    assert (prior / "rate_distortion.png").is_file()
    report = json.loads((prior / "rate_distortion.json").read_text())
    rows = report["rows"]
    assert [row["codes"] for row in rows] == list(range(N + 1))
    trained = json.loads((tiny_run.tokenizer / "result.json").read_text())
    for k, value in trained["psnr"].items():
        assert rows[int(k)]["psnr"] == pytest.approx(value, abs=0.02)
    train, test = dataset(tiny_run, "train"), dataset(tiny_run, "test")
    codes = [tokenizer.encode(to_float(part.images(range(len(part))))) for part in (train, test)]
    for name, part in (("", codes[1]), ("train_", codes[0])):
        expected = unigram_bits(codes[0], part, SIZES).cumsum(0).tolist()
        for key in (f"{name}prior_bits", f"{name}class_prior_bits"):
            assert [row[key] for row in rows[1:]] == pytest.approx(expected, abs=1e-3)
    assert [row["fixed_bits"] for row in rows] == [4 * k for k in range(N + 1)]
    assert report["facts"]["test"]["images"] == len(test)
    assert report["facts"]["tokenizer"]["content"] == tokenizer.content_hash
    assert any("1.6 bits at most" in note for note in report["notes"])


def test_without_a_prior_there_are_fixed_lengths_only(tiny_run: Any, tmp_path: Path) -> None:
    path = tmp_path / "fixed.json"
    arguments = ["--prior", "none", "--tokenizer", str(tiny_run.tokenizer), "--n", "5"]
    assert main([*arguments, "--json", str(path), "--device", "cpu"]) == 0
    report = json.loads(path.read_text())
    assert report["facts"]["test"]["images"] == 5
    assert report["rows"][N]["fixed_bits"] == 24
    assert not any("prior" in key for row in report["rows"] for key in row)


def test_classes_that_the_prior_does_not_know_are_not_told_to_it(
    prior: Path, tiny_run: Any, tokenizer: Tokenizer
) -> None:
    make_prior(tokenizer.codes_hash, str(tiny_run.tokenizer), ("a", "b")).save_pretrained(
        prior / "model"
    )
    assert main(["--prior", str(prior), "--n", "5", "--device", "cpu"]) == 0
    report = json.loads((prior / "rate_distortion.json").read_text())
    assert report["rows"][N]["prior_bits"] == pytest.approx(24, abs=1e-4)
    assert "class_prior_bits" not in report["rows"][N]
    assert any("other classes" in note for note in report["notes"])


def nothing(prior: Path) -> None:
    pass


def other_tokenizer(prior: Path) -> None:
    known = Prior.from_pretrained(prior).provenance
    model = make_prior("0123456789", known["tokenizer"])
    model.save_pretrained(prior / "model")


def no_tokenizer(prior: Path) -> None:
    make_prior("0123456789", "no/such").save_pretrained(prior / "model")


def damaged(prior: Path) -> None:
    path = prior / "model" / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1])


@pytest.mark.parametrize(
    ("spoil", "arguments", "message"),
    [
        (nothing, ["--prior", "no/such"], "no/such: no prior here; run python -m stage2_prior"),
        (damaged, [], "model.safetensors: damaged"),
        (other_tokenizer, [], "trained on tokenizer 01234567, but .* pass --tokenizer"),
        (no_tokenizer, [], "no/such: no tokenizer here"),
        (nothing, ["--tokenizer", "no/such"], "no/such: no tokenizer here"),
        (nothing, ["--data", "no/data"], "no/data: no such file or folder"),
        (nothing, ["--n", "13"], "--n 13: .* test holds 12 images"),
        (nothing, ["--n", "0"], "not a whole number of at least 1"),
        (nothing, ["--beam", "0"], "not a whole number of at least 1"),
        (nothing, ["--json", "no/such/rd.json"], "there is no folder no/such"),
        (nothing, ["--json", "rd.txt"], "--json rd.txt: must end in .json"),
        (nothing, ["--device", "abacus"], "device 'abacus'"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(
    prior: Path,
    capsys: pytest.CaptureFixture[str],
    spoil: Callable[[Path], object],
    arguments: list[str],
    message: str,
) -> None:
    spoil(prior)
    assert main(["--prior", str(prior), *arguments]) == 2
    output = capsys.readouterr()
    (line,) = output.err.splitlines()
    assert re.match(f"error: .*{message}", line)
    assert output.out == ""
    assert [path.name for path in prior.iterdir()] == ["model"]
