import dataclasses
import io
import json
import re
import tarfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
import torch_fidelity
from torch import Tensor, nn
from torch.utils.data import Dataset

from eval.fid import main
from eval.measures import metrics
from eval.measures.fidelity import fid
from eval.measures.generation import Scored, open_floor, score
from eval.measures.statistics import Reference, read_statistics, write_statistics
from eval.networks import NETWORKS, inception, trunk
from eval.networks.extractor import FeatureExtractor
from eval.networks.features import FeatureNetwork, Features
from eval.subjects.real import open_trained_on
from eval.subjects.samples import open_samples
from eval.subjects.selection import asked_subset, subset
from pqvae.data.config import DataConfig
from pqvae.data.dataset import open_dataset
from pqvae.errors import UserError
from pqvae.images import decode_image, encode_png

TRUNK = trunk.installed_trunk()
needs_trunk = pytest.mark.skipif(TRUNK is None, reason=f"{trunk.PACKAGE} is not installed")
CPU = torch.device("cpu")
SIZE = 8


class Tiny(nn.Module):
    """A stand-in for Inception: mean colours as features, the same as logits."""

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        features = nn.functional.adaptive_avg_pool2d(images.float() / 255, 2).flatten(1)
        return features, features


def tiny_network(*, has_logits: bool = True, suffix: str = "") -> FeatureNetwork:
    network = Tiny() if has_logits else nn.Sequential(Tiny(), First())
    return FeatureNetwork(
        network, "tiny", 12, "2x2", "no weights", "0" * 64, has_logits=has_logits, suffix=suffix
    )


class First(nn.Module):
    def forward(self, outputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return outputs[:1]


def as_features(pool: Tensor, logits: Tensor | None = None) -> Features:
    return Features(pool, logits, "")


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
    network: FeatureNetwork,
    samples: Path,
    reference: DataConfig,
    metrics: list[str],
    n: int | None = None,
    reference_n: int | None = None,
) -> Scored:
    real = open_trained_on(reference)
    train, test = real.splits["train"](), open_floor(real, "train")
    opened = open_samples(samples, n)
    reference_images = asked_subset(train, reference_n, "--reference-n")
    return score(opened, reference_images, test, FeatureExtractor(network, CPU), metrics)


def write_images(folder: Path, n: int, seed: int, low: int | None = None) -> None:
    """Four random colours an image; with ``low``, between it and 127 more."""
    folder.mkdir(parents=True)
    generator = torch.Generator().manual_seed(seed)
    bounds = (0, 256) if low is None else (low, low + 128)
    colours = torch.randint(*bounds, (n, 3, 2, 2), dtype=torch.uint8, generator=generator)
    for index, image in enumerate(colours.repeat_interleave(4, 2).repeat_interleave(4, 3)):
        (folder / f"{index:06d}.png").write_bytes(encode_png(image))


def test_score_has_the_floor_and_the_protocol(samples: Path, reference: DataConfig) -> None:
    result = score_with(tiny_network(), samples, reference, ["fid", "kid", "isc"])
    opened = open_samples(samples)
    train = open_dataset(reference, "train")
    scored, floor = result.rows
    assert {"fid", "kid", "isc"} <= scored.keys() == floor.keys()
    assert (scored["images"], floor["images"]) == (30, 20)
    assert result.facts["reference"]["images"] == 60
    assert result.facts["reference"]["content"] == train.content_hash
    assert result.facts["sampler"]["seed"] == 5
    assert result.facts["sampler"]["temperature"] == 1.0
    assert result.facts["extractor"]["sha256"] == "0" * 64
    # The same numbers from features made here.
    pools = [Tiny()(images)[0] for images in (opened.images(range(30)), train.images(range(60)))]
    by_hand = fid(as_features(pools[0]), Reference(as_features(pools[1])))
    assert scored["fid"] == pytest.approx(by_hand["fid"], rel=1e-5)


def test_few_images_are_warned_of(samples: Path, reference: DataConfig) -> None:
    few = score_with(tiny_network(), samples, reference, ["fid"], n=11)
    assert any("biased upwards" in note for note in few.notes)  # 11 images, 12 features
    enough = score_with(tiny_network(), samples, reference, ["fid"], n=12)
    assert not any("biased upwards" in note for note in enough.notes)


def test_scores_of_another_network_never_bear_the_plain_names(
    samples: Path, reference: DataConfig
) -> None:
    metrics = ["fid", "kid", "prc"]
    other = score_with(tiny_network(suffix="_tiny"), samples, reference, metrics, n=11).rows[0]
    plain = score_with(tiny_network(), samples, reference, metrics, n=11).rows[0]
    assert other.pop("fd_tiny") == plain.pop("fid")
    assert other.pop("kd_tiny") == plain.pop("kid")
    assert other.pop("precision_tiny") == plain.pop("precision")
    assert not {"fid", "kid", "precision"} & other.keys()


def test_score_of_the_reference_itself_is_zero(reference: DataConfig) -> None:
    result = score_with(tiny_network(), Path(reference.path) / "train", reference, ["fid"])
    assert result.rows[0]["fid"] == pytest.approx(0, abs=1e-6)
    assert result.rows[1]["fid"] > 0.01


def test_subset_of_the_reference_is_fixed_and_stated(samples: Path, reference: DataConfig) -> None:
    results = [
        score_with(tiny_network(), samples, reference, ["fid"], reference_n=n) for n in (20, 20, 60)
    ]
    fids = [result.rows[0]["fid"] for result in results]
    assert fids[0] == fids[1] != fids[2]
    about = results[0].facts["reference"]
    assert (about["images"], about["of"], about["subset_seed"]) == (20, 60, 0)
    with pytest.raises(UserError, match=r"--reference-n 61: .* holds 60"):
        score_with(tiny_network(), samples, reference, ["fid"], reference_n=61)


def test_inception_score_is_left_out_without_the_classifier(
    samples: Path, reference: DataConfig
) -> None:
    network = tiny_network(has_logits=False)
    result = score_with(network, samples, reference, ["kid", "isc"])
    assert "isc" not in result.rows[0]
    assert any("left out: Inception Score needs the classifier" in note for note in result.notes)
    with pytest.raises(UserError, match=r"--metrics isc: .*weights-inception-2015-12-05"):
        score_with(network, samples, reference, ["isc"])


def test_too_few_images_are_refused_or_cost_the_floor(samples: Path, tmp_path: Path) -> None:
    write_images(tmp_path / "few" / "train", 30, seed=0)
    write_images(tmp_path / "few" / "val", 1, seed=2)
    write_images(tmp_path / "few" / "test", 1, seed=1)
    few = DataConfig(path=str(tmp_path / "few"), image_size=SIZE)
    result = score_with(tiny_network(), samples, few, ["kid"])
    assert len(result.rows) == 1
    assert any("no floor" in note for note in result.notes)
    with pytest.raises(UserError, match="kid needs 2 images or more, not 1"):
        score_with(tiny_network(), samples, few, ["kid"], n=1)


def test_damaged_sample_is_named_not_averaged_in(samples: Path, reference: DataConfig) -> None:
    path = samples / "images" / "000007.png"
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(UserError, match=r"000007\.png: .*remove the file"):
        score_with(tiny_network(), samples, reference, ["fid"])


def test_samples_come_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    write_images(tmp_path / "plain", 3, seed=0)
    (tmp_path / "plain" / "000000.png").rename(tmp_path / "plain" / "1000000.png")
    pictures = [
        decode_image((tmp_path / "plain" / f"{name}.png").read_bytes(), SIZE)
        for name in ("000001", "000002", "1000000")
    ]
    assert torch.equal(open_samples(tmp_path / "plain").images(range(3)), torch.stack(pictures))


def test_incomplete_samples_are_counted_and_used(
    samples: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (samples / "images" / "000029.png").unlink()
    assert len(open_samples(samples)) == 29
    assert "is incomplete: 29 of 30 samples" in capsys.readouterr().err


def write_shard(path: Path, images: Sequence[tuple[str, bytes]]) -> None:
    """A WebDataset shard of (class, encoded image)."""
    with tarfile.open(path, "w") as tar:
        for index, (label, data) in enumerate(images):
            for name, content in ((f"{index:03d}.png", data), (f"{index:03d}.cls", label.encode())):
                member = tarfile.TarInfo(name)
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))


def test_folder_shards_and_array_score_alike(
    samples: Path, reference: DataConfig, tmp_path: Path
) -> None:
    files = sorted((samples / "images").iterdir())
    (tmp_path / "shards").mkdir()
    encoded = [("3", file.read_bytes()) for file in files]
    write_shard(tmp_path / "shards" / "a.tar", encoded[:10])
    write_shard(tmp_path / "shards" / "b.tar", encoded[10:])
    pixels = open_samples(samples).images(range(30)).permute(0, 2, 3, 1).numpy()
    np.savez(tmp_path / "samples.npz", pixels, np.full(30, 3))
    np.savez_compressed(tmp_path / "small.npz", images=pixels)
    scores = {
        path.name: score_with(tiny_network(), path, reference, ["fid"]).rows[0]
        for path in (samples, *(tmp_path / name for name in ("shards", "samples.npz", "small.npz")))
    }
    assert len({json.dumps(row) for row in scores.values()}) == 1
    for name in ("shards", "samples.npz"):
        assert open_samples(tmp_path / name, 12).labels == ("3",) * 12


def test_damaged_member_of_a_shard_is_named(tmp_path: Path) -> None:
    noise = torch.randint(0, 256, (3, SIZE, SIZE), dtype=torch.uint8)
    good = encode_png(noise)
    write_shard(tmp_path / "a.tar", [("0", good), ("0", good[: len(good) // 2]), ("0", b"")])
    with pytest.raises(UserError, match=r"a\.tar: 002: empty file; remove the file"):
        open_samples(tmp_path / "a.tar")
    with pytest.raises(UserError, match=r"a\.tar: 001: .*remove the file"):
        open_samples(tmp_path / "a.tar", 2).images([0, 1])


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((4, 8, 8, 3), np.float32), r"must be uint8 \(N, size, size, 3\), not float32"),
        (np.zeros((4, 3, 8, 8), np.uint8), r"not uint8 \(4, 3, 8, 8\)"),
        (np.array([{}], dtype=object), "not an .npz file of images"),
    ],
)
def test_array_of_something_else_is_refused(
    tmp_path: Path, array: np.ndarray, message: str
) -> None:
    np.savez(tmp_path / "a.npz", array)
    with pytest.raises(UserError, match=message):
        open_samples(tmp_path / "a.npz")


def test_exported_statistics_score_as_the_images_do(
    samples: Path, reference: DataConfig, tmp_path: Path
) -> None:
    network = tiny_network()
    direct = score_with(network, samples, reference, ["fid"])
    write_statistics(tmp_path / "r.npz", direct.reference.statistics, network)
    known = read_statistics(tmp_path / "r.npz", network)
    opened, extractor = open_samples(samples), FeatureExtractor(network, CPU)
    again = score(opened, known, None, extractor, ["fid", "kid"])
    assert again.rows[0]["fid"] == pytest.approx(direct.rows[0]["fid"], rel=1e-12)
    assert "kid" not in again.rows[0]
    assert any("kid needs images of the reference" in note for note in again.notes)
    with pytest.raises(UserError, match="prc needs images of the reference"):
        score(opened, known, None, extractor, ["prc"])


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"mu": np.zeros(12)}, "not an .npz file with the arrays mu and sigma"),
        ({"mu": np.zeros(7), "sigma": np.eye(7)}, r"mu is \(7,\).*tiny has 12 features"),
        ({"mu": np.zeros(12), "sigma": np.triu(np.ones((12, 12)))}, "sigma symmetric"),
        ({"mu": np.full(12, np.nan), "sigma": np.eye(12)}, "mu must be finite"),
        (
            {"mu": np.zeros(12), "sigma": np.eye(12), "extractor": np.array("big")},
            "statistics of big, but tiny is in use",
        ),
    ],
)
def test_statistics_of_something_else_are_refused(
    tmp_path: Path, arrays: dict[str, np.ndarray], message: str
) -> None:
    np.savez(tmp_path / "r.npz", allow_pickle=False, **arrays)
    with pytest.raises(UserError, match=rf"r\.npz: .*{message}|{message}"):
        read_statistics(tmp_path / "r.npz", tiny_network())


def test_published_statistics_need_no_word_on_the_network(tmp_path: Path) -> None:
    np.savez(tmp_path / "r.npz", mu=np.arange(12.0), sigma=np.eye(12), arr_0=np.zeros(3))
    known = read_statistics(tmp_path / "r.npz", tiny_network())
    assert torch.equal(known.mean, torch.arange(12.0).double())


@pytest.fixture
def classes(tmp_path: Path) -> DataConfig:
    """Class "dark" and class "light", told apart by every pixel."""
    for split, n in (("train", 40), ("val", 4), ("test", 20)):
        for name, low in (("dark", 0), ("light", 128)):
            write_images(tmp_path / "classes" / split / name, n, seed=n + low, low=low)
    return DataConfig(path=str(tmp_path / "classes"), image_size=SIZE)


def test_each_class_is_scored_against_its_own(classes: DataConfig, tmp_path: Path) -> None:
    train = open_dataset(classes, "train")
    assert train.labels is not None
    chosen = [*range(30), *range(40, 75)]  # 30 dark, 35 light
    pixels = train.images(chosen).permute(0, 2, 3, 1).numpy()
    wrong = np.array(["light"] * 30 + ["dark"] * 35)
    found = {}
    for name, labels in (("right", train.labels[chosen].numpy()), ("wrong", wrong)):
        np.savez(tmp_path / f"{name}.npz", pixels, labels)
        opened = open_samples(tmp_path / f"{name}.npz")
        test = open_floor(open_trained_on(classes), "train")
        extractor = FeatureExtractor(tiny_network(), CPU)
        result = score(opened, subset(train), test, extractor, ["fid", "prc"], by_class=True)
        found[name] = {row["subject"]: row for row in result.rows}
    right, wrong_rows = found["right"], found["wrong"]
    assert right["dark, samples"]["images"] == 30
    assert right["light, samples"]["images"] == 35
    assert right["light, floor: test split"]["images"] == 20
    assert "precision" not in right["dark, samples"]
    assert right["samples"]["fid"] == wrong_rows["samples"]["fid"]
    for subject in ("dark, samples", "light, samples"):
        assert right[subject]["fid"] < 0.1 < wrong_rows[subject]["fid"]


def test_classes_that_cannot_be_told_apart_are_refused(
    samples: Path, reference: DataConfig, classes: DataConfig, tmp_path: Path
) -> None:
    def by_class(path: Path, data: DataConfig) -> None:
        train, extractor = open_dataset(data, "train"), FeatureExtractor(tiny_network(), CPU)
        score(open_samples(path), subset(train), None, extractor, ["fid"], by_class=True)

    with pytest.raises(UserError, match="--by-class: the reference has no classes"):
        by_class(samples, reference)
    with pytest.raises(UserError, match=r"does not record the classes of its samples$"):
        by_class(samples, classes)
    np.savez(tmp_path / "a.npz", np.zeros((4, SIZE, SIZE, 3), np.uint8), np.arange(4))
    with pytest.raises(UserError, match=r"has class 2, but .*dark, light"):
        by_class(tmp_path / "a.npz", classes)


@needs_trunk
def test_scores_are_those_of_plain_torch_fidelity(samples: Path, reference: DataConfig) -> None:
    network = inception.load(TRUNK)
    n, metrics = 8, ["fid", "kid", "prc"]
    real = subset(open_dataset(reference, "train"), n)
    opened, extractor = open_samples(samples, n), FeatureExtractor(network, CPU)
    result = score(opened, real, None, extractor, metrics)

    class Plain(Dataset):
        def __init__(self, images: Tensor) -> None:
            self.images = images

        def __len__(self) -> int:
            return len(self.images)

        def __getitem__(self, index: int) -> Tensor:
            return self.images[index]

    weights = io.BytesIO()
    torch.save(network.module.state_dict(), weights)
    path = samples / "weights.pth"
    path.write_bytes(weights.getvalue())
    plain = torch_fidelity.calculate_metrics(
        input1=Plain(opened.images(range(n))),
        input2=Plain(real.images(range(n))),
        fid=True,
        kid=True,
        kid_subset_size=n,
        prc=True,
        feature_extractor="inception-v3-compat",
        feature_extractor_weights_path=str(path),
        cuda=False,
        batch_size=6,
        save_cpu_ram=True,
        verbose=False,
        cache=False,
    )
    ours = result.rows[0]
    assert ours["fid"] == pytest.approx(plain["frechet_inception_distance"], rel=1e-6)
    # A difference of kernels of about 1, which torch-fidelity takes in float32.
    assert ours["kid"] == pytest.approx(plain["kernel_inception_distance_mean"], abs=1e-6)
    assert ours["precision"] == plain["precision"]
    assert ours["recall"] == plain["recall"]


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


def test_labels_of_samples_are_those_of_the_record(samples: Path, classes: DataConfig) -> None:
    record = json.loads((samples / "samples.json").read_text())
    record["class_counts"] = {"dark": 40, "light": 40}

    def labels(**changes: object) -> tuple[str, ...] | None:
        (samples / "samples.json").write_text(json.dumps({**record, **changes}))
        return open_samples(samples, 3).labels

    numbers = [1, 0, 0, *[1] * 27]
    assert labels(labels=numbers) == ("light", "dark", "dark")
    (samples / "images" / "000001.png").unlink()
    assert labels(labels=numbers) == ("light", "dark", "light")
    assert labels(labels=None) is None
    assert labels(labels=[1, 0, -1, 1]) is None
    assert labels(labels=[1, 0, 0]) is None
    assert labels(settings={"class": "dark"}) == ("dark",) * 3
    # A folder of an older version: what is to be done is said.
    assert labels(command="python -m sampling.generate --n 30") is None
    extractor = FeatureExtractor(tiny_network(), CPU)
    train = subset(open_dataset(classes, "train"))
    with pytest.raises(UserError, match=r"classes .*; `python -m sampling.generate --n 30` adds"):
        score(open_samples(samples), train, None, extractor, ["fid"], by_class=True)


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
