"""The command of the scores: its table, its report, its metrics, and what it refuses."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from eval.fid import main
from eval.measures import metrics
from eval.measures.statistics import Reference, write_statistics
from eval.networks import NETWORKS, trunk
from eval.networks.features import FeatureNetwork
from eval.subjects.samples import open_samples
from pqvae.data.config import DataConfig
from pqvae.data.dataset import open_dataset
from pqvae.images import encode_png
from tests.eval.pictures import SIZE
from tests.eval.scoring import TRUNK, as_features, needs_trunk, tiny_network


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
        (no_images, [], "images: no images and no .tar shards in this folder"),
        (nothing, ["--n", "31"], "--n 31: .*images holds 30 images"),
        (nothing, ["--n", "0"], "not a whole number of at least 1"),
        (nothing, ["--metrics", "fidd"], "no metric 'fidd'; did you mean fid?"),
        (nothing, ["--metrics", ""], "no metric ''; known are fid, kid, isc, prc"),
        (nothing, ["--weights", "no.pth"], "no.pth: No such file or directory; no FID weights"),
        (nothing, ["--weights", __file__], "test_fid.py: sha256 is .*, expected 6726825d"),
        (nothing, ["--reference", "no/data"], "no/data: no such file or folder"),
        (nothing, ["--json", "no/such/fid.json"], "there is no folder no/such"),
        (nothing, ["--device", "abacus"], "device 'abacus'"),
        (nothing, ["--extractor", "vgg"], "argument --extractor: invalid choice: 'vgg'"),
        (nothing, ["--export-reference", "no/such/r.npz"], "there is no folder no/such"),
        (nothing, ["--export-reference", "r.npz", "--metrics", "kid"], "needs fid among the"),
        (nothing, ["--samples", "no.npz"], "no.npz: no such file"),
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


def load_tiny(weights: Path | None) -> FeatureNetwork:
    return tiny_network()


def test_a_metric_is_one_file_and_one_entry_of_the_table(
    samples: Path,
    reference: DataConfig,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "brightness.py").write_text(
        "def compute(images, reference):\n"
        "    apart = images.pool.mean() - reference.features.pool.mean()\n"
        "    return {'brightness': apart.item()}\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    added = metrics.Metric(
        title="brightness",
        compute="brightness:compute",
        scores=(metrics.Score(key="brightness", title="brighter by", digits=3),),
        fewest=5,
        needs="images",
    )
    monkeypatch.setitem(metrics.METRICS, "brightness", added)
    monkeypatch.setitem(NETWORKS, "tiny", f"{__name__}:load_tiny")
    command = ["--samples", str(samples), "--extractor", "tiny", "--device", "cpu"]
    with pytest.raises(SystemExit):
        main(["--help"])
    assert "fid,kid,isc,prc,brightness" in capsys.readouterr().out
    assert main([*command, "--metrics", "fid,brightness"]) == 0
    titles, row, floor = capsys.readouterr().out.splitlines()[:3]
    assert titles.split()[-2:] == ["brighter", "by"]
    train = open_dataset(reference, "train").images(range(60)).double()
    apart = open_samples(samples).images(range(30)).double().mean() - train.mean()
    assert row.split()[-1] == f"{apart.item() / 255:.3f}"
    assert "floor" in floor
    assert main([*command, "--metrics", "brightness", "--n", "4"]) == 2
    assert "brightness needs 5 images or more, not 4" in capsys.readouterr().err
    write_statistics(
        tmp_path / "r.npz", Reference(as_features(torch.rand(20, 12))).statistics, tiny_network()
    )
    assert (
        main([*command, "--metrics", "fid,brightness", "--reference", str(tmp_path / "r.npz")]) == 0
    )
    assert "left out: brightness needs images of the reference" in capsys.readouterr().out


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
        assert "FID" not in "".join(output)  # a score that was not asked for has no row
        assert any("Inception Score needs the classifier" in line for line in output)
        assert output[-1].startswith(f"wrote {samples / 'fid.json'};")
    assert tables[0] == tables[1]
    report = json.loads((samples / "fid.json").read_text())
    counts = [report["facts"][subject]["images"] for subject in ("samples", "reference", "floor")]
    assert counts == [6, 6, 6]
    assert report["facts"]["extractor"]["sha256"] == trunk.FILE_SHA256
    assert report["command"].startswith("python -m eval.fid --samples")
    assert len(list((tmp_path / "cache" / "pqvae" / "features").iterdir())) == 3
