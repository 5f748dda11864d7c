"""Which images, and how they are augmented."""

from typing import Annotated

from pydantic import Field

from pqvae.config import HARMLESS, PLACE, config_class

NAMED = ("emoji", "cifar10")  # sources that are no path
LARGEST = 4096  # pixels, height and width


@config_class
class DataConfig:
    path: Annotated[str, PLACE] = Field(
        default="emoji",
        min_length=1,
        description="emoji, cifar10, a folder or a glob of shards; docs/data.md: how it is read",
    )
    image_size: int = Field(
        default=32,
        ge=8,
        le=LARGEST,
        description="pixels; images of other sizes are centre-cropped and resized",
    )
    shift: int = Field(
        default=2,
        ge=0,
        le=LARGEST // 2,
        description="augmentation: random shifts by up to so many pixels",
    )
    shift_share: float = Field(
        default=0.25, ge=0, le=1, description="of the images that are shifted"
    )
    flip: bool = Field(default=True, description="augmentation: random horizontal flip")
    no_flip_classes: tuple[str, ...] = Field(
        default=(), description="classes that a flip would falsify, besides those the source names"
    )
    workers: Annotated[int, HARMLESS] = Field(
        default=2, ge=0, le=64, description="threads that prepare batches ahead; 0: none"
    )

    def __post_init__(self) -> None:
        if self.shift > self.image_size // 2:
            raise ValueError(f"data.shift is {self.shift}, but must be 0 to half of the image size")


@config_class
class DataPlace:
    path: Annotated[str | None, HARMLESS] = Field(
        default=None,
        description="where the images of the tokenizer are now, if not where they were",
    )
