"""Better codes at test time: a wider search, and refinement by what they decode to."""

from typing import TYPE_CHECKING

import pytest
import torch
from torch import Tensor

from stage1_tokenizer.refine import refine
from stage1_tokenizer.tokenizer import Tokenizer

if TYPE_CHECKING:
    from tests.conftest import BlobImages


def test_wider_beams_describe_held_out_images_better(
    tiny_tokenizer: Tokenizer, blob_images: "BlobImages"
) -> None:
    images = blob_images(64, 16, 99)
    latents = tiny_tokenizer.latents(images).detach()
    errors = []
    for beam in (1, 4, 16):
        codes = tiny_tokenizer.encode(images, beam=beam)
        left = latents - tiny_tokenizer.quantizer.decode(codes)
        errors.append(float(left.square().mean()))
    assert errors[0] > errors[1] > errors[2]
    with pytest.raises(ValueError, match="beam is 0, but must be at least 1"):
        tiny_tokenizer.encode(images, beam=0)


def test_refined_codes_decode_better_and_never_worse(
    tiny_tokenizer: Tokenizer, blob_images: "BlobImages"
) -> None:
    images = blob_images(64, 16, 99)

    def errors(codes: Tensor) -> Tensor:
        return (tiny_tokenizer.decode(codes) - images).square().mean((1, 2, 3))

    greedy, refined = tiny_tokenizer.encode(images), tiny_tokenizer.encode(images, refine=8)
    assert (errors(refined) <= errors(greedy)).all()
    assert errors(refined).mean() < 0.99 * errors(greedy).mean()
    unchanged = (refined == greedy).all(1)
    assert torch.equal(errors(refined)[unchanged], errors(greedy)[unchanged])
    with torch.inference_mode():
        assert torch.equal(tiny_tokenizer.encode(images, refine=8), refined)
    alone = torch.cat([tiny_tokenizer.encode(image[None], refine=8) for image in images[:4]])
    assert torch.equal(alone, refined[:4])
    with pytest.raises(ValueError, match="refine is -1, but must be at least 0"):
        tiny_tokenizer.encode(images, refine=-1)


def test_refinement_is_descent_of_each_image_by_itself(
    tiny_tokenizer: Tokenizer, blob_images: "BlobImages"
) -> None:
    images = blob_images(6, 16, 99)
    quantizer, decoder = tiny_tokenizer.quantizer, tiny_tokenizer.decoder()
    with torch.no_grad():
        latents = tiny_tokenizer.latents(images)
    found = refine(quantizer, decoder, images, latents, steps=3)
    for row in range(6):
        latent, errors = latents[row : row + 1], []
        for _ in range(4):
            f_N = quantizer.decode(quantizer.encode(latent)).requires_grad_()
            error = (decoder(f_N, torch.tensor([6])).clamp(-1, 1) - images[row]).square().sum()
            errors.append(error.item())
            latent = latent - 0.06 * torch.autograd.grad(error, f_N)[0]
        kept = (tiny_tokenizer.decode(found[row : row + 1]) - images[row]).square().sum()
        assert float(kept) == pytest.approx(min(errors), rel=1e-4)
