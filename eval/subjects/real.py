"""Real images to compare with: a split that training left, or others, which are taken as they are.

What a model was trained on is split as its training split it: a carved test split is held out. Of
images that it has never seen, nothing is carved: a folder without splits counts whole.
"""

import contextlib
import functools
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from eval.subjects.samples import Samples
from pqvae.config import config_from_dict
from pqvae.data.config import NAMED, DataConfig
from pqvae.data.dataset import ImageDataset, open_dataset, open_whole
from pqvae.data.sample import SPLITS, Split
from pqvae.errors import UserError
from pqvae.pretrained import require_path
from sampling.folder import RECORD


@dataclass(frozen=True, slots=True)
class RealImages:
    """A data set by its splits, each opened when it is called for."""

    path: str
    splits: Mapping[Split, Callable[[], ImageDataset]]

    @property
    def whole(self) -> bool:
        """Whether there is nothing to choose from: all images are one."""
        return set(self.splits) == {"train"}

    def choose(self, asked: Split | None, default: Split) -> Split:
        """The split that is asked for with --split, or the default; all images where they are one.

        Raises:
            UserError: There is no such split.
        """
        if self.whole:
            if asked is not None:
                raise UserError(
                    f"--split {asked}: {self.path} has no splits, so that all its images count; "
                    "leave --split out"
                )
            return "train"
        split = default if asked is None else asked
        if split not in self.splits:
            known = " and ".join(known for known in SPLITS if known in self.splits)
            raise UserError(
                f"--split {split}: {self.path} has no {split} images, only {known}; give one of "
                "these"
            )
        return split

    def held_out(self, split: Split) -> Split | None:
        """The split whose images stand beside this one: test, where that is another."""
        others = (other for other in ("test", "val", "train") if other != split)
        return next((other for other in others if other in self.splits), None)

    def called(self, split: Split) -> str:
        """What tables call a split."""
        return "all images" if self.whole else f"{split} split"


def open_trained_on(config: DataConfig) -> RealImages:
    """The splits of images that a model was trained on."""
    splits = {split: functools.partial(open_dataset, config, split) for split in SPLITS}
    return RealImages(config.path, splits)


def open_named(config: DataConfig, trained_on: str | None) -> RealImages:
    """The splits of images at a place that the user names.

    Args:
        config: The place.
        trained_on: The content hash of what a model was trained on, if that is known: if it is
            these images, moved, they are still split as training split them.

    Raises:
        UserError: There are no such images.
    """
    real = RealImages(config.path, open_whole(config))
    if real.whole and trained_on:
        with contextlib.suppress(UserError):  # too few to be split
            if open_dataset(config, "train").matches(trained_on):
                return open_trained_on(config)
    return real


def open_reference(samples: Samples, path: str | None) -> RealImages:
    """What samples are to be compared with: the data at ``path``, else what their record names.

    Raises:
        UserError: Neither names data, they are not there, or the sizes differ.
    """
    record = samples.path / RECORD
    data = samples.record.get("data", {})
    if not isinstance(data, dict):
        raise UserError(f"{record}: 'data' must be an object; generate the samples anew")
    if path is None and not data:
        raise UserError(f"{record} names no data; pass --reference, such as --reference emoji")
    if path is None and isinstance(data.get("path"), str):
        require_path(data["path"], f"the images that {record} names", "--reference DATA")
    own = path is None or same_place(path, data.get("path"))
    if not own:
        data = {"path": path, "image_size": samples.image_size}
    config = config_from_dict(DataConfig, data, str(record if path is None else "--reference"))
    if config.image_size != samples.image_size:
        raise UserError(
            f"{samples.path}: the images have {samples.image_size} pixels a side, but {record} "
            f"says {config.image_size}; generate the samples anew"
        )
    return open_trained_on(config) if own else open_named(config, samples.record.get("data_hash"))


def same_place(first: str, second: object) -> bool:
    """Whether two values of ``data.path`` are one, however they are spelled."""
    if not isinstance(second, str) or first in NAMED or second in NAMED:
        return first == second
    places = (os.path.realpath(os.path.expanduser(path)) for path in (first, second))
    return len(set(places)) == 1
