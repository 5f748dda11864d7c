"""The progressive quantizer against other tokenizers: equal autoencoder, time and bits, in one run.

    python benchmarks/tokenizers.py --minutes 10 --data cifar10 --json cifar10.json
    python benchmarks/tokenizers.py --minutes 1 --data emoji --json emoji.json --methods ours

Every method is a kind of quantizer in the training loop of stage 1, with 576 bits at its full
length. All else is shared: the architecture, the encoder's start, the shortcuts started from the
same images, the optimizer and its schedule, the order of the images and their augmentation, and the
draw of the prefix that an image is decoded from.

The time is that of the training steps: a trial of a few tells each method's speed here, and so how
many steps take the minutes asked for. The start from data and the evaluation are not counted.

``gumbel`` is ours but for how codes and codebooks are trained: as PQ-VAE was first proposed. The
other baselines' codebooks are those of vector-quantize-pytorch: k-means start, moving averages,
revival. Trains on the train split, reports on the test split, and draws PSNR against bits beside
the JSON file; the run folders lie in a folder named like it. Needs
``pip install -e '.[baselines,plots]'``.
"""

import bisect
import importlib.metadata
import itertools
import json
import math
import os
import shlex
import statistics
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.registers import join_tables
from pqvae.cli import SIGNALLED, Parser, command
from pqvae.config import load_config
from pqvae.console import say
from pqvae.data.dataset import open_dataset
from pqvae.errors import UserError
from pqvae.files import read_json, write_json
from pqvae.plots import Panel, save_plot
from pqvae.runtime import machine, select_runtime, versions
from pqvae.signals import Stopped
from pqvae.training.loop import train
from stage1_tokenizer.config import Config
from stage1_tokenizer.prefixes import measure_psnr
from stage1_tokenizer.quantizers.residual import ResidualQuantizer
from stage1_tokenizer.task import TokenizerTask, run
from stage1_tokenizer.tokenizer import Tokenizer

# What each method sets in stage 1's config; all else is as by default. Ours is as in
# configs/cifar10.yaml. An entry of a library's codebook is revived when used less than a tenth as
# often as the mean, as ours is; the customary two uses a batch are the mean of a 4x4 map.
METHODS: dict[str, str] = {
    "ours": "num_codes=58 codebook_sizes=256,1024 learned_codes=2",
    "spatial-vq": "kind=spatial codebook_size=512 least_uses=0.8",
    "spatial-fsq": "kind=fsq levels=8,8,8",
    "residual-vq": "kind=spatial codebook_size=512 levels=4 fold=2 least_uses=0.2",
    "registers": "kind=registers num_codes=64 codebook_size=512 least_uses=0.8",
    "gumbel": "kind=gumbel num_codes=72 codebook_sizes=256",
}
# FSQ has no codebook to run away from; registers have a commitment of their own.
NO_COMMITMENT = {"spatial-fsq", "registers"}
# What prefixes may cost where they are scored: powers of two, and the methods' own steps.
BUDGETS = (8, 9, 16, 18, 32, 36, 64, 72, 128, 144, 256, 288, 432, 512, 576)
SEARCHES = {"beam": 8, "refine": 8}  # how else ours may encode: psnr_beam8, psnr_refine8
TEST_IMAGES = 10_000  # at most
TRIAL = 24  # steps, of which the speed is measured
TRIAL_INTERVAL = 4  # steps of one measurement; the first is not counted
LIBRARY = "vector-quantize-pytorch"


def config_of(name: str, shared: Sequence[str]) -> Config:
    """Stage 1's config for a method, and what all methods share, as ``key=value``."""
    settings = [f"quantizer.{setting}" for setting in METHODS[name].split()]
    if name in NO_COMMITMENT:
        settings.append("objective.commitment=0")
    return load_config(Config, None, [*settings, *shared])


def steps_in(config: Config, seconds: float) -> int:
    """How many training steps take so many seconds here: measured in a short run."""
    with tempfile.TemporaryDirectory() as folder:
        trainer = replace(config.trainer, steps=TRIAL, log_every=TRIAL_INTERVAL)
        runtime, trial = select_runtime(config.device), replace(config, out=folder, trainer=trainer)
        train(TokenizerTask(trial, runtime, Path(folder)), trainer, runtime, Path(folder))
        return max(1, round(seconds * speed_of(Path(folder)) / config.trainer.batch_size))


def speed_of(folder: Path) -> float:
    """Images a second of a run's training steps: the median over the lines of its log."""
    lines = map(json.loads, (folder / "stats.jsonl").read_text().splitlines())
    speeds = [line["images_per_second"] for line in lines if "images_per_second" in line]
    return statistics.median(speeds[1:] or speeds)


def scored_prefixes(tokenizer: Tokenizer) -> tuple[list[int], list[int]]:
    """The longest prefix that decodes within each budget, and what each costs in bits."""
    costs = [round(bits) for bits in itertools.accumulate(tokenizer.quantizer.bits)]
    costs = [costs[cut - 1] for cut in tokenizer.quantizer.cuts]
    places = {bisect.bisect_right(costs, bits) - 1 for bits in BUDGETS} - {-1}
    places = sorted(places | {len(costs) - 1})
    return [tokenizer.quantizer.cuts[place] for place in places], [costs[p] for p in places]


def measure(config: Config) -> dict[str, Any]:
    """What a trained method has reached on the test split."""
    folder = Path(config.out)
    result = read_json(folder / "result.json")
    tokenizer = Tokenizer.from_pretrained(folder).to(select_runtime(config.device).device)
    test = open_dataset(config.data, "test")
    lengths, bits = scored_prefixes(tokenizer)
    found: dict[str, Any] = {"bits": bits}
    searches: dict[str, dict[str, int]] = {"psnr": {}}
    if isinstance(tokenizer.quantizer, ResidualQuantizer):
        searches |= {f"psnr_{name}{effort}": {name: effort} for name, effort in SEARCHES.items()}
    for key, search in searches.items():
        values = measure_psnr(tokenizer, test, lengths, TEST_IMAGES, **search)
        found[key] = [round(value, 3) for value in values]
    found["images_per_second"] = round(speed_of(folder), 1)
    kept = ("steps", "seconds", "parameters", "code_entropy_bits", "dead_entries")
    return found | {key: result[key] for key in (*kept, "residual_train", "residual_test")}


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
    parser.add_argument(
        "--set", nargs="+", default=[], metavar="KEY=VALUE", help="in stage 1's config, for all"
    )
    args = parser.parse_args(arguments)
    if not 0 < args.minutes < math.inf:
        raise UserError(f"--minutes {args.minutes:g}: give a number above 0")
    folder, runs = args.json.parent, args.json.with_suffix("")
    if args.json.suffix != ".json" or not (folder.is_dir() and os.access(folder, os.W_OK)):
        raise UserError(f"--json {args.json}: give a .json file in a folder that can be written to")
    join_tables()
    shared = [f"data.path={args.data}", f"trainer.seed={args.seed}", *args.set]
    configs = {name: config_of(name, [*shared, f"out={runs / name}"]) for name in args.methods}
    test_images = len(open_dataset(configs[args.methods[0]].data, "test"))
    for name in args.methods:
        if (runs / name).exists():
            raise UserError(f"{runs / name} is there already; move it, or give another --json")
    report: dict[str, Any] = {
        "data": args.data,
        "minutes": args.minutes,
        "seed": args.seed,
        "test_images": min(TEST_IMAGES, test_images),
        "machine": machine(),
        "versions": versions() | {LIBRARY: importlib.metadata.version(LIBRARY)},
        "command": shlex.join(["python", "benchmarks/tokenizers.py", *arguments]),
        "methods": {},
    }
    try:
        for name, config in configs.items():
            steps = steps_in(config, 60 * args.minutes)
            say(f"{name}: {steps} steps in {args.minutes:g} minutes")
            trainer = replace(config.trainer, steps=steps, evaluate_every=steps)
            run(replace(config, trainer=trainer))
            found = report["methods"][name] = measure(config)
            write_json(args.json, report)
            say(f"{name}: {steps} steps | {found['psnr'][-1]:.2f} dB at {found['bits'][-1]} bits")
    except Stopped as stopped:
        say(f"stopped; {args.json} keeps the methods that were finished")
        raise SystemExit(SIGNALLED + stopped.signum) from None
    title = f"PSNR in dB on {Path(args.data).name}, {args.minutes:g} minutes each"
    if not save_plot(args.json.with_suffix(".png"), [panel(report["methods"], title)]):
        say("no plot: matplotlib is not installed")
    print(summary(report["methods"]))


if __name__ == "__main__":
    sys.exit(main())
