"""CIFAR-10: read as torchvision reads it, downloaded once, and refused in time."""

import hashlib
import pickle
import socket
import threading
import time
import urllib.request
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch

from pqvae.data.config import DataConfig
from pqvae.data.dataset import open_dataset
from pqvae.data.sample import Split
from pqvae.errors import UserError

SPLITS: tuple[Split, ...] = ("train", "val", "test")


def test_cifar10_without_internet_is_refused_within_seconds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")  # a port that answers nobody: no network
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.setattr(urllib.request, "_opener", None)  # it remembers the proxies of before
    with pytest.raises(UserError, match=r"cannot be downloaded from https://.*data.path=FOLDER$"):
        open_dataset(DataConfig(path="cifar10"), "train")
    assert socket.getdefaulttimeout() is None
    assert "downloading 170 MB from https://www.cs.toronto.edu" in capsys.readouterr().err


@pytest.fixture
def small_cifar10(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[Path, bytes]:
    """Makes torchvision want CIFAR-10 files of the real form with fewer images: these."""
    from torchvision.datasets import CIFAR10

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    generator = np.random.default_rng(0)
    files: dict[Path, bytes] = {}

    def write(name: str, content: object) -> list[str]:
        data = pickle.dumps(content)
        files[tmp_path / "pqvae" / "cifar10" / CIFAR10.base_folder / name] = data
        return [name, hashlib.md5(data, usedforsecurity=False).hexdigest()]

    def batch(count: int) -> dict[str, object]:
        images = generator.integers(0, 256, (count, 3072), np.uint8)
        return {"data": images, "labels": generator.integers(0, 2, count).tolist()}

    lists = {"train_list": [write("data_batch_1", batch(60))], "test_list": [write("t", batch(9))]}
    for name, value in lists.items():
        monkeypatch.setattr(CIFAR10, name, value)
    meta = write("batches.meta", {"label_names": ["airplane", "automobile"]})
    monkeypatch.setattr(
        CIFAR10, "meta", {"filename": meta[0], "key": "label_names", "md5": meta[1]}
    )
    return files


def write_files(files: Mapping[Path, bytes]) -> None:
    for path, data in files.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)


def test_cifar10_is_downloaded_once_however_many_want_it(
    small_cifar10: dict[Path, bytes],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from torchvision.datasets import CIFAR10

    wanted, running = 4, threading.Lock()

    def download(self: CIFAR10) -> None:
        assert running.acquire(blocking=False), "two downloads at once"
        time.sleep(0.3)  # ample for the others to see that nothing is there
        write_files(small_cifar10)
        running.release()

    monkeypatch.setattr(CIFAR10, "download", download)
    # A lock of a file that is opened anew excludes threads as it does processes.
    with ThreadPoolExecutor(wanted) as pool:
        opened = list(
            pool.map(open_dataset, [DataConfig(path="cifar10")] * wanted, ["test"] * wanted)
        )
    assert [len(dataset) for dataset in opened] == [9] * wanted
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("cifar10: downloading 170 MB from ")


def test_cifar10_is_read_as_torchvision_reads_it(
    tmp_path: Path, small_cifar10: dict[Path, bytes]
) -> None:
    from torchvision.datasets import CIFAR10

    write_files(small_cifar10)
    parts = {split: open_dataset(DataConfig(path="cifar10"), split) for split in SPLITS}
    assert len(parts["train"]) + len(parts["val"]) == 60
    assert len(parts["val"]) > 0
    assert len(parts["test"]) == 9
    for split, dataset in parts.items():
        assert dataset.class_names == ("airplane", "automobile")
        assert dataset.labels is not None
        theirs = CIFAR10(tmp_path / "pqvae" / "cifar10", train=split != "test")
        for index, key in enumerate(dataset.keys):
            image, label = theirs[int(key)]
            expected = torch.from_numpy(np.array(image)).permute(2, 0, 1)
            assert torch.equal(dataset.images([index])[0], expected)
            assert dataset.labels[index] == label
