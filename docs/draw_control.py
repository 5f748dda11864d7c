"""Draw docs/variations.png and docs/mix.png: what sampling.generate makes of held-out pictures.

    python docs/draw_control.py PRIOR TOKENIZER

Folders of both stages. One test image of each class, the middle one, not picked.
"""

import sys
import tempfile
from pathlib import Path

import torch
from torch import Tensor

from pqvae.data.dataset import ImageDataset, open_dataset
from pqvae.images import encode_png, read_picture, save_grid
from pqvae.pretrained import recorded_data
from sampling.generate import main
from stage2_prior import Prior

HERE = Path(__file__).parent
KEPT, EACH = (1, 2, 4, 8), 3  # codes that variations keep; variations of each
PLAN, CODES = 2, 16  # codes of the plan, and of the whole mix
SHOWN = 7  # classes


def middle_images(dataset: ImageDataset) -> Tensor:
    """The middle image of each of the first classes, uint8 (SHOWN, 3, H, W)."""
    assert dataset.labels is not None
    members = [(dataset.labels == label).nonzero().flatten() for label in range(SHOWN)]
    return dataset.images([int(one[len(one) // 2]) for one in members])


def made(size: int, *arguments: object) -> Tensor:
    """What the command makes, uint8 (n, 3, size, size)."""
    with tempfile.TemporaryDirectory() as folder:
        code = main([*map(str, arguments), "--out", f"{folder}/out"])
        assert code == 0
        paths = sorted(Path(folder, "out", "images").iterdir())
        return torch.stack([read_picture(path, size) for path in paths])


def draw(prior: str, tokenizer: str) -> None:
    """Draw both pictures."""
    data = recorded_data(Prior.from_pretrained(prior).provenance, prior, None, "--data")
    originals = middle_images(open_dataset(data, "test"))
    models = data.image_size, "--prior", prior, "--tokenizer", tokenizer
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder, f"{number}.png") for number in range(SHOWN)]
        for file, original in zip(files, originals, strict=True):
            file.write_bytes(encode_png(original))
        rows, grid = [], [torch.full_like(originals[:1], 255), originals]
        for file, original in zip(files, originals.split(1), strict=True):
            variations = "--n", EACH, "--from", file, "--keep"
            rows += [original, *(made(*models, *variations, keep) for keep in KEPT)]
            mixed = "--keep", PLAN, "--prefix", CODES
            grid += [original, *(made(*models, "--mix", file, one, *mixed) for one in files)]
    captions = ["original", *(f"K = {keep}" for keep in KEPT for _ in range(EACH))]
    save_grid(HERE / "variations.png", torch.cat(rows), len(captions), captions=captions)
    save_grid(HERE / "mix.png", torch.cat(grid), SHOWN + 1)


if __name__ == "__main__":
    draw(*sys.argv[1:])
