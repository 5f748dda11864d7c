"""Command: train the small decoder of a tokenizer, for browsers."""

import sys

from pqvae.cli import train_command
from stage1_tokenizer.small_config import Config

SUMMARY = """\
Train a small decoder of the first codes, by squared error: as many as a placeholder of a few bytes
holds. The codes stay the same. It becomes the decoder "small" of the model in the tokenizer's
folder, and stage2_prior.export_web writes it for browsers. The same command again resumes where
it was cut."""
EXAMPLES = """\
  python -m stage1_tokenizer.train_small
  python -m stage1_tokenizer.train_small tokenizer=runs/cifar10 out=runs/cifar10-small"""


def run(config: Config) -> None:
    """Only here is torch imported."""
    from stage1_tokenizer import small_task

    small_task.run(config)


main = train_command("stage1_tokenizer.train_small", SUMMARY, EXAMPLES, Config, run)

if __name__ == "__main__":
    sys.exit(main())
