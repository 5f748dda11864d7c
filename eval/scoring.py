"""The score of samples: against the train split, with the test split's own score as the floor."""

import sys
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from torch_fidelity.version import __version__ as torch_fidelity_version

from eval.extractors import WEIGHTS_FILE, Inception
from eval.features import Features, Images, extract
from eval.metrics import FEWEST, METRIC_SEED, compute
from eval.report import Report
from eval.samples import Samples
from pqvae.cli import UserError
from pqvae.datasets import DataConfig, ImageDataset, open_dataset
from pqvae.runtime import versions

FEATURES = 2048  # fewer images than this leave FID's covariance singular
SUBSET_SEED = 0  # fixed, so that every run draws the same reference images and finds them cached


def open_floor(reference: DataConfig) -> ImageDataset | None:
    """The test split, or None, with a line on stderr, where there is none."""
    try:
        return open_dataset(reference, "test")
    except UserError as error:
        print(f"no floor: {error}", file=sys.stderr)
        return None


def score(
    samples: Samples,
    train: ImageDataset,
    test: ImageDataset | None,
    inception: Inception,
    metrics: Sequence[str],
    *,
    reference_n: int | None = None,
    device: torch.device,
    batch_size: int | None = None,
    cache: Path | None = None,
    command: str = "",
    started: float | None = None,
) -> Report:
    """Score samples against the train split of a data set, and its test split likewise.

    Args:
        samples: The images to be scored.
        train: The reference.
        test: Held-out images for the floor, or None for no floor.
        inception: The feature network.
        metrics: Of "fid", "kid", "isc", "prc".
        reference_n: Use a fixed random subset of so many reference images; all by default.
        device: Where the features are computed.
        batch_size: Images per forward pass; by default what suits the device.
        cache: Folder of cached features, or None.
        command: How this was called, for the report.
        started: ``time.monotonic()`` at the start, for the report.

    Raises:
        UserError: Too few images, or none of the metrics is possible with these weights.
    """
    started = time.monotonic() if started is None else started
    metrics, notes = _without_missing(metrics, inception)
    _require_images(metrics, len(samples), str(samples.folder))
    if reference_n is not None and reference_n > len(train):
        raise UserError(f"--reference-n {reference_n}: {train.name} holds {len(train)} images")
    reference_n = reference_n or len(train)
    _require_images(metrics, reference_n, train.name)
    floor_n = 0 if test is None else min(len(test), len(samples))
    if floor_n < max(FEWEST[metric] for metric in metrics):
        test, floor_n = None, 0
        notes.append("no floor: the reference has no test split, or a very small one")

    def features(images: Images, indices: Sequence[int], label: str) -> Features:
        return extract(
            inception,
            images,
            indices,
            device=device,
            batch_size=batch_size,
            cache=cache,
            label=label,
        )

    # The samples come first: one that is damaged should be found before an hour of reference.
    generated = features(samples, range(len(samples)), "samples")
    real = features(train, _subset(len(train), reference_n), "reference")
    scores = compute(metrics, generated, real)
    floor: dict[str, float] = {}
    if test is not None:
        held_out = features(test, _subset(len(test), floor_n), "floor")
        floor = compute(metrics, held_out, real)
        if floor_n < len(samples):
            notes.append(
                f"the floor has fewer images ({floor_n:,}), which raises its FID, not its KID"
            )
    fewest = min(len(samples), reference_n)
    if "fid" in metrics and fewest < FEATURES:
        notes.append(
            f"FID of {fewest:,} images, fewer than its {FEATURES:,} features, is biased upwards; "
            "compare it at equal counts only, or compare KID, which is unbiased"
        )
    return Report(
        scores=scores,
        floor=floor,
        samples=str(samples.folder),
        samples_n=len(samples),
        samples_total=samples.total,
        samples_hash=generated.content_hash,
        sampler=samples.record,
        reference=train.name,
        reference_hash=train.content_hash,
        reference_split="train",
        reference_n=reference_n,
        reference_total=len(train),
        floor_n=floor_n,
        extractor=inception.name,
        weights=inception.weights_name,
        weights_digest=inception.weights_digest,
        resize="299x299 by TensorFlow 1's bilinear, in the network",
        dtype="features float32, statistics float64",
        metric_seed=METRIC_SEED,
        subset_seed=SUBSET_SEED,
        device=str(device),
        versions={**versions(), "torch-fidelity": torch_fidelity_version},
        command=command,
        seconds=round(time.monotonic() - started, 1),
        notes=tuple(notes),
    )


def _require_images(metrics: Sequence[str], n: int, where: str) -> None:
    for metric in metrics:
        if n < FEWEST[metric]:
            raise UserError(f"{where}: {metric} needs {FEWEST[metric]} images or more, not {n}")


def _without_missing(
    metrics: Sequence[str], inception: Inception
) -> tuple[tuple[str, ...], list[str]]:
    """The metrics that these weights allow, and a note on the one they do not."""
    if "isc" not in metrics or inception.has_logits:
        return tuple(metrics), []
    reason = (
        f"Inception Score needs the classifier, which {inception.weights_name} lacks; "
        f"--weights {WEIGHTS_FILE} has it"
    )
    if tuple(metrics) == ("isc",):
        raise UserError(f"--metrics isc: {reason}")
    return tuple(metric for metric in metrics if metric != "isc"), [f"left out: {reason}"]


def _subset(total: int, n: int) -> list[int]:
    """The first n of a fixed random order: a larger subset begins with the smaller one."""
    order = torch.randperm(total, generator=torch.Generator().manual_seed(SUBSET_SEED))
    return order[:n].tolist()
