"""What is scored: folders, shards, arrays and statistics alike, and the damaged is named."""

import io
import json
import tarfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from eval.measures.generation import score
from eval.measures.statistics import read_statistics, write_statistics
from eval.networks.extractor import FeatureExtractor
from eval.subjects.samples import open_samples
from pqvae.data.config import DataConfig
from pqvae.errors import UserError
from pqvae.images import decode_image, encode_png
from tests.eval.pictures import SIZE, random_images, write_images
from tests.eval.scoring import CPU, score_with, tiny_network


def test_damaged_sample_is_named_not_averaged_in(samples: Path, reference: DataConfig) -> None:
    path = samples / "images" / "000007.png"
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(UserError, match=r"000007\.png: .*remove the file"):
        score_with(tiny_network(), samples, reference, ["fid"])


def test_samples_come_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    write_images(tmp_path / "plain", random_images(3, seed=0))
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
