"""benchmarks/other_codecs.py: what placeholders make is what their originals make."""

import pytest
import torch
from torch import Tensor

from benchmarks import other_codecs, thumb_hash
from pqvae.images import psnr


@pytest.fixture(scope="module")
def disc() -> Tensor:
    """A red disc before a gradient, uint8 (3, 32, 32)."""
    y, x = torch.arange(32)[:, None], torch.arange(32)[None]
    ground = torch.stack(
        [torch.full((32, 32), 20), (90 + 2 * x).expand(32, 32), 0 * x + 200 - 3 * y]
    )
    inside = (x - 10) ** 2 + (y - 20) ** 2 < 90
    return torch.where(inside, torch.tensor([220, 40, 30])[:, None, None], ground).byte()


def pixels(image: Tensor) -> list[list[int]]:
    return image.flatten(1).T[[0, 100, 500, 1023]].tolist()


def test_a_thumb_hash_is_that_of_the_original(disc: Tensor) -> None:
    data = thumb_hash.encode(disc)  # what npm thumbhash 0.1.1 makes of it, and of that
    assert data.hex() == "d9c6054f167376776f88887777a888778788b705364f5303"
    shown = [[0, 111, 229], [0, 106, 213], [119, 99, 94], [0, 170, 147]]
    assert pixels(thumb_hash.decode(data, 32)) == shown


def test_a_blurhash_is_that_of_the_original(disc: Tensor) -> None:
    pytest.importorskip("blurhash")
    settings, _ = other_codecs.settings_here(32)
    one = next(each for each in settings if (each.method, each.setting) == ("BlurHash", "4x4"))
    data = one.encode(disc)  # of npm blurhash 2.0.5
    assert data == b"UcEVN;@vF_F|B@K5r?r[7NK6wJr?+}wJX7n%"
    assert pixels(one.decode(data)) == [
        [0, 105, 217],
        [19, 106, 207],
        [133, 122, 142],
        [0, 132, 90],
    ]


def test_every_setting_gives_a_picture_back_and_every_format_a_good_one(disc: Tensor) -> None:
    best: dict[str, float] = {}
    for each in other_codecs.settings_here(32)[0]:
        made = each.decode(each.encode(disc))
        value = psnr(made[None], disc[None]).item()
        assert value > 12, each  # seen: 14 and more
        best[each.method] = max(value, best.get(each.method, 0.0))
    assert {"ThumbHash", "WebP", "JPEG 4:2:0", "JPEG 4:4:4, optimized"} <= best.keys()
    formats = [value for method, value in best.items() if not method.endswith("Hash")]
    assert min(formats) > 19  # seen: 19.7 and more
