"""Command: train a prior."""

import sys

from pqvae.cli import train_command
from stage2_prior.config import Config

SUMMARY = """\
Train a prior: what the codes of an image are likely to be, coarse to fine.
Without arguments it reads runs/tokenizer and the images that this was trained on, and writes
runs/prior. The same command again resumes where it was cut."""
EXAMPLES = """\
  python -m stage2_prior.train
  python -m stage2_prior.train tokenizer=runs/photos out=runs/photos-prior
  python -m stage2_prior.train prior.width=384 prior.depth=8 trainer.steps=20000"""


def run(config: Config) -> None:
    """Only here is torch imported."""
    from stage2_prior import task

    task.run(config)


main = train_command("stage2_prior.train", SUMMARY, EXAMPLES, Config, run)

if __name__ == "__main__":
    sys.exit(main())
