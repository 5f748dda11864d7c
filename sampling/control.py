"""Control by prefix: an image begins with the codes of a picture.

    variations   c_1 ... c_K of A, the codes after them drawn from the prior, given these
    mix          c_1 ... c_K of A, the codes after them those of B: f_K(A) + f_k(B) - f_K(B)

A mix adds what B's codes say after its own first K to what A's first K say. (To go on encoding B's
latent from what A's codes leave of it would bring B back: the later codes undo A's.)
"""

import argparse
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pqvae.images import read_picture, to_float
from stage1_tokenizer import Tokenizer
from stage2_prior import Prior
from stage2_prior.provenance import check_known

CLASSES_AT_ONCE = 64


@dataclass(frozen=True)
class Control:
    """What images begin with.

    Attributes:
        kept: int64 (1, j), their first codes; j is 0 where all are drawn, k where none are.
        class_weights: How often each class is to be drawn, in any unit.
        settings: Part of what makes them these samples: K, and the sha256 of the pictures' pixels.
    """

    kept: Tensor
    class_weights: Sequence[float]
    settings: dict[str, Any]


def open_control(args: argparse.Namespace, prior: Prior, tokenizer: Tokenizer) -> Control:
    """Read the pictures that --from or --mix names, and take the codes that they are asked for.

    Args:
        args: Of ``sampling.generate``; ``prefix`` is settled, ``keep`` None where all are drawn.
        prior: Whose classes the images are to be of.
        tokenizer: Makes the codes.

    Raises:
        UserError: A file is no picture, or no prefix has ``keep`` codes.
    """
    if args.keep is None:
        return Control(torch.empty(1, 0, dtype=torch.int64), prior.class_counts, {})
    tokenizer.quantizer.check_cut(args.keep, f"--keep {args.keep}")
    if not args.mix:
        check_known(prior, "--keep", args.keep)
    paths = args.mix or [args.picture]
    size = tokenizer.config.image_size
    pictures = torch.stack([read_picture(path, size) for path in paths])
    codes = tokenizer.encode(to_float(pictures).to(tokenizer.device)).cpu()
    digests = [hashlib.sha256(picture.numpy().tobytes()).hexdigest() for picture in pictures]
    kept, settings = codes[:1, : args.keep], {"keep": args.keep}
    if args.mix:
        kept = torch.cat([kept, codes[1:, args.keep : args.prefix]], dim=1)
        settings |= {"plan": digests[0], "details": digests[1]}
        return Control(kept, (), settings)
    weights = class_weights(prior, codes, args.keep) if prior.class_names else ()
    return Control(kept, weights, {**settings, "from": digests[0]})


@torch.inference_mode()
def class_weights(prior: Prior, codes: Tensor, keep: int) -> list[float]:
    """How likely each class is given the first codes of an image: its share times theirs in it.

    Args:
        prior: With classes. Where its order is not coarse to fine, the codes that come before these
            in it are taken to be the image's own.
        codes: All codes of the image, int64 (1, N).
        keep: How many of them are known, 1 to N.

    Returns:
        A number for each class, the largest about 1 times its count.
    """
    labels = torch.arange(len(prior.class_names), device=prior.device)
    bits = [
        prior.bits(codes.expand(len(part), -1), part)[:, :keep].sum(1).cpu().double()
        for part in labels.split(CLASSES_AT_ONCE)
    ]
    bits = torch.cat(bits)
    return (torch.tensor(prior.class_counts) * torch.exp2(bits.min() - bits)).tolist()
