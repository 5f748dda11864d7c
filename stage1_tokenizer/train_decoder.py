"""Command: train the vivid decoder of a tokenizer."""

import sys

from pqvae.cli import train_command
from stage1_tokenizer.decoder_config import Config

SUMMARY = """\
Train a decoder for eyes, the vivid one, beside a tokenizer's faithful one; its codes stay the same.
It learns by the features of a network that was trained on the labels of ImageNet, and PSNR is not
its aim. Without arguments it writes runs/vivid, and into the model in runs/tokenizer. The same
command again resumes where it was cut."""
EXAMPLES = """\
  python -m stage1_tokenizer.train_decoder
  python -m stage1_tokenizer.train_decoder tokenizer=runs/photos out=runs/photos-vivid
  python -m stage1_tokenizer.train_decoder trainer.steps=5000 objective.squared_error=2"""


def run(config: Config) -> None:
    """Only here is torch imported."""
    from stage1_tokenizer import vivid_task

    vivid_task.run(config)


main = train_command("stage1_tokenizer.train_decoder", SUMMARY, EXAMPLES, Config, run)

if __name__ == "__main__":
    sys.exit(main())
