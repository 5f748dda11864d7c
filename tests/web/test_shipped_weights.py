"""The weights that lie in ``web/``: of the shipped model, small, and worth showing."""

import base64
import json

import numpy as np
import torch

from pqvae.images import decode_whole, psnr, to_uint8
from stage2_prior.codec.pictures import Codec
from stage2_prior.codec.web_weights import WebWeights
from tests.web.conftest import WEB, Decode

WEIGHTS = WEB / "photos.bin"
MOST_BYTES = 250_000
BYTES = 24


def test_they_show_placeholders_of_the_shipped_model_as_python_does(decode: Decode) -> None:
    assert WEIGHTS.stat().st_size <= MOST_BYTES
    codec, weights = Codec.from_pretrained("photos"), WebWeights.from_bytes(WEIGHTS.read_bytes())
    examples = json.loads((WEB / "examples.json").read_text())
    shown = decode([each["placeholder"] for each in examples], WEIGHTS)
    gains = []
    for each, said in zip(examples, shown, strict=True):
        content = base64.b64decode(each["picture"].partition(",")[2])
        original = decode_whole(content, codec.image_size)[0].unsqueeze(0)
        assert codec.fixed.bytes_of(len(said["codes"])) == BYTES
        assert said["codes"] == codec.read_placeholder(each["placeholder"])
        pixels = np.array(said["data"], np.uint8).reshape(said["height"], said["width"], 4)
        picture = torch.from_numpy(pixels[..., :3].copy()).permute(2, 0, 1).unsqueeze(0)
        in_python = to_uint8(weights.decode(torch.tensor([said["codes"]])))
        assert (picture.int() - in_python.int()).abs().max() <= 2
        one_colour = original.float().mean((2, 3), keepdim=True).expand_as(original).byte()
        gains.append(float(psnr(picture, original) - psnr(one_colour, original)))
    assert min(gains) > 1
    assert sum(gains) / len(gains) > 4
