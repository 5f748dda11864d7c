import dataclasses
import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from eval import trunk
from eval.extractors import Inception
from eval.features import Features
from eval.fid import main
from eval.metrics import compute
from eval.report import Report
from eval.samples import open_samples
from eval.scoring import open_floor, score
from pqvae.cli import UserError
from pqvae.datasets import DataConfig, open_dataset
from pqvae.images import encode_png

TRUNK = trunk.installed_trunk()
needs_trunk = pytest.mark.skipif(TRUNK is None, reason=f"{trunk.PACKAGE} is not installed")
CPU = torch.device("cpu")
SIZE = 8


class Tiny(nn.Module):
    """A stand-in for Inception: mean colours as features, the same as logits."""

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        features = nn.functional.adaptive_avg_pool2d(images.float() / 255, 2).flatten(1)
        return features, features


def tiny_inception(*, has_logits: bool = True) -> Inception:
    network = Tiny() if has_logits else nn.Sequential(Tiny(), First())
    return Inception(network, "tiny", "0" * 64, "no weights", has_logits)


class First(nn.Module):
    def forward(self, outputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return outputs[:1]


def as_features(pool: Tensor, logits: Tensor | None = None) -> Features:
    return Features(pool, logits, "")


def gaussian(n: int, mean: Tensor, root: Tensor, seed: int) -> Tensor:
    """Points with exactly this sample mean, and with the sample covariance ``root @ root.T``."""
    generator = torch.Generator().manual_seed(seed)
    points = torch.randn(n, len(mean), dtype=torch.float64, generator=generator)
    points -= points.mean(0)
    white = points @ torch.linalg.inv(torch.linalg.cholesky(points.T.cov())).T
    return white @ root.T + mean


def square_root(matrix: Tensor) -> Tensor:
    values, vectors = torch.linalg.eigh(matrix)
    return vectors @ values.clamp_min(0).sqrt().diag() @ vectors.T


def test_fid_of_two_gaussians_is_the_closed_formula() -> None:
    D = 16
    generator = torch.Generator().manual_seed(0)
    means = torch.randn(2, D, dtype=torch.float64, generator=generator)
    roots = torch.randn(2, D, D, dtype=torch.float64, generator=generator)
    first, second = (gaussian(100, means[i], roots[i], seed=i) for i in range(2))
    cov = [root @ root.T for root in roots]
    cross = square_root(square_root(cov[0]) @ cov[1] @ square_root(cov[0]))
    expected = (means[0] - means[1]).square().sum() + (cov[0] + cov[1] - 2 * cross).trace()
    found = compute(["fid"], as_features(first), as_features(second))["fid"]
    assert found == pytest.approx(expected.item(), rel=1e-8)


def test_fid_of_a_set_with_itself_is_zero() -> None:
    pool = torch.rand(200, 16, generator=torch.Generator().manual_seed(0))
    assert compute(["fid"], as_features(pool), as_features(pool))["fid"] == pytest.approx(
        0, abs=1e-9
    )


def test_kid_is_near_zero_for_one_distribution_and_not_for_two() -> None:
    generator = torch.Generator().manual_seed(0)
    first, second = (torch.randn(300, 16, generator=generator) for _ in range(2))
    alike = compute(["kid"], as_features(first), as_features(second))
    apart = compute(["kid"], as_features(first), as_features(second + 0.5))
    assert alike["kid_subset_size"] == 300
    assert abs(alike["kid"]) < 0.05  # over seeds it scatters by 0.01 about zero
    assert apart["kid"] > 0.5


def test_kid_takes_all_images_where_there_are_few() -> None:
    pool = torch.rand(30, 16, generator=torch.Generator().manual_seed(0))
    found = compute(["kid"], as_features(pool[:20]), as_features(pool))
    assert found["kid_subset_size"] == 20
    assert "kid_std" not in found  # every subset is the same set: no spread to speak of


def test_inception_score_of_sure_and_balanced_logits_is_the_number_of_classes() -> None:
    logits = 100 * torch.eye(4).repeat(500, 1)
    found = compute(["isc"], as_features(logits, logits), as_features(logits))
    assert found["isc"] == pytest.approx(4, rel=0.02)  # splits are balanced only by chance
    sure = torch.zeros(100, 4)
    found = compute(["isc"], as_features(sure, sure), as_features(sure))
    assert found["isc"] == pytest.approx(1)


def test_precision_and_recall_tell_fidelity_from_coverage() -> None:
    generator = torch.Generator().manual_seed(0)
    real = torch.randn(200, 4, generator=generator)
    narrow = 0.1 * torch.randn(200, 4, generator=generator)
    same = compute(["prc"], as_features(real), as_features(real))
    assert same == {"precision": 1.0, "recall": 1.0}
    found = compute(["prc"], as_features(narrow), as_features(real))
    assert found["precision"] > 0.95
    assert found["recall"] < 0.05


@pytest.fixture
def reference(tmp_path: Path) -> DataConfig:
    """A folder with splits of random colours."""
    for split, n in (("train", 60), ("val", 10), ("test", 20)):
        write_images(tmp_path / "data" / split, n, seed=n)
    return DataConfig(path=str(tmp_path / "data"), image_size=SIZE)


@pytest.fixture
def samples(tmp_path: Path, reference: DataConfig) -> Path:
    """A folder such as ``sampling.generate`` writes."""
    folder = tmp_path / "samples"
    write_images(folder / "images", 30, seed=1)
    record = {
        "n": 30,
        "seed": 5,
        "settings": {"temperature": 1.0},
        "data": dataclasses.asdict(reference),
        "complete": True,
    }
    (folder / "samples.json").write_text(json.dumps(record))
    return folder


def score_with(
    inception: Inception,
    samples: Path,
    reference: DataConfig,
    metrics: list[str],
    n: int | None = None,
    reference_n: int | None = None,
) -> Report:
    train, test = open_dataset(reference, "train"), open_floor(reference)
    opened = open_samples(samples, n)
    return score(opened, train, test, inception, metrics, reference_n=reference_n, device=CPU)


def write_images(folder: Path, n: int, seed: int) -> None:
    folder.mkdir(parents=True)
    generator = torch.Generator().manual_seed(seed)
    colours = torch.randint(0, 256, (n, 3, 2, 2), dtype=torch.uint8, generator=generator)
    for index, image in enumerate(colours.repeat_interleave(4, 2).repeat_interleave(4, 3)):
        (folder / f"{index:06d}.png").write_bytes(encode_png(image))


def test_score_has_the_floor_and_the_protocol(samples: Path, reference: DataConfig) -> None:
    report = score_with(tiny_inception(), samples, reference, ["fid", "kid", "isc"])
    opened = open_samples(samples)
    train = open_dataset(reference, "train")
    assert report.scores.keys() == report.floor.keys()
    assert {"fid", "kid", "isc"} <= report.scores.keys()
    assert (report.samples_n, report.reference_n, report.floor_n) == (30, 60, 20)
    assert report.reference_hash == train.content_hash
    assert report.sampler["seed"] == 5
    assert report.weights_digest == "0" * 64
    # The same numbers from features made here.
    pools = [Tiny()(images)[0] for images in (opened.images(range(30)), train.images(range(60)))]
    by_hand = compute(["fid"], as_features(pools[0]), as_features(pools[1]))
    assert report.scores["fid"] == pytest.approx(by_hand["fid"], rel=1e-5)
    assert any("biased upwards" in note for note in report.notes)


def test_score_of_the_reference_itself_is_zero(reference: DataConfig) -> None:
    report = score_with(tiny_inception(), Path(reference.path) / "train", reference, ["fid"])
    assert report.scores["fid"] == pytest.approx(0, abs=1e-6)
    assert report.floor["fid"] > 0.01


def test_subset_of_the_reference_is_fixed_and_stated(samples: Path, reference: DataConfig) -> None:
    reports = [
        score_with(tiny_inception(), samples, reference, ["fid"], reference_n=n)
        for n in (20, 20, 60)
    ]
    fids = [report.scores["fid"] for report in reports]
    assert fids[0] == fids[1] != fids[2]
    assert (reports[0].reference_n, reports[0].reference_total) == (20, 60)
    with pytest.raises(UserError, match=r"--reference-n 61: .* holds 60"):
        score_with(tiny_inception(), samples, reference, ["fid"], reference_n=61)


def test_inception_score_is_left_out_without_the_classifier(
    samples: Path, reference: DataConfig
) -> None:
    inception = tiny_inception(has_logits=False)
    report = score_with(inception, samples, reference, ["kid", "isc"])
    assert "isc" not in report.scores
    assert any("left out: Inception Score needs the classifier" in note for note in report.notes)
    with pytest.raises(UserError, match=r"--metrics isc: .*weights-inception-2015-12-05"):
        score_with(inception, samples, reference, ["isc"])


def test_too_few_images_are_refused_or_cost_the_floor(samples: Path, tmp_path: Path) -> None:
    write_images(tmp_path / "few" / "train", 30, seed=0)
    write_images(tmp_path / "few" / "val", 1, seed=2)
    write_images(tmp_path / "few" / "test", 1, seed=1)
    few = DataConfig(path=str(tmp_path / "few"), image_size=SIZE)
    report = score_with(tiny_inception(), samples, few, ["kid"])
    assert report.floor == {}
    assert any("no floor" in note for note in report.notes)
    with pytest.raises(UserError, match="kid needs 2 images or more, not 1"):
        score_with(tiny_inception(), samples, few, ["kid"], n=1)


def test_damaged_sample_is_named_not_averaged_in(samples: Path, reference: DataConfig) -> None:
    path = samples / "images" / "000007.png"
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(UserError, match=r"000007\.png: .*remove the file"):
        score_with(tiny_inception(), samples, reference, ["fid"])


def test_samples_come_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    write_images(tmp_path / "plain", 3, seed=0)
    (tmp_path / "plain" / "000000.png").rename(tmp_path / "plain" / "1000000.png")
    names = [path.name for path in open_samples(tmp_path / "plain").files]
    assert names == ["000001.png", "000002.png", "1000000.png"]


def test_incomplete_samples_are_counted_and_used(
    samples: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (samples / "images" / "000029.png").unlink()
    assert len(open_samples(samples)) == 29
    assert "is incomplete: 29 of 30 samples" in capsys.readouterr().err


def odd_size(samples: Path) -> None:
    image = torch.zeros(3, SIZE + 1, SIZE + 1, dtype=torch.uint8)
    (samples / "images" / "000004.png").write_bytes(encode_png(image))


def no_images(samples: Path) -> None:
    for path in (samples / "images").iterdir():
        path.unlink()


def no_data(samples: Path) -> None:
    (samples / "samples.json").unlink()


def unknown_data_key(samples: Path) -> None:
    record = json.loads((samples / "samples.json").read_text())
    record["data"]["image_sise"] = 8
    (samples / "samples.json").write_text(json.dumps(record))


def other_size(samples: Path) -> None:
    record = json.loads((samples / "samples.json").read_text())
    record["data"]["image_size"] = 16
    (samples / "samples.json").write_text(json.dumps(record))


def nothing(samples: Path) -> None:
    pass


@pytest.mark.parametrize(
    ("spoil", "arguments", "message"),
    [
        (nothing, ["--samples", "no/such"], "no/such: no such folder"),
        (no_images, [], "images: no PNG or JPEG files"),
        (nothing, ["--n", "31"], "--n 31: .*images holds 30 images"),
        (nothing, ["--n", "0"], "not a whole number of at least 1"),
        (nothing, ["--metrics", "fidd"], "no metric 'fidd'; did you mean fid?"),
        (nothing, ["--metrics", ""], "no metric ''; known are fid, kid, isc, prc"),
        (nothing, ["--weights", "no.pth"], "no.pth: No such file or directory; no FID weights"),
        (nothing, ["--weights", __file__], "test_fid.py: sha256 is .*, expected 6726825d"),
        (nothing, ["--reference", "no/data"], "no/data: no such file or folder"),
        (nothing, ["--json", "no/such/fid.json"], "there is no folder no/such"),
        (nothing, ["--device", "abacus"], "device 'abacus'"),
        (odd_size, [], "000004.png: 9x9 pixels, but 000000.png is 8x8"),
        (lambda s: (s / "images" / "000003.png").write_text("x"), [], "000003.png: not an image"),
        (lambda s: (s / "images" / "000003.png").write_text(""), [], "000003.png: empty file"),
        (lambda s: (s / "samples.json").write_text("{"), [], "samples.json: not a JSON file"),
        (lambda s: (s / "samples.json").write_text("[]"), [], "samples.json: not a JSON object"),
        (no_data, [], "names no data; pass --reference"),
        (unknown_data_key, [], "samples.json: unknown key 'image_sise'.*image_size"),
        (other_size, [], "8 pixels a side, but .*samples.json says 16"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(
    samples: Path,
    capsys: pytest.CaptureFixture[str],
    spoil: Callable[[Path], object],
    arguments: list[str],
    message: str,
) -> None:
    spoil(samples)
    assert main(["--samples", str(samples), "--weights", __file__, *arguments]) == 2
    output = capsys.readouterr()
    (line,) = output.err.splitlines()
    assert re.match(f"error: .*{message}", line)
    assert output.out == ""
    assert not (samples / "fid.json").exists()


@needs_trunk
def test_command_prints_the_table_and_writes_the_report(
    samples: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    arguments = ["--samples", str(samples), "--weights", str(TRUNK), "--metrics", "kid,isc"]
    arguments += ["--n", "6", "--reference-n", "6"]
    tables = []
    for _ in range(2):
        assert main(arguments) == 0
        output = capsys.readouterr().out.splitlines()
        tables.append(output[:3])
        assert "FID" not in "".join(output[:6])  # a score that was not asked for has no row
        assert any("Inception Score needs the classifier" in line for line in output)
        assert output[-1].startswith(f"wrote {samples / 'fid.json'};")
    assert tables[0] == tables[1]
    report = json.loads((samples / "fid.json").read_text())
    assert (report["samples_n"], report["reference_n"], report["floor_n"]) == (6, 6, 6)
    assert report["weights_digest"] == trunk.FILE_SHA256
    assert report["command"].startswith("python -m eval.fid --samples")
    assert len(list((tmp_path / "cache" / "pqvae" / "features").iterdir())) == 3
