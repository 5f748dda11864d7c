"""What a browser needs to show placeholders: one safetensors file of int8 numbers and scales.

    z = sum of what each code says, along R directions      f_k ~ U z      picture = network(f_k, k)

Entries of the latent's thousand numbers would not fit; along the R directions of the small decoder
they do. Every int8 tensor is a float32 one divided by its scales, and rounded. Kernels are stored
as what an input number adds to the outputs around it, (k, k, in, out): then a convolution is a
transposed one of stride 1, and the browser has one function for all layers. docs/files.md lists
the tensors; ``web/pqvae.js`` reads them, and ``WebWeights.decode`` here is what it computes.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors import torch as safetensors
from torch import Tensor, nn

from pqvae.errors import UserError
from stage1_tokenizer import Tokenizer
from stage1_tokenizer.decoders.small import SmallDecoder
from stage1_tokenizer.directions import as_residual
from stage1_tokenizer.packing import round_to_int8
from stage1_tokenizer.quantizers.residual import ResidualQuantizer
from stage1_tokenizer.tokenizer import SMALL
from stage2_prior.codec.container import model_id

KEY, VERSION = "pqvae-web", 1
LEARNED_DIRECTIONS = 80  # that learned entries are stored along: less of them, for their number

Layer = tuple[Tensor, Tensor]  # kernel float32 (k, k, in, out), bias float32 (out,)


@dataclass(frozen=True, slots=True)
class WebModel:
    """What the header of the file says.

    Attributes:
        version: Of the layout.
        model: The first two bytes of the codes_hash, as hex; .pq files say the same.
        sizes: K_i of all N positions, to read codes by.
        codes: How many of them the weights know.
        learned: How many of these have entries of their own.
        latent: C, h, w.
        depth: Residual blocks at the coarsest resolution.
        doublings: Of the resolution.
    """

    version: int
    model: str
    sizes: Sequence[int]
    codes: int
    learned: int
    latent: Sequence[int]
    depth: int
    doublings: int


class WebWeights:
    """The file's header and tensors."""

    def __init__(self, model: WebModel, tensors: Mapping[str, Tensor]) -> None:
        self.model, self.tensors = model, tensors

    @classmethod
    def of_tokenizer(cls, tokenizer: Tokenizer) -> "WebWeights":
        """Round the small decoder of a tokenizer, and what its first codes say.

        Raises:
            UserError: It has no small decoder.
        """
        quantizer = as_residual(tokenizer.quantizer)
        if SMALL not in tokenizer.decoders:
            raise UserError(
                "this tokenizer has no decoder 'small'; python -m stage1_tokenizer.train_small "
                "gives it one"
            )
        decoder = tokenizer.decoder(SMALL)
        assert isinstance(decoder, SmallDecoder)
        learned = min(decoder.num_codes, len(quantizer.learned.sizes))
        model = WebModel(
            version=VERSION,
            model=model_id(tokenizer.codes_hash).hex(),
            sizes=quantizer.sizes,
            codes=decoder.num_codes,
            learned=learned,
            latent=decoder.latent_shape,
            depth=len(decoder.coarse),
            doublings=len(decoder.up),
        )
        tensors = {
            **_codebooks(quantizer, decoder, learned),
            **_rounded("told", decoder.prefix_embedding.weight, (0,)),
        }
        for place, (kernel, bias) in enumerate(_layers(decoder)):
            tensors |= _rounded(f"layer{place}", kernel, (0, 1, 2))
            tensors[f"layer{place}.bias"] = bias
        return cls(model, {k: v.detach().cpu().contiguous() for k, v in tensors.items()})

    def to_bytes(self) -> bytes:
        """The file."""
        header = json.dumps(asdict(self.model), separators=(",", ":"))
        return safetensors.save(dict(self.tensors), {KEY: header})

    @classmethod
    def from_bytes(cls, data: bytes) -> "WebWeights":
        """Read a file.

        Raises:
            UserError: It is none, or damaged.
        """
        try:
            tensors = safetensors.load(data)
            header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
            values = json.loads(header["__metadata__"][KEY])
            return cls(WebModel(**values), tensors)
        except (SafetensorError, ValueError, KeyError, TypeError) as error:
            raise UserError("not a file of weights for browsers, or damaged") from error

    def latents(self, codes: Tensor) -> Tensor:
        """f_k of codes int64 (B, k), as far as the file says it: float32 (B, h w C)."""
        learned, (B, k) = self.model.learned, codes.shape
        z = torch.zeros(B, len(self.tensors["directions"]))
        entries, first = self.tensors["learned"], 0
        for index in range(min(k, learned)):
            said = entries[first + codes[:, index]] * self.tensors["learned.scale"][index]
            z[:, : entries.shape[1]] += said
            first += self.model.sizes[index]
        for index in range(learned, k):
            spread = self.tensors["spreads"][index - learned]
            said = self.tensors["shared"][codes[:, index]] * spread
            z.index_add_(1, self.tensors["supports"][index - learned].long(), said)
        return (z * self.tensors["directions.scale"]) @ self.tensors["directions"].float()

    def decode(self, codes: Tensor) -> Tensor:
        """Pictures of codes: int64 (B, k) -> float32 (B, 3, H, W) in [-1, 1].

        Of more codes than the file knows, the first count.
        """
        codes = codes[:, : self.model.codes]
        C, h, w = self.model.latent
        maps = self.latents(codes).view(-1, h, w, C).permute(0, 3, 1, 2)
        layers = self._read_layers()

        def layer(x: Tensor, stride: int, padding: int) -> Tensor:
            kernel, bias = next(layers)
            return F.conv_transpose2d(x, kernel.permute(2, 3, 0, 1), bias, stride, padding)

        def block(x: Tensor) -> Tensor:
            return x + layer(F.silu(layer(F.silu(x), 1, 1)), 1, 1)

        told = self.tensors["told"][codes.shape[1] - 1] * self.tensors["told.scale"]
        hidden = layer(maps, 1, 1) + told[:, None, None]
        for _ in range(self.model.depth):
            hidden = block(hidden)
        for left in reversed(range(self.model.doublings)):
            hidden = layer(F.silu(hidden), 2, 1)
            hidden = block(hidden) if left else hidden
        return (hidden + layer(maps, 2**self.model.doublings, 0)).clamp(-1, 1)

    def _read_layers(self) -> Iterator[Layer]:
        place = 0
        while f"layer{place}" in self.tensors:
            name = f"layer{place}"
            kernel = self.tensors[name] * self.tensors[f"{name}.scale"]
            yield kernel, self.tensors[f"{name}.bias"]
            place += 1


def _codebooks(
    quantizer: ResidualQuantizer, decoder: SmallDecoder, learned: int
) -> dict[str, Tensor]:
    """What codes say along the decoder's directions U, and U itself."""
    U = decoder.directions
    D, R = U.shape
    by_place = U.view(*decoder.latent_shape, R).permute(1, 2, 0, 3).reshape(D, R)
    tensors = _rounded("directions", by_place.T, (1,))
    books = [quantizer.meaning(book) @ U[:, :LEARNED_DIRECTIONS] for book in range(learned)]
    rounded = [_rounded("learned", book, (0,)) for book in books]
    tensors["learned"] = torch.cat([each["learned"] for each in rounded])
    tensors["learned.scale"] = torch.stack([each["learned.scale"] for each in rounded])
    if decoder.num_codes > learned:
        shared, count = quantizer.shared, decoder.num_codes - learned
        vectors = _rounded("shared", shared.vectors, (0,))
        tensors["shared"] = vectors["shared"]
        # Which direction each column of the basis is, or its negative; where it is none of them,
        # what the nearest has in common with it.
        overlaps = shared.basis.T @ U  # (r, R)
        places = overlaps.abs().argmax(dim=1)
        shares = overlaps.gather(1, places.unsqueeze(1)).squeeze(1)
        supports = shared.supports[:count]
        spreads = shared.spreads[:count] * vectors["shared.scale"]
        tensors["spreads"] = spreads * shares[supports]
        tensors["supports"] = places[supports].to(torch.uint8)
    return tensors


def _layers(decoder: SmallDecoder) -> Iterator[Layer]:
    """In the order in which they are used."""
    yield _as_transposed(decoder.input)
    for block in decoder.coarse:
        yield from (_as_transposed(each) for each in block.children())
    for place, up in enumerate(decoder.up):
        yield _as_transposed(up)
        for each in decoder.fine[place].children() if place < len(decoder.fine) else ():
            yield _as_transposed(each)
    yield _as_transposed(decoder.shortcut)


def _as_transposed(layer: nn.Module) -> Layer:
    """What each input number adds to the outputs around it."""
    assert isinstance(layer, nn.Conv2d | nn.ConvTranspose2d) and layer.bias is not None
    if isinstance(layer, nn.ConvTranspose2d):
        return layer.weight.permute(2, 3, 0, 1), layer.bias
    return layer.weight.flip(2, 3).permute(2, 3, 1, 0), layer.bias


def _rounded(name: str, tensor: Tensor, over: tuple[int, ...]) -> dict[str, Tensor]:
    """A tensor as int8, and the scales, which are shared over these dimensions."""
    values, scales = round_to_int8(tensor, over)
    return {name: values, f"{name}.scale": scales.flatten()}
