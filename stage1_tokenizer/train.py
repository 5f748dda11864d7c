"""Train a tokenizer: ``python -m stage1_tokenizer.train [config.yaml] [key=value ...]``."""

import sys
from collections.abc import Sequence

from pqvae.cli import command, wants_help

HELP = """\
Train a tokenizer: images -> ordered codes, of which every prefix is a whole image.

usage: python -m stage1_tokenizer.train [config.yaml] [key=value ...]

examples:
  python -m stage1_tokenizer.train
  python -m stage1_tokenizer.train data.path=photos/ out=runs/photos
  python -m stage1_tokenizer.train configs/cifar10.yaml trainer.steps=20000

Without arguments it trains on the built-in emoji and writes runs/tokenizer. The same command again
goes on where it was cut. configs/emoji.yaml lists every key with its default.
"""


@command
def main(argv: Sequence[str] | None = None) -> None:
    """The command line; --help answers before torch is imported."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if wants_help(arguments):
        print(HELP, end="")
        return
    from pqvae.config import load_config, parse_config_arguments
    from stage1_tokenizer.config import Config
    from stage1_tokenizer.task import run

    run(load_config(Config, *parse_config_arguments(arguments)))


if __name__ == "__main__":
    sys.exit(main())
