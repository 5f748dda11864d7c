"""Command: train a tokenizer."""

import sys

from pqvae.cli import train_command
from stage1_tokenizer.config import Config

SUMMARY = """\
Train a tokenizer: images -> ordered codes, of which every prefix is a whole image.
Without arguments it trains on the built-in emoji and writes runs/tokenizer. The same command again
resumes where it was cut."""
EXAMPLES = """\
  python -m stage1_tokenizer.train
  python -m stage1_tokenizer.train data.path=photos/ out=runs/photos
  python -m stage1_tokenizer.train configs/cifar10.yaml trainer.steps=20000"""


def run(config: Config) -> None:
    """Only here is torch imported."""
    from stage1_tokenizer import task

    task.run(config)


main = train_command("stage1_tokenizer.train", SUMMARY, EXAMPLES, Config, run)

if __name__ == "__main__":
    sys.exit(main())
