"""The sampler beside x-transformers' own, and the seconds of whole pictures, in one run.

    python benchmarks/sampler.py
    python benchmarks/sampler.py --prior runs/prior --prefix 32

The same weights draw the same number of codes: by ``sample_codes``; by ``generate`` of
``AutoregressiveWrapper``, with and without its cache of keys and values; and by a plain
``TransformerWrapper`` around the same layers, whose embedding and head are simpler and of its own.
They take turns, so that a machine whose speed moves slows all alike; ratios are medians of the
turns. Greedy codes must be equal. Then ``sampling.generate`` writes pictures, all included, and
beside it each part alone. Without --prior: untrained models of the default shape.
"""

import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from pqvae.cli import Parser, command, positive_int
from pqvae.errors import UserError
from pqvae.images import to_uint8
from pqvae.randomness import generator_for
from pqvae.runtime import machine, select_device, select_runtime
from sampling.folder import read_record, write_image
from sampling.sampler import sample_codes
from sampling.settings import SamplingSettings
from stage1_tokenizer.config import TokenizerConfig
from stage1_tokenizer.decoder_config import RefinedConfig
from stage1_tokenizer.tokenizer import VIVID, Tokenizer
from stage2_prior.books import Codebooks
from stage2_prior.config import PriorConfig
from stage2_prior.prior import Prior
from stage2_prior.provenance import open_tokenizer_of

# isort: split
# Last: it warns when it is imported, unless the prior has done so quietly.
from x_transformers import AutoregressiveWrapper, TransformerWrapper

OURS = "ours"
TOP_P = 0.95
KINDS = {"greedy": 0.0, "sampled": 1.0}  # temperatures


class PriorNet(nn.Module):
    """A prior, coarse to fine, as ``AutoregressiveWrapper`` takes it: class, c_1, c_2 ..."""

    looped = add_continuous_pred_head = False
    can_cache_kv = can_cache_kv_outside_max_seq_len = True

    def __init__(self, prior: Prior) -> None:
        super().__init__()
        self.prior, self.max_seq_len = prior, len(prior.sizes)

    def forward(self, x: Tensor, cache: object = None, **_: object) -> tuple[Tensor, object]:
        inputs = self.prior.embed_labels(x[:, 0])
        if x.shape[1] > 1:
            inputs = torch.cat([inputs, self.prior.embed_codes(x[:, 1:])[0]], dim=1)
        hidden, cache = self.prior.layers(inputs, cache=cache, return_hiddens=True)
        return self.prior.logits(hidden[:, -1:], x.shape[1] - 1), cache


@dataclass
class Timing:
    """What one way took in each turn, and what it drew in the last one."""

    seconds: list[float] = field(default_factory=list)
    codes: Tensor = field(default_factory=lambda: torch.empty(0))


def time_sampling(
    prior: Prior, labels: Tensor, temperature: float, rounds: int
) -> dict[str, Timing]:
    """Draw all codes of images (B,) in every way, in turns; the first turn is not counted."""
    N, indices = len(prior.sizes), torch.arange(len(labels))
    settings = SamplingSettings(temperature=temperature, top_p=TOP_P)
    same = AutoregressiveWrapper(PriorNet(prior)).eval()  # or it trains what it has used
    plain = AutoregressiveWrapper(
        TransformerWrapper(
            num_tokens=max(*prior.sizes, prior.no_class + 1),
            max_seq_len=N,
            attn_layers=prior.layers,
        ).to(prior.device)
    ).eval()

    def generate(wrapper: AutoregressiveWrapper, cache: bool) -> Tensor:
        return wrapper.generate(
            labels.unsqueeze(1).to(prior.device),
            N,
            temperature=temperature,
            filter_logits_fn="top_p",
            filter_kwargs={"thres": TOP_P},
            cache_kv=cache,
        )

    ways: dict[str, Callable[[], Tensor]] = {
        OURS: lambda: sample_codes(prior, labels, indices, 0, N, settings),
        "x-transformers, cached": lambda: generate(same, True),
        "x-transformers, uncached": lambda: generate(same, False),
        "x-transformers, cached, own head": lambda: generate(plain, True),
    }
    timings = {name: Timing() for name in ways}
    for turn in range(rounds + 1):
        for name, way in ways.items():
            started = time.perf_counter()
            timings[name].codes = way().cpu()  # so a GPU is waited for
            if turn:
                timings[name].seconds.append(time.perf_counter() - started)
    return timings


def print_sampling(prior: Prior, batch: int, rounds: int) -> None:
    """A table of codes a second, and how many times as fast ours are."""
    generator = generator_for(0)
    labels = torch.randint(prior.no_class + 1, (batch,), generator=generator)
    for kind, temperature in KINDS.items():
        timings = time_sampling(prior, labels, temperature, rounds)
        for name, timing in timings.items():
            pairs = zip(timing.seconds, timings[OURS].seconds, strict=True)
            ratio = statistics.median(theirs / ours for theirs, ours in pairs)
            rate = batch * len(prior.sizes) / statistics.median(timing.seconds)
            line = f"{kind:<8} {name:<33} {rate:9,.0f} codes/s   ours {ratio:5.2f}x"
            if temperature == 0 and not name.endswith("head"):
                equal = (timing.codes == timings[OURS].codes).double().mean()
                line += f"   {equal:.2%} of codes equal"
            print(line, flush=True)


def print_pictures(prior_folder: Path, n: int, prefix: int, scratch: Path) -> None:
    """Seconds of the command, imports and all, and of each part of it."""
    command_line = ["-m", "sampling.generate", "--n", n, "--prefix", prefix]
    command_line += ["--prior", prior_folder, "--out", scratch / "samples"]
    started = time.perf_counter()
    run = subprocess.run([sys.executable, *map(str, command_line)], stdout=subprocess.DEVNULL)
    if run.returncode:
        raise UserError("sampling.generate did not make the pictures; it says why above")
    print(f"{n} pictures of {prefix} codes, all included: {time.perf_counter() - started:.1f} s")
    runtime = select_runtime()
    prior = Prior.from_pretrained(prior_folder).to(runtime.device)
    tokenizer, _ = open_tokenizer_of(prior, prior_folder, None)
    tokenizer.to(runtime.device)
    settings = SamplingSettings(
        **{
            name: value
            for name, value in read_record(scratch / "samples")["settings"].items()
            if name in ("temperature", "top_p", "guidance")
        }
    )
    indices, seconds = torch.arange(n), []
    labels = indices % (prior.no_class + 1) if prior.class_names else None
    started = time.perf_counter()
    codes = sample_codes(prior, labels, indices, 0, prefix, settings)
    seconds.append(time.perf_counter() - started)
    with runtime.autocast():
        images = to_uint8(tokenizer.decode(codes, tokenizer.decoder_to_see)).cpu()
    seconds.append(time.perf_counter() - started)
    (scratch / "images").mkdir()
    with ThreadPoolExecutor(2) as writers:
        list(writers.map(lambda index: write_image(scratch, index, images[index]), range(n)))
    seconds.append(time.perf_counter() - started)
    parts = zip(("codes", "decoding", "PNG"), seconds, (0, *seconds), strict=False)
    print("alone: " + ", ".join(f"{name} {now - before:.1f} s" for name, now, before in parts))


def save_untrained(folder: Path) -> Path:
    """Models of the default shape, of which every weight counts; returns the prior's folder."""
    torch.manual_seed(0)
    tokenizer = Tokenizer(TokenizerConfig(image_size=32))
    tokenizer.add_decoder(VIVID, RefinedConfig())
    tokenizer.quantizer.start(
        torch.randn(2048, tokenizer.quantizer.entries(0).shape[1]), generator_for(0)
    )
    tokenizer.eval().save_pretrained(folder / "tokenizer", {})
    names = tuple(f"class {number}" for number in range(9))
    prior = Prior(PriorConfig(), Codebooks.of(tokenizer.quantizer), names, (1,) * len(names))
    prior.set_code_features(tokenizer.quantizer)
    for parameter in prior.parameters():
        if not parameter.any():
            nn.init.normal_(parameter, std=0.05)
    provenance = {"tokenizer": str(folder / "tokenizer"), "codes_hash": tokenizer.codes_hash}
    prior.save_pretrained(folder / "prior", provenance)
    return folder / "prior"


@command
def main(argv: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = Parser(
        "benchmarks.sampler", __doc__ or "", "  python benchmarks/sampler.py --rounds 9"
    )
    add = parser.add_argument
    add("--prior", type=Path, metavar="DIR", help="of stage 2 (default: untrained models)")
    add("--batch", type=positive_int, default=256, help="images at once (default: %(default)s)")
    add("--rounds", type=positive_int, default=5, help="turns of each way (default: %(default)s)")
    add("--n", type=positive_int, default=10_000, help="pictures (default: %(default)s)")
    add("--prefix", type=positive_int, default=4, help="codes of a picture (default: %(default)s)")
    args = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as scratch:
        folder = args.prior or save_untrained(Path(scratch))
        prior = Prior.from_pretrained(folder).to(select_device())
        parameters = sum(parameter.numel() for parameter in prior.parameters())
        print(
            f"{parameters / 1e6:.1f} M parameters, {len(prior.sizes)} codes, "
            f"batch {args.batch}, {machine()}"
        )
        print_sampling(prior, args.batch, args.rounds)
        print_pictures(folder, args.n, args.prefix, Path(scratch))


if __name__ == "__main__":
    sys.exit(main())
