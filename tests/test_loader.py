"""Training batches: every image once an epoch, a pure function of (seed, step), honest shifts."""

from itertools import product
from pathlib import Path

import pytest
import torch
from torch import Tensor

from pqvae.datasets import DataConfig, ImageDataset, open_dataset
from pqvae.images import encode_png, to_float
from pqvae.loader import Augmentation, BatchOrder, TrainingImages, augment, generator_for

SIZE = 8


def noise(n: int, seed: int = 0) -> Tensor:
    """Pictures of which no two, and no two shifts of one, are alike."""
    shape = (n, 3, SIZE, SIZE)
    return torch.randint(0, 256, shape, generator=generator_for(seed)).to(torch.uint8)


def config_of(folder: Path, **changes: object) -> DataConfig:
    return DataConfig(path=str(folder), image_size=SIZE, **changes)  # type: ignore[bad-argument-type]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four flags and nine faces in train/."""
    base = tmp_path_factory.mktemp("data")
    for index, image in enumerate(noise(13)):
        name = "flags" if index < 4 else "faces"
        path = base / "train" / name / f"{index:02d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encode_png(image))
    for split in ("val", "test"):
        (base / split / "faces").mkdir(parents=True)
        (base / split / "faces" / "0.png").write_bytes(encode_png(noise(1, seed=1)[0]))
    return base


@pytest.fixture(scope="module")
def dataset(folder: Path) -> ImageDataset:
    dataset = open_dataset(config_of(folder, shift=0), "train")
    assert len(dataset) == 13
    return dataset


def moved_slowly(image: Tensor, flip: bool, down: int, right: int) -> Tensor:
    """The reference for one image, pixel by pixel."""
    result = torch.empty_like(image)
    for y, x in product(range(SIZE), range(SIZE)):
        from_y = min(max(y + down, 0), SIZE - 1)
        from_x = min(max(x + right, 0), SIZE - 1)
        result[:, y, x] = image[:, from_y, SIZE - 1 - from_x if flip else from_x]
    return result


@pytest.mark.parametrize(("length", "batch_size"), [(12, 4), (13, 4), (5, 13), (7, 7), (1, 3)])
def test_every_image_comes_once_an_epoch(length: int, batch_size: int) -> None:
    order = BatchOrder(length, batch_size, seed=3)
    epochs = 4
    steps = -(-length * epochs // batch_size)
    stream = torch.cat([order(step) for step in range(steps)])[: length * epochs]
    for epoch in stream.view(epochs, length):
        assert epoch.sort().values.tolist() == list(range(length))


def test_epochs_and_seeds_have_orders_of_their_own() -> None:
    # 20! orders: two of these five are alike by accident with a chance below 1e-17.
    orders = [tuple(BatchOrder(20, 20, seed)(step).tolist()) for seed, step in
              [(0, 0), (0, 1), (0, 2), (1, 0), (2, 0)]]  # fmt: skip
    assert len(set(orders)) == 5


def test_batch_is_a_function_of_seed_and_step_in_whatever_order_it_is_asked_for(
    dataset: ImageDataset, folder: Path
) -> None:
    config = config_of(folder, shift=2, shift_share=0.5)
    asked = TrainingImages(dataset, config, 5, 11)
    forwards = [asked(step) for step in range(12)]
    assert not torch.equal(forwards[0], forwards[1])
    again = TrainingImages(dataset, config, 5, 11)
    torch.manual_seed(99)  # the global generator has no say
    for step in (7, 2, 11, 2, 0, 6, 1):
        assert torch.equal(again(step), forwards[step])
    assert not torch.equal(TrainingImages(dataset, config, 5, 12)(0), forwards[0])


def test_without_augmentation_the_images_come_as_they_are(
    dataset: ImageDataset, folder: Path
) -> None:
    batches = TrainingImages(dataset, config_of(folder, shift=0, flip=False), 4, 0)
    for step in range(6):
        assert torch.equal(batches(step), to_float(dataset.images(batches.order(step))))


def test_moved_images_equal_a_slow_reference_that_repeats_borders() -> None:
    cases = list(product((False, True), range(-3, 4), range(-3, 4)))
    images = noise(len(cases))
    flip = torch.tensor([case[0] for case in cases])
    offsets = torch.tensor([case[1:] for case in cases]).T
    before = images.clone()
    moved = augment(images, flip, offsets)
    assert torch.equal(images, before)  # a data set in memory hands out its own pixels
    for index, (flipped, down, right) in enumerate(cases):
        assert torch.equal(moved[index], moved_slowly(images[index], flipped, down, right))


@pytest.mark.parametrize(("shift", "shift_share"), [(1, 1.0), (1, 0.25), (2, 0.5), (0, 1.0)])
def test_shifts_stay_within_reach_and_are_as_frequent_as_asked(
    dataset: ImageDataset, folder: Path, shift: int, shift_share: float
) -> None:
    n, image = 40_000, noise(1)
    augmentation = Augmentation(
        dataset, config_of(folder, shift=shift, shift_share=shift_share, flip=False)
    )
    images = image.expand(n, -1, -1, -1)
    indices = torch.zeros(n, dtype=torch.int64)
    changed = augmentation(images, indices, generator_for(1)).flatten(1)

    reach = list(product(range(-shift, shift + 1), repeat=2))
    found = torch.zeros(n, dtype=torch.int64)
    counts = {}
    for offset in reach:
        same = (changed == moved_slowly(image[0], False, *offset).flatten()).all(1)
        found += same
        counts[offset] = int(same.sum())
    assert (found == 1).all()  # no other move, and none of these twice
    for offset, count in counts.items():
        share = shift_share / len(reach) + (1 - shift_share if offset == (0, 0) else 0)
        # Six standard deviations: a right program fails with a chance of 2e-9 each.
        assert abs(count - n * share) <= 6 * (n * share * (1 - share)) ** 0.5


def test_half_the_images_are_mirrored_but_never_one_of_a_class_that_it_would_falsify(
    dataset: ImageDataset, folder: Path
) -> None:
    augmentation = Augmentation(dataset, config_of(folder, shift=0, no_flip_classes=("flags",)))
    assert dataset.labels is not None
    indices = torch.arange(13).repeat(400)
    images = dataset.images(indices)
    changed = augmentation(images, indices, generator_for(2))
    mirrored = (changed == images.flip(3)).flatten(1).all(1)
    kept = (changed == images).flatten(1).all(1)
    assert (mirrored ^ kept).all()
    flags = dataset.labels[indices] == dataset.class_names.index("flags")
    assert flags.sum() == 4 * 400
    assert not mirrored[flags].any()
    faces = mirrored[~flags].double()
    # Six standard deviations: a right program fails with a chance of 2e-9.
    assert abs(float(faces.mean()) - 0.5) <= 6 * 0.5 / len(faces) ** 0.5

    never = Augmentation(dataset, config_of(folder, shift=0, flip=False))
    assert torch.equal(never(images, indices, generator_for(2)), images)


def test_generators_differ_in_every_number_and_in_their_order() -> None:
    numbers = [(0,), (1,), (0, 0), (0, 1), (1, 0), (0, 0, 1), (0, 1, 0), (1, 0, 0), (0, 1, 2)]
    drawn = [
        tuple(torch.randint(2**31, (2,), generator=generator_for(*each)).tolist())
        for each in numbers
    ]
    assert len(set(drawn)) == len(numbers)
    assert torch.equal(
        torch.rand(3, generator=generator_for(5, 6)), torch.rand(3, generator=generator_for(5, 6))
    )
