"""A data set as codes: encoded once under several augmentations, kept on disk, verified on load."""

import functools
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

import safetensors
import torch
from safetensors.torch import load_file, save
from torch import Tensor

from pqvae import distributed
from pqvae.console import Progress
from pqvae.data.batches import Augmentation, chunk_size
from pqvae.data.dataset import ImageDataset
from pqvae.files import atomic_path
from pqvae.images import to_float
from pqvae.randomness import Stream, stream_generator
from stage1_tokenizer import Tokenizer

# Images whose augmentation is drawn together; those of one process follow one another in them.
BLOCK = 256


@dataclass(frozen=True)
class EncodedDataset:
    codes: Tensor  # int32 (views, n, N); view 0 is the images as they are
    labels: Tensor | None  # int64 (n,)


def encode_dataset(
    tokenizer: Tokenizer,
    dataset: ImageDataset,
    augmentation: Augmentation | None,
    views: int,
    seed: int,
    folder: Path,
) -> EncodedDataset:
    """Encode a data set, or read the codes of an earlier call with the same arguments.

    Of several processes each encodes its share. Each view is kept as soon as it is done.

    Args:
        tokenizer: On the device to encode on.
        dataset: n images.
        augmentation: How the views after the first differ from the images; None with one view.
        views: Number of encodings of each image, at least 1.
        seed: Of the augmentations.
        folder: Where the codes are kept.
    """
    codes = torch.empty(views, len(dataset), tokenizer.num_codes, dtype=torch.int32)
    content = [tokenizer.codes_hash, dataset.content_hash]
    progress = Progress("encoding", views * len(dataset))
    for view in range(views):
        identity: list[object] = [*content]
        if view > 0 and augmentation is not None:
            identity += [view, seed, augmentation.shift, augmentation.shift_share]
            identity += [hashlib.sha256(augmentation.may_flip.numpy().data).hexdigest()]
        key = hashlib.sha256(json.dumps(identity).encode()).hexdigest()
        path = folder / f"{key[:16]}.safetensors"
        kept = distributed.on_rank_zero(functools.partial(_read, path, key, codes.shape[1:]))
        if kept is not None:
            codes[view] = kept
            progress.skip(len(dataset))
            continue
        codes[view].zero_()
        blocks = torch.arange(len(dataset)).split(BLOCK)
        for number in range(distributed.rank(), len(blocks), distributed.world_size()):
            indices = blocks[number]
            for part in _parts(len(indices), chunk_size(dataset.image_size)):
                images = dataset.images(indices[part])
                if view > 0 and augmentation is not None:
                    generator = stream_generator(seed, Stream.ENCODED_VIEWS, view, number)
                    images = augmentation(images, indices, generator, part)
                images = to_float(images).to(tokenizer.device)
                codes[view, indices[part]] = tokenizer.encode(images).to(codes.dtype).cpu()
            progress.advance(distributed.world_size() * len(indices))
        distributed.all_reduce_sum([codes[view]])
        distributed.on_rank_zero(functools.partial(_keep, path, key, codes[view]))
    progress.close()
    return EncodedDataset(codes, dataset.labels)


def unigram_bits(train_codes: Tensor, codes: Tensor, sizes: tuple[int, ...]) -> Tensor:
    """Bits of codes (n, N) under one add-one histogram per position: float64 (N,)."""
    costs = []
    for position, size in enumerate(sizes):
        counts = torch.bincount(train_codes[:, position], minlength=size).double() + 1
        costs.append(-(counts / counts.sum()).log2()[codes[:, position]].mean())
    return torch.stack(costs)


def _parts(total: int, size: int) -> list[slice]:
    return [slice(start, min(start + size, total)) for start in range(0, total, size)]


def _keep(path: Path, key: str, codes: Tensor) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(path) as temporary:
        metadata = {"key": key, "sha256": _digest(codes)}
        temporary.write_bytes(save({"codes": codes}, metadata))  # as in pretrained.save_model


def _digest(codes: Tensor) -> str:
    return hashlib.sha256(codes.numpy().data).hexdigest()


def _read(path: Path, key: str, shape: torch.Size) -> Tensor | None:
    """The codes in the file, or None where they are missing, damaged or of something else."""
    try:
        with safetensors.safe_open(path, "pt") as file:
            metadata = file.metadata()
        codes = load_file(path)["codes"]
    except (OSError, KeyError, safetensors.SafetensorError):
        return None
    intact = metadata == {"key": key, "sha256": _digest(codes)} and codes.shape == shape
    return codes if intact else None
