"""Better codes at test time: move the latent against the error of the decoded image.

The encoder answers for all images at once; here each image has a few steps for itself (Campos et
al., "Content adaptive optimization for neural image compression", 2019).
"""

from typing import Any

import torch
from torch import Tensor

from stage1_tokenizer.decoders.contract import Decoder
from stage1_tokenizer.quantizers.contract import Quantizer

STEP = 0.06  # times the gradient of an image's squared error: far from overshooting


def refine(
    quantizer: Quantizer[Any],
    decoder: Decoder,
    images: Tensor,
    latents: Tensor,
    steps: int,
    beam: int = 1,
) -> Tensor:
    """Descend the decoder's error straight through the quantizer; the best codes on the way.

    Args:
        quantizer: Makes the codes.
        decoder: Judges them, all N at once.
        images: float (B, 3, H, W) in [-1, 1].
        latents: Theirs, normalized, float32 (B, D).
        steps: At least 1.
        beam: As in ``Quantizer.encode``.

    Returns:
        Codes, int64 (B, N); at least as good as those of the latents.
    """
    # Callers may be in inference mode, whose tensors carry no gradients, but copies do.
    with torch.inference_mode(False), torch.enable_grad():
        images, latents = images.clone(), latents.clone()
        codes = quantizer.encode(latents, beam)
        lengths = torch.full((len(codes),), quantizer.num_codes, device=codes.device)
        best, least = codes, images.new_full((len(codes),), torch.inf)
        for step in range(steps + 1):
            f_N = quantizer.decode(codes).detach().requires_grad_()
            decoded = decoder(f_N, lengths).float().clamp(-1, 1)
            errors = (decoded - images).square().sum((1, 2, 3))
            best = torch.where((errors < least).unsqueeze(1), codes, best)
            least = torch.minimum(errors.detach(), least)
            if step < steps:
                (gradient,) = torch.autograd.grad(errors.sum(), f_N)
                latents = latents - STEP * gradient
                codes = quantizer.encode(latents, beam)
    return best
