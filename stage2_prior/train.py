"""Train a prior: ``python -m stage2_prior.train [config.yaml] [key=value ...]``."""

import sys
from collections.abc import Sequence

from pqvae.cli import command, wants_help

HELP = """\
Train a prior: what the codes of an image are likely to be, coarse to fine.

usage: python -m stage2_prior.train [config.yaml] [key=value ...]

examples:
  python -m stage2_prior.train
  python -m stage2_prior.train tokenizer=runs/photos out=runs/photos-prior
  python -m stage2_prior.train prior.width=384 prior.depth=8 trainer.steps=20000

Without arguments it reads runs/tokenizer and the images that this was trained on, and writes
runs/prior. The same command again goes on where it was cut. configs/emoji-prior.yaml lists every
key with its default.
"""


@command
def main(argv: Sequence[str] | None = None) -> None:
    """The command line; --help answers before torch is imported."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if wants_help(arguments):
        print(HELP, end="")
        return
    from pqvae.config import load_config, parse_config_arguments
    from stage2_prior.config import Config
    from stage2_prior.task import run

    run(load_config(Config, *parse_config_arguments(arguments)))


if __name__ == "__main__":
    sys.exit(main())
