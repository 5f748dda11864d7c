"""A small prior in which every weight counts, and codes and classes for it."""

import torch
from torch import Tensor, nn

from pqvae.randomness import generator_for
from stage2_prior.books import Codebooks
from stage2_prior.config import PriorConfig
from stage2_prior.prior import Prior
from stage2_prior.sequence import Sequence

SIZES = (7, 4, 16, 2, 9)
# The last three positions share a codebook of 16 entries of 3 numbers.
CODEBOOKS = Codebooks(SIZES, (0, 1, 2, 2, 2), (None, None, 3))
N, CLASSES, BATCH = len(SIZES), 3, 6

TINY = PriorConfig(width=64, depth=2, heads=2, code_features=8)


def make_prior(
    config: PriorConfig = TINY,
    classes: int = CLASSES,
    codebooks: Codebooks = CODEBOOKS,
    sequence: Sequence | None = None,
) -> Prior:
    """A prior in which every weight counts: training would move those that start at zero, too."""
    torch.manual_seed(0)
    names, counts = tuple(f"class {i}" for i in range(classes)), (5,) * classes
    prior = Prior(config, codebooks, names, counts, sequence)
    for parameter in prior.parameters():
        nn.init.normal_(parameter, std=0.1)
    for book in prior.books:
        placements = None if book.placements is None else torch.randn(book.placements.shape)
        book.set_meaning(torch.randn(book.meaning.shape), placements)
    return prior.eval()


def random_codes(seed: int = 0) -> Tensor:
    columns = [
        torch.randint(size, (BATCH,), generator=generator_for(seed, i))
        for i, size in enumerate(SIZES)
    ]
    return torch.stack(columns, dim=1)


LABELS = torch.arange(BATCH) % CLASSES
