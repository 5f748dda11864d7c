import dataclasses
import hashlib
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from eval.networks.extractor import CHUNK, FeatureExtractor
from eval.networks.features import FeatureNetwork, Features

CPU = torch.device("cpu")


class Tiny(nn.Module):
    """A stand-in for a network that counts the images it sees."""

    def __init__(self) -> None:
        super().__init__()
        self.seen = 0

    def forward(self, images: Tensor) -> tuple[Tensor]:
        self.seen += len(images)
        return (nn.functional.adaptive_avg_pool2d(images.float(), 4).flatten(1),)


class Pixels:
    """Images in memory."""

    def __init__(self, pixels: Tensor) -> None:
        self.pixels = pixels

    def __len__(self) -> int:
        return len(self.pixels)

    def images(self, indices: Sequence[int], /) -> Tensor:
        return self.pixels[list(indices)]


def tiny_network(digest: str = "0" * 64) -> FeatureNetwork:
    return FeatureNetwork(
        Tiny(), "tiny", 48, "4x4", "no weights", digest, has_logits=False, suffix=""
    )


def random_pixels(n: int, size: int = 8, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (n, 3, size, size), dtype=torch.uint8, generator=generator)


def tiny_features(network: FeatureNetwork, pixels: Tensor, cache: Path | None) -> Features:
    return FeatureExtractor(network, CPU, cache=cache)(Pixels(pixels))


def test_cached_features_are_equal_and_computed_once(tmp_path: Path) -> None:
    pixels = random_pixels(CHUNK + 10)
    first = tiny_features(tiny_network(), pixels, tmp_path)
    again = tiny_network()
    second = tiny_features(again, pixels, tmp_path)
    assert again.module.seen == 0
    assert torch.equal(first.pool, second.pool)
    assert first.content_hash == second.content_hash
    assert first.content_hash == hashlib.sha256(pixels.numpy().data).hexdigest()
    assert torch.equal(first.pool, tiny_features(tiny_network(), pixels, None).pool)


def test_longer_run_computes_only_what_is_new(tmp_path: Path) -> None:
    pixels = random_pixels(CHUNK + 10)
    tiny_features(tiny_network(), pixels[:CHUNK], tmp_path)
    longer = tiny_network()
    tiny_features(longer, pixels, tmp_path)
    assert longer.module.seen == 10


@pytest.mark.parametrize("what", ["pixel", "weights", "name"])
def test_cache_is_not_reused_for_anything_else(tmp_path: Path, what: str) -> None:
    pixels = random_pixels(10)
    tiny_features(tiny_network(), pixels, tmp_path)
    other = tiny_network("1" * 64 if what == "weights" else "0" * 64)
    if what == "name":
        other = dataclasses.replace(other, name="other")
    if what == "pixel":
        pixels[0, 0, 0, 0] ^= 1
    tiny_features(other, pixels, tmp_path)
    assert other.module.seen == 10


@pytest.mark.parametrize("damage", ["truncated", "flipped", "empty", "foreign"])
def test_damaged_cache_file_is_computed_anew(tmp_path: Path, damage: str) -> None:
    pixels = random_pixels(10)
    expected = tiny_features(tiny_network(), pixels, tmp_path).pool
    (file,) = tmp_path.iterdir()
    data = bytearray(file.read_bytes())
    good = bytes(data)
    data[-1] ^= 1
    contents = {"truncated": good[:-8], "flipped": bytes(data), "empty": b"", "foreign": b"x" * 99}
    file.write_bytes(contents[damage])
    again = tiny_network()
    assert torch.equal(tiny_features(again, pixels, tmp_path).pool, expected)
    assert again.module.seen == 10
    assert file.read_bytes() == good


def test_cache_that_cannot_be_written_is_said_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_bytes(b"")
    pixels = random_pixels(CHUNK + 10)
    found = tiny_features(tiny_network(), pixels, tmp_path / "file" / "cache")
    assert len(found) == CHUNK + 10
    assert capsys.readouterr().err.count("not cached") == 1
