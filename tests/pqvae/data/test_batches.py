"""Training batches: the images of a step, cut into parts, moved within reach, mapped in chunks."""

from collections.abc import Callable
from itertools import product
from pathlib import Path

import pytest
import torch
from torch import Tensor

from pqvae.data.batches import (
    CHUNK_PIXELS,
    Augmentation,
    BatchOrder,
    Prefetcher,
    TrainingImages,
    augment,
    map_images,
    parts_of_batch,
)
from pqvae.data.config import DataConfig
from pqvae.data.dataset import ImageDataset, open_dataset
from pqvae.errors import UserError
from pqvae.images import encode_png, to_float
from pqvae.randomness import generator_for

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


SetProcess = Callable[[int, int], None]


@pytest.fixture
def set_process(monkeypatch: pytest.MonkeyPatch) -> SetProcess:
    """``set_process(rank, count)``: which of several processes this one is."""

    def set_process(rank: int, count: int) -> None:
        monkeypatch.setenv("RANK", str(rank))
        monkeypatch.setenv("WORLD_SIZE", str(count))

    return set_process


SPLITS = [(8, 1, 1), (8, 1, 4), (8, 2, 1), (8, 2, 2), (8, 4, 2), (7, 1, 3), (7, 3, 1), (7, 3, 2)]


@pytest.mark.parametrize(("batch_size", "count", "accumulate"), SPLITS)
def test_parts_make_the_batch_in_order_and_are_of_like_size(
    set_process: SetProcess, batch_size: int, count: int, accumulate: int
) -> None:
    parts = []
    for rank in range(count):
        set_process(rank, count)
        own = parts_of_batch(batch_size, accumulate)
        assert len(own) == accumulate
        parts += own
    places = list(range(batch_size))
    assert [place for part in parts for place in places[part]] == places
    sizes = [part.stop - part.start for part in parts]
    assert min(sizes) >= 1
    assert max(sizes) - min(sizes) <= 1


@pytest.mark.parametrize(("batch_size", "count", "accumulate"), SPLITS)
def test_parts_of_a_batch_are_its_images_to_the_bit(
    dataset: ImageDataset,
    folder: Path,
    set_process: SetProcess,
    batch_size: int,
    count: int,
    accumulate: int,
) -> None:
    config = config_of(folder, shift=2, shift_share=0.5)
    whole = TrainingImages(dataset, config, batch_size, 11)
    for step in range(5):  # over the end of an epoch, too
        parts = []
        for rank in range(count):
            set_process(rank, count)
            images = TrainingImages(dataset, config, batch_size, 11)
            parts += [images(step, part) for part in parts_of_batch(batch_size, accumulate)]
        assert torch.equal(torch.cat(parts), whole(step))


@pytest.mark.parametrize(("count", "accumulate"), [(3, 2), (1, 6), (6, 1)])
def test_a_batch_too_small_for_its_parts_is_refused(
    set_process: SetProcess, count: int, accumulate: int
) -> None:
    set_process(count - 1, count)
    assert len(parts_of_batch(6, accumulate)) == accumulate
    with pytest.raises(UserError) as caught:
        parts_of_batch(5, accumulate)
    assert str(caught.value) == (
        f"trainer.batch_size is 5, but {count} processes with "
        f"trainer.accumulate={accumulate} need at least 6"
    )


def test_fewer_images_than_processes_are_refused(set_process: SetProcess) -> None:
    set_process(0, 3)
    BatchOrder(3, 8, 0)
    with pytest.raises(UserError, match="2 training images are too few for 3 processes"):
        BatchOrder(2, 8, 0)


@pytest.mark.parametrize("workers", [1, 3])
def test_training_images_are_the_same_from_any_number_of_threads(
    dataset: ImageDataset, folder: Path, workers: int
) -> None:
    images = TrainingImages(dataset, config_of(folder, shift=2, shift_share=0.5), 7, 11)
    parts = parts_of_batch(7, 3)
    ahead = Prefetcher(images, parts, workers)
    for step in (0, 1, 2, 9, 10, 11, 12):
        assert torch.equal(torch.cat([ahead(step, part) for part in parts]), images(step))


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

    unnamed = Augmentation(dataset, config_of(folder, shift=0))
    assert unnamed.may_flip.all()  # only the built-in emoji know that flags must not be
    never = Augmentation(dataset, config_of(folder, shift=0, flip=False))
    assert torch.equal(never(images, indices, generator_for(2)), images)


class Plain:
    """Images of one size, of which each pixel is the number of the image."""

    def __init__(self, image_size: int) -> None:
        self.image_size = image_size
        self.asked: list[int] = []  # images at once

    def images(self, indices: Tensor, /) -> Tensor:
        self.asked.append(len(indices))
        shape = (-1, 3, self.image_size, self.image_size)
        return indices.to(torch.uint8)[:, None, None, None].expand(shape)


def test_a_mapped_data_set_gives_a_row_for_each_image_in_the_order_asked_for(
    dataset: ImageDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pqvae.data.batches.CHUNK_PIXELS", 9 * SIZE**2)  # chunks of 9, 9, 2
    order = [12, 3, 3, 0, *range(13), 7, 7, 1]
    images = dataset.images(order)
    weight = torch.ones((), requires_grad=True)
    assert torch.equal(map_images(dataset, order, lambda batch: batch), images)
    assert torch.equal(map_images(dataset, torch.tensor(order), lambda batch: batch), images)
    means, firsts = map_images(
        dataset, order, lambda batch: (batch.float().mean((1, 2, 3)) * weight, batch[:, 0]), "means"
    )
    assert torch.equal(means, images.float().mean((1, 2, 3)))
    assert torch.equal(firsts, images[:, 0])
    assert not means.requires_grad
    assert map_images(dataset, [], lambda batch: batch.flatten(1)).shape == (0, 3 * SIZE**2)


@pytest.mark.parametrize(("size", "chunk"), [(8, 4096), (32, 256), (64, 64), (256, 8)])
def test_chunks_of_a_mapped_data_set_are_bounded_by_pixels_but_hold_at_least_eight(
    size: int, chunk: int
) -> None:
    images = Plain(size)
    numbers = torch.arange(2 * chunk + 3)
    found = map_images(images, numbers, lambda batch: batch[:, 0, 0, 0])
    assert torch.equal(found, numbers.to(torch.uint8))
    assert images.asked == [chunk, chunk, 3]
    assert chunk == 8 or chunk * size**2 == CHUNK_PIXELS
