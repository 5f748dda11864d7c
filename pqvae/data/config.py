"""Which images, and how they are augmented."""

from dataclasses import dataclass

SOURCES_IN_WORDS = "emoji, cifar10, a folder of images or of .tar shards, or a glob of shards"


@dataclass(frozen=True, kw_only=True, slots=True)
class DataConfig:
    path: str = (
        "emoji"  # emoji | cifar10 | folder of images, class folders, shards | glob of shards
    )
    image_size: int = 32  # pixels; images of other sizes are centre-cropped and resized
    shift: int = 2  # augmentation: random shifts by up to this many pixels ...
    shift_share: float = 0.25  # ... of this share of the images
    flip: bool = True  # augmentation: random horizontal flip
    no_flip_classes: tuple[str, ...] = ("flags", "symbols")  # classes that a flip would falsify
    workers: int = 2  # threads that prepare batches ahead; 0: each is made when it is needed

    def __post_init__(self) -> None:
        if not self.path:
            raise ValueError(f"data.path is empty; give {SOURCES_IN_WORDS}")
        if self.image_size < 8:
            raise ValueError(f"data.image_size is {self.image_size}, but must be at least 8")
        if not 0 <= self.shift <= self.image_size // 2:
            raise ValueError(f"data.shift is {self.shift}, but must be 0 to half of the image size")
        if not 0 <= self.shift_share <= 1:
            raise ValueError(f"data.shift_share is {self.shift_share}, but must be 0 to 1")
        if not 0 <= self.workers <= 64:
            raise ValueError(f"data.workers is {self.workers}, but must be 0 to 64")
