"""The progressive quantizer against other tokenizers: equal autoencoder, time and bits, in one run.

    python benchmarks/tokenizers.py --minutes 10 --data cifar10 --json cifar10.json
    python benchmarks/tokenizers.py --minutes 1 --data emoji --json emoji.json --methods ours

Every method has 576 bits at its full length and shares with the others: the encoder and decoder,
equal at the start; the shortcuts, started from the same images; the optimizer, its rate a function
of the share of the time that is over, start-up included; the order of the images and their
augmentation; the clipping of gradients; the weight of the commitment; the draw of the prefix that
an image is decoded from. They differ in what stands between encoder and decoder.

``gumbel`` is ours but for how codes and codebooks are trained: as PQ-VAE was first proposed. The
other baselines' codebooks are those of vector-quantize-pytorch: k-means start, moving averages,
revival. Trains on the train split, reports on the test split, and draws PSNR against bits beside
the JSON file. Needs ``pip install -e '.[benchmarks,plots]'``.
"""

import bisect
import functools
import importlib.metadata
import itertools
import math
import os
import shlex
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from einops import rearrange
from stage1_tokenizer.quantizers.codebooks import CodebookLearner
from torch import Tensor, nn
from torch.nn import functional as F
from vector_quantize_pytorch import FSQ  # type: ignore[missing-import]

from eval.report.plot import Panel, save_plot
from eval.spatial_vq import CLUSTERED_IMAGES, ENTRIES, vector_quantizer
from pqvae.cli import SIGNALLED, Parser, command
from pqvae.config import config_from_dict
from pqvae.console import SECONDS_BETWEEN_LINES, say
from pqvae.data.batches import TrainingImages
from pqvae.data.config import DataConfig
from pqvae.data.dataset import ImageDataset, open_dataset
from pqvae.errors import UserError
from pqvae.files import write_json
from pqvae.images import psnr, to_float, to_uint8
from pqvae.randomness import generator_for
from pqvae.runtime import machine, versions
from pqvae.signals import Stopped
from pqvae.training.optim import adamw, learning_rate
from stage1_tokenizer.config import Config, QuantizerConfig, TokenizerConfig
from stage1_tokenizer.objective import GumbelObjective, TokenizerObjective, draw_prefix_lengths
from stage1_tokenizer.prefixes import evenly_spaced, residual_shares
from stage1_tokenizer.quantizers.gumbel import GumbelLearner
from stage1_tokenizer.quantizers.residual import code_entropy_bits
from stage1_tokenizer.task import PATCH_IMAGES, START_IMAGES
from stage1_tokenizer.tokenizer import Tokenizer

# Ours as in configs/cifar10.yaml; all else that methods share as in stage 1's defaults.
OURS = QuantizerConfig(num_codes=58, codebook_sizes=(256, 1024), learned_codes=2)
GUMBEL = QuantizerConfig(num_codes=72, codebook_sizes=(256,), assignment="gumbel")
OBJECTIVE, TRAINER, IMAGE_SIZE = Config().objective, Config().trainer, Config().data.image_size
BATCH = TRAINER.batch_size
BITS = 576  # of every method at its full length
PLACES, CHANNELS = 64, 16  # of the encoder's 8x8 map
# What prefixes of ours may cost where they are scored: powers of two, and the other methods' bits.
BUDGETS = (8, 9, 16, 18, 32, 36, 64, 72, 128, 144, 256, 288, 432, 512, BITS)
SEARCHES = {"beam": 8, "refine": 8}  # how else ours may encode: psnr_beam8, psnr_refine8
TEST_IMAGES, RESIDUAL_IMAGES = 10_000, 2_000  # at most
LIBRARY = "vector-quantize-pytorch"


class Method(nn.Module):
    """What stands between the encoder and the decoder that all methods share.

    Quantizes at once, into pieces, and decodes from the first so many of them.

    Attributes:
        cuts: The prefix lengths that are scored, ascending; the last is the full one.
        bits: What each of them costs.
        sizes: Entries of the codebook at each position of ``codes``.
        codebook_parameters: How many numbers codebooks are made of; only ``gumbel`` trains them by
            gradient.
    """

    cuts: tuple[int, ...]
    bits: tuple[int, ...]
    sizes: tuple[int, ...]
    codebook_parameters: int

    def __init__(self) -> None:
        super().__init__()
        self.tokenizer = Tokenizer(TokenizerConfig(image_size=IMAGE_SIZE, quantizer=OURS))
        self.encoder, self.decoder = self.tokenizer.encoder, self.tokenizer.decoder
        # The decoder is told the prefix length, of which each method has others.
        width = self.decoder.prefix_embedding.embedding_dim
        self.decoder.prefix_embedding = nn.Embedding(self.cuts[-1], width)
        nn.init.normal_(self.decoder.prefix_embedding.weight, std=0.02)

    @torch.no_grad()
    def start(self, images: Tensor, generator: torch.Generator) -> None:
        """Set what starts from data: shortcuts, then codebooks, by the library's k-means."""
        self.tokenizer.init_from_images(images[:PATCH_IMAGES])
        self.quantize(images[:CLUSTERED_IMAGES])

    def places(self, images: Tensor) -> Tensor:
        """The latents of each place: images (B, 3, H, W) -> (B, places, channels)."""
        return rearrange(self.encoder(images), "b (c p) -> b p c", p=PLACES)

    def quantize(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Pieces to decode from, codes (B, ...), and the weighted commitment."""
        raise NotImplementedError

    def decode(self, pieces: Tensor, lengths: Tensor) -> Tensor:
        """Images from the first ``lengths`` (B,) pieces of each; here, from all of the places."""
        return self.decoder(rearrange(pieces, "b p c -> b (c p)"), lengths)

    def loss(
        self, images: Tensor, lengths: Tensor, progress: float, generator: torch.Generator
    ) -> Tensor:
        """The loss of images (B, 3, H, W) in [-1, 1], decoded from prefixes of lengths (B,)."""
        pieces, _, commitment = self.quantize(images)
        return F.mse_loss(self.decode(pieces, lengths), images) + commitment

    def after_step(self, step: int, progress: float, generator: torch.Generator) -> None:
        """Learn what learns without gradients; the library has done it by now."""

    def decoded(self, images: Tensor) -> list[Tensor]:
        """The images (B, 3, H, W) decoded from their codes at each of the cuts."""
        pieces = self.quantize(images)[0]
        return [self.decode(pieces, torch.full((len(images),), cut)) for cut in self.cuts]

    def codes(self, images: Tensor) -> Tensor:
        """Codes (n, positions); n counts places, too, where these share a codebook."""
        return self.quantize(images)[1].reshape(-1, len(self.sizes))


def scored_prefixes(config: QuantizerConfig) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The longest prefix within each budget, and what each costs in bits."""
    costs = [round(bits) for bits in itertools.accumulate(config.bits)]
    cuts = sorted({bisect.bisect_right(costs, bits) for bits in BUDGETS})
    return tuple(cuts), tuple(costs[cut - 1] for cut in cuts)


class Progressive(Method):
    """Ours, as stage 1 trains it."""

    config = OURS
    cuts, bits = scored_prefixes(OURS)
    sizes = OURS.sizes

    def __init__(self) -> None:
        super().__init__()
        # The networks of all methods, around another quantizer where this is not the shared one.
        self.tokenizer = Tokenizer(TokenizerConfig(image_size=IMAGE_SIZE, quantizer=self.config))
        self.tokenizer.encoder, self.tokenizer.decoder = self.encoder, self.decoder
        self.quantizer = self.tokenizer.quantizer
        self.codebook_parameters = sum(
            part.numel() for part in self.quantizer.state_dict().values()
        )
        self.learner = self.make_learner()

    def make_learner(self) -> CodebookLearner:
        return CodebookLearner(self.quantizer)

    def objective(self, progress: float, generator: torch.Generator) -> TokenizerObjective:
        return TokenizerObjective(self.tokenizer, OBJECTIVE)

    @torch.no_grad()
    def start(self, images: Tensor, generator: torch.Generator) -> None:
        self.tokenizer.init_from_images(images[:PATCH_IMAGES])
        encoded = torch.cat([self.encoder(part) for part in images.split(BATCH)])
        self.learner.initialize(encoded, generator)

    def loss(
        self, images: Tensor, lengths: Tensor, progress: float, generator: torch.Generator
    ) -> Tensor:
        objective = self.objective(progress, generator)
        losses, self.chosen, self.residuals = objective(images, lengths)
        return losses["loss"]

    def after_step(self, step: int, progress: float, generator: torch.Generator) -> None:
        self.learner.update(self.chosen, self.residuals, self.learner.decay(progress))
        if (step + 1) % self.config.revive_every == 0:
            self.learner.revive(self.chosen, self.residuals, generator)

    def decoded(self, images: Tensor, **search: int) -> list[Tensor]:
        codes = self.tokenizer.encode(images, **search)
        return [self.tokenizer.decode(codes[:, :cut]) for cut in self.cuts]

    def codes(self, images: Tensor) -> Tensor:
        return self.tokenizer.encode(images)


class Gumbel(Progressive):
    """PQ-VAE as first proposed: random codes, entries learned by gradient, entropy terms."""

    config = GUMBEL
    cuts, bits = scored_prefixes(GUMBEL)
    sizes = GUMBEL.sizes

    def make_learner(self) -> CodebookLearner:
        return GumbelLearner(self.quantizer)

    def objective(self, progress: float, generator: torch.Generator) -> TokenizerObjective:
        return GumbelObjective(self.tokenizer, OBJECTIVE, progress, generator)


class SpatialVQ(Method):
    """A code for each place of the 8x8 map, one codebook for all: VQ-VAE (van den Oord, 2017)."""

    cuts, bits, sizes = (1,), (BITS,), (ENTRIES,)
    codebook_parameters = ENTRIES * CHANNELS

    def __init__(self) -> None:
        super().__init__()
        self.quantizer = vector_quantizer(CHANNELS, PLACES)

    def quantize(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return self.quantizer(self.places(images))


class SpatialFSQ(Method):
    """The same with finite scalar quantization (Mentzer et al., 2023), 8 x 8 x 8 levels."""

    cuts, bits, sizes = (1,), (BITS,), (ENTRIES,)
    codebook_parameters = 0

    def __init__(self) -> None:
        super().__init__()
        self.levels = FSQ(levels=[8, 8, 8])
        self.into = nn.Linear(CHANNELS, 3, bias=False)  # the layers before and after have biases
        self.out_of = nn.Linear(3, CHANNELS, bias=False)

    @torch.no_grad()
    def start(self, images: Tensor, generator: torch.Generator) -> None:
        super().start(images, generator)
        # At first the three numbers of a place are its leading components, which the shortcuts put
        # last, at a deviation that FSQ's tanh hardly bends. From a random start it ended 1.5 dB
        # lower after 250 steps on emoji.
        scale = 2 * self.places(images[:PATCH_IMAGES]).std((0, 1))
        leading = torch.eye(CHANNELS)[-3:]
        self.into.weight.copy_(leading / scale)
        self.out_of.weight.copy_((leading * scale).T)

    def quantize(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        quantized, codes = self.levels(self.into(self.places(images)))
        return self.out_of(quantized), codes, images.new_zeros(())


class ResidualVQ(Method):
    """Four codes for each place of a 4x4 map, each of what those before it left: RVQ.

    Chooses codes as the library's class of that name, and differs where that ended 1.3 dB lower
    after 250 steps on emoji: there every level passes the gradient of its own, k times that of f_k;
    every level has a commitment, which draws the latents towards coarse codes; and the number of
    levels is drawn for a whole batch. Here all of it is as for ours.
    """

    cuts, bits, sizes = (1, 2, 3, 4), (144, 288, 432, BITS), (ENTRIES,) * 4
    codebook_parameters = 4 * ENTRIES * 4 * CHANNELS

    def __init__(self) -> None:
        super().__init__()
        # 2x2 neighbours of the 8x8 map are one place.
        levels = [vector_quantizer(4 * CHANNELS, PLACES // 4) for _ in self.cuts]
        self.levels = nn.ModuleList(levels)

    def quantize(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        pattern = "b (c h p w q) -> b (h w) (c p q)"
        latents = rearrange(self.encoder(images), pattern, h=4, p=2, w=4, q=2)
        residual, pieces, codes = latents.detach(), [], []
        for level in self.levels:
            quantized, chosen, _ = level(residual)
            residual = residual - quantized
            # f_k = f - r_k in value, and as far as the gradient is concerned, f.
            pieces.append(latents - residual)
            codes.append(chosen)
        commitment = OBJECTIVE.commitment * F.mse_loss(latents, pieces[-1].detach())
        return torch.stack(pieces, dim=1), torch.stack(codes, dim=2), commitment

    def decode(self, pieces: Tensor, lengths: Tensor) -> Tensor:
        latents = pieces[torch.arange(len(pieces)), lengths - 1]
        pattern = "b (h w) (c p q) -> b (c h p w q)"
        return self.decoder(rearrange(latents, pattern, h=4, p=2, q=2), lengths)


class Registers(Method):
    """64 register tokens, ordered by dropping their tail: TiTok, One-D-Piece.

    A transformer on either side of the bottleneck, between the convolutions of the others: the
    registers read the 8x8 map; from those that are kept, the map is written anew.
    """

    cuts = (1, 2, 4, 8, 16, 32, 48, 64)
    bits, sizes = tuple(9 * cut for cut in cuts), (ENTRIES,) * 64
    codebook_parameters = ENTRIES * CHANNELS
    WIDTH = 128

    def __init__(self) -> None:
        super().__init__()
        W = self.WIDTH
        layer = nn.TransformerEncoderLayer(
            W, W // 32, 4 * W, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
        )
        self.read, self.write = (
            nn.TransformerEncoder(layer, 2, nn.LayerNorm(W), enable_nested_tensor=False)
            for _ in range(2)
        )
        self.widen, self.narrow = nn.Linear(CHANNELS, W), nn.Linear(W, CHANNELS)
        self.into, self.out_of = nn.Linear(W, CHANNELS), nn.Linear(CHANNELS, W)
        # For the reader and the writer: what tells places apart, and registers.
        self.of_places = nn.Parameter(0.02 * torch.randn(2, PLACES, W))
        self.of_registers = nn.Parameter(0.02 * torch.randn(2, self.cuts[-1], W))
        self.quantizer = vector_quantizer(CHANNELS, self.cuts[-1])

    def quantize(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        places = self.widen(self.places(images)) + self.of_places[0]
        registers = self.of_registers[0].expand(len(images), -1, -1)
        tokens = self.read(torch.cat([places, registers], dim=1))
        return self.quantizer(self.into(tokens[:, PLACES:]))

    def decode(self, pieces: Tensor, lengths: Tensor) -> Tensor:
        places = self.of_places[1].expand(len(pieces), -1, -1)
        registers = self.out_of(pieces) + self.of_registers[1]
        # Registers count from 0; the places before them are seen at every length.
        dropped = torch.arange(-PLACES, self.cuts[-1]) >= lengths.unsqueeze(1)
        tokens = self.write(torch.cat([places, registers], dim=1), src_key_padding_mask=dropped)
        return super().decode(self.narrow(tokens[:, :PLACES]), lengths)


METHODS: dict[str, type[Method]] = {
    "ours": Progressive,
    "spatial-vq": SpatialVQ,
    "spatial-fsq": SpatialFSQ,
    "residual-vq": ResidualVQ,
    "registers": Registers,
    "gumbel": Gumbel,
}


def train(name: str, method: Method, images: TrainingImages, seconds: float) -> dict[str, Any]:
    """Train for so many seconds, start-up included; tells the steps, and their speed without it."""
    begin = said = time.perf_counter()
    first_images = torch.cat([images(step) for step in range(START_IMAGES // BATCH)])
    method.start(first_images, generator_for(images.seed, 0, 2))
    step, first = 0, time.perf_counter()
    say(f"{name}: started in {first - begin:.1f} s")
    optimizer = adamw(method, TRAINER.weight_decay, TRAINER.beta2)
    while (progress := (time.perf_counter() - begin) / seconds) < 1:
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(TRAINER.learning_rate, progress, TRAINER.warmup)
        generator = generator_for(images.seed, step, 3)
        batch, full = images(step), method.cuts[-1]
        lengths = draw_prefix_lengths(len(batch), full, OBJECTIVE.full_share, generator)
        loss = method.loss(batch, lengths, progress, generator)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(method.parameters(), TRAINER.clip_norm)
        optimizer.step()
        method.after_step(step, progress, generator)
        step += 1
        if (now := time.perf_counter()) - said > SECONDS_BETWEEN_LINES:
            said, speed = now, step * BATCH / (now - first)
            say(f"{name}: {progress:.0%} | step {step} | {speed:.0f} img/s | loss {loss:.4f}")
    method.eval()
    speed = step * BATCH / (time.perf_counter() - first)
    return {"steps": step, "images_per_second": round(speed, 1)}


def mean_psnr(decoded: Callable[[Tensor], list[Tensor]], chunks: Sequence[Tensor]) -> list[float]:
    """Mean PSNR in dB at each cut, over uint8 images in chunks."""
    values = [
        torch.stack([psnr(to_uint8(one), originals) for one in decoded(to_float(originals))])
        for originals in chunks
    ]
    return [round(value, 3) for value in torch.cat(values, dim=1).mean(1).tolist()]


@torch.inference_mode()
def measure(method: Method, splits: Mapping[str, ImageDataset]) -> dict[str, Any]:
    """What a trained method has reached on the test split."""
    test = splits["test"]
    chunks = evenly_spaced(test, min(TEST_IMAGES, len(test))).split(250)
    codes = torch.cat([method.codes(to_float(chunk)) for chunk in chunks])
    found: dict[str, Any] = {"bits": method.bits, "psnr": mean_psnr(method.decoded, chunks)}
    if isinstance(method, Progressive):
        for search, effort in SEARCHES.items():
            decoded = functools.partial(method.decoded, **{search: effort})
            found[f"psnr_{search}{effort}"] = mean_psnr(decoded, chunks)
        for split, images in splits.items():
            shares = residual_shares(method.tokenizer, images, RESIDUAL_IMAGES)
            found[f"residual_{split}"] = [round(share, 5) for share in shares]
    entropies = code_entropy_bits(codes, method.sizes)
    return found | {
        "code_entropy_bits": [round(bits, 3) for bits in entropies],
        "parameters": sum(parameter.numel() for parameter in method.parameters()),
        "codebook_parameters": method.codebook_parameters,
    }


def summary(results: Mapping[str, Mapping[str, Any]]) -> str:
    """Two tables as text: every method, and every other method's cuts beside ours."""
    searches = [f"{search} {effort}" for search, effort in SEARCHES.items()]
    keys = ["psnr", *(f"psnr_{name.replace(' ', '')}" for name in searches)]
    rows = [["method", "bits", "PSNR, dB", *searches]]
    rows[0] += ["least entropy", "mean", "img/s", "parameters"]
    for name, one in results.items():
        values = [f"{one[key][-1]:.2f}" if key in one else "" for key in keys]
        entropies = one["code_entropy_bits"]
        values += [f"{min(entropies):.2f}", f"{sum(entropies) / len(entropies):.2f}"]
        values += [f"{one['images_per_second']:.0f}", f"{one['parameters']:,}"]
        rows.append([name, str(one["bits"][-1]), *values])
    text, others = aligned(rows), results.keys() - {"ours"}
    if "ours" not in results or not others:
        return text
    ours, rows = results["ours"], [["method", "bits", "PSNR, dB", "ours at", "PSNR, dB", "gain"]]
    for name in sorted(others, key=list(results).index):
        for bits, theirs in zip(results[name]["bits"], results[name]["psnr"], strict=True):
            cut = bisect.bisect_right(ours["bits"], bits) - 1
            cost, value = ours["bits"][cut], ours["psnr"][cut]
            values = [f"{theirs:.2f}", str(cost), f"{value:.2f}", f"{value - theirs:+.2f}"]
            rows.append([name, str(bits), *values])
    return f"{text}\n\n{aligned(rows)}"


def aligned(rows: Sequence[Sequence[str]]) -> str:
    """Columns as wide as their cells, the first to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]) for row in rows
    )


def panel(results: Mapping[str, Mapping[str, Any]], title: str) -> Panel:
    """PSNR against bits, a line for each method, and one for refined codes where it has them."""
    lines = {}
    for name, result in results.items():
        lines[name] = result["bits"], result["psnr"]
        if "psnr_refine8" in result:
            lines[f"{name}, refined"] = result["bits"], result["psnr_refine8"]
    return Panel(title, "bits an image", lines, log=True)


@command
def main(argv: Sequence[str] | None = None) -> None:
    """The command line."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    summary_line, examples = __doc__.split("\n\n")[:2]
    parser = Parser("benchmarks.tokenizers", summary_line, examples)
    parser.prog = "python benchmarks/tokenizers.py"
    parser.add_argument("--minutes", type=float, default=10.0, help="of each method")
    parser.add_argument("--data", default="emoji", help="as data.path of stage 1; default emoji")
    parser.add_argument("--json", type=Path, required=True, help="where the results go")
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=list(METHODS))
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(arguments)
    if not 0 < args.minutes < math.inf:
        raise UserError(f"--minutes {args.minutes:g}: give a number above 0")
    folder = args.json.parent
    if args.json.suffix != ".json" or not (folder.is_dir() and os.access(folder, os.W_OK)):
        raise UserError(f"--json {args.json}: give a .json file in a folder that can be written to")
    data = config_from_dict(DataConfig, {"path": args.data}, "--data")
    splits = {"train": open_dataset(data, "train"), "test": open_dataset(data, "test")}
    report: dict[str, Any] = {
        "data": args.data,
        "minutes": args.minutes,
        "seed": args.seed,
        "test_images": min(TEST_IMAGES, len(splits["test"])),
        "machine": machine(),
        "versions": versions() | {LIBRARY: importlib.metadata.version(LIBRARY)},
        "command": shlex.join(["python", "benchmarks/tokenizers.py", *arguments]),
        "methods": {},
    }
    try:
        for name in args.methods:
            torch.manual_seed(args.seed)
            method = METHODS[name]()
            images = TrainingImages(splits["train"], data, BATCH, args.seed)
            found = train(name, method, images, 60 * args.minutes) | measure(method, splits)
            report["methods"][name] = found
            write_json(args.json, report)
            say(f"{name}: {found['steps']} steps | {found['psnr'][-1]:.2f} dB at {BITS} bits")
    except Stopped as stopped:
        say(f"stopped; {args.json} keeps the methods that were finished")
        raise SystemExit(SIGNALLED + stopped.signum) from None
    title = f"PSNR in dB on {Path(args.data).name}, {args.minutes:g} minutes each"
    if not save_plot(args.json.with_suffix(".png"), [panel(report["methods"], title)]):
        say("no plot: matplotlib is not installed")
    print(summary(report["methods"]))


if __name__ == "__main__":
    sys.exit(main())
