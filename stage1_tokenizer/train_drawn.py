"""Command: train the drawing decoder of a tokenizer."""

import sys

from pqvae.cli import train_command
from stage1_tokenizer.drawn_config import Config

SUMMARY = """\
Train a decoder that draws what the codes leave unsaid, another picture for each seed, from any
number of codes and from none; the codes stay the same. It is for photos, where few codes and any
decoder that does not draw leave a blur, and takes an hour of two cores. It learns by the features
of a network that was trained on the labels of ImageNet. It becomes the decoder "drawn" of the model
in the tokenizer's folder. The same command again resumes where it was cut."""
EXAMPLES = """\
  python -m stage1_tokenizer.train_drawn tokenizer=runs/cifar10
  python -m stage1_tokenizer.train_drawn configs/cifar10-drawn.yaml"""


def run(config: Config) -> None:
    """Only here is torch imported."""
    from stage1_tokenizer import drawn_task

    drawn_task.run(config)


main = train_command("stage1_tokenizer.train_drawn", SUMMARY, EXAMPLES, Config, run)

if __name__ == "__main__":
    sys.exit(main())
