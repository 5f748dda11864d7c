"""The directions of the latent in which the first codes say something."""

import torch
from torch import Tensor

from pqvae.errors import UserError
from stage1_tokenizer.quantizers.contract import Quantizer
from stage1_tokenizer.quantizers.residual import ResidualQuantizer


def as_residual(quantizer: Quantizer) -> ResidualQuantizer:
    """The quantizer, where it is one whose late positions share directions.

    Raises:
        UserError: It is of another kind.
    """
    if not isinstance(quantizer, ResidualQuantizer):
        kind = quantizer.config.kind
        raise UserError(f"codes of quantizer.kind={kind} have no directions; residual ones do")
    return quantizer


@torch.no_grad()
def first_directions(quantizer: ResidualQuantizer, codes: int, count: int) -> Tensor:
    """Directions that the first codes use most: orthonormal, float32 (D, count).

    Those columns of the shared basis that the first positions describe come first, as the entries
    of these are along them and nothing else; the one along which learned entries say most is the
    first. Where there is room for more, they are principal ones of what learned entries say beyond.
    """
    L = len(quantizer.learned.sizes)
    entries = torch.cat([quantizer.meaning(book) for book in range(min(codes, L))])
    columns = entries.new_zeros(entries.shape[1], 0)
    if codes > L:
        shared = quantizer.shared
        spreads, supports = shared.spreads[: codes - L], shared.supports[: codes - L]
        energies = shared.basis.new_zeros(shared.basis.shape[1])
        mean = shared.vectors.square().mean(0)
        energies.index_add_(0, supports.flatten(), (spreads.square() * mean).flatten())
        used = energies.topk(min(count, int((energies > 0).sum()))).indices
        columns = shared.basis[:, used]
        said = (entries @ columns).square().sum(0)
        columns = columns[:, said.argsort(descending=True)]
    beyond = entries - (entries @ columns) @ columns.T
    principal = torch.linalg.eigh(beyond.T @ beyond).eigenvectors.flip(1)
    # Of both together, as principal directions without energy may be any.
    return torch.linalg.qr(torch.cat([columns, principal], dim=1)[:, :count]).Q
