"""Arguments that several scores share, and where a report goes; imports no torch."""

import shlex
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from eval.networks import NETWORKS
from pqvae.cli import Parser, positive_int
from pqvae.errors import UserError
from pqvae.files import read_json

SPLITS = ("train", "val", "test")


@dataclass(frozen=True, slots=True)
class Request:
    """What a report says of the command that asked for it."""

    command: str  # what to type to have the same again
    output: Path  # the report's JSON; pictures take its name
    started: float = field(default_factory=time.monotonic)


def request(module: str, arguments: Sequence[str], given: Path | None, default: Path) -> Request:
    """A request by these arguments of a command; ``given`` and ``default`` as ``report_path``."""
    command = shlex.join(["python", "-m", module, *arguments])
    return Request(command, report_path(given, default))


def add_tokenizer(parser: Parser) -> None:
    parser.add_argument(
        "--tokenizer",
        type=Path,
        default=Path("runs/tokenizer"),
        metavar="DIR",
        help="run folder of stage 1 (default: %(default)s)",
    )


def add_data(parser: Parser) -> None:
    parser.add_argument(
        "--data",
        metavar="DATA",
        help="emoji, cifar10, a folder or a glob of shards (default: the tokenizer's own data)",
    )


def add_samples(parser: Parser) -> None:
    parser.add_argument(
        "--samples",
        type=Path,
        default=Path("runs/samples"),
        metavar="DIR",
        help="folder of sampling.generate, of images or of shards; or an .npz file "
        "(default: %(default)s)",
    )
    parser.add_argument(
        "--n", type=positive_int, metavar="N", help="score the first N samples (default: all)"
    )


def add_split(parser: Parser, whose: str, default: str) -> None:
    parser.add_argument(
        "--split",
        choices=SPLITS,
        help=f"{whose} (default: {default}; data without splits that the model has not seen count "
        "whole)",
    )


def add_extractor(parser: Parser, default: str | None, about: str, *more: str) -> None:
    """Add --extractor and --weights; ``more`` are choices besides the networks."""
    parser.add_argument("--extractor", choices=(*NETWORKS, *more), default=default, help=about)
    parser.add_argument(
        "--weights",
        type=Path,
        metavar="FILE",
        help="weights of the network (default: the cache, a download, or the package)",
    )


def add_beam(parser: Parser) -> None:
    parser.add_argument(
        "--beam",
        type=positive_int,
        default=1,
        metavar="B",
        help="width of the search for better codes (default: 1, greedy); takes B times as long",
    )


def add_report(parser: Parser, default: str) -> None:
    """Add --json and --device; ``default`` says where the report goes by itself."""
    parser.add_argument(
        "--json",
        type=Path,
        metavar="FILE",
        help=f"the report, with pictures, if any, beside it (default: {default})",
    )
    parser.add_argument(
        "--device", default="auto", help="cpu, cuda, cuda:1, mps or auto (default: %(default)s)"
    )


def report_path(given: Path | None, default: Path) -> Path:
    """Where the report goes.

    Raises:
        UserError: The path given does not end in .json, its folder is missing, or it is something
            else than a report.
    """
    if given is None:
        return default
    if given.suffix != ".json":
        raise UserError(f"--json {given}: must end in .json; pictures take its name")
    if not given.parent.is_dir():
        raise UserError(f"--json {given}: there is no folder {given.parent}")
    if given.is_file() and not _is_report(given):
        raise UserError(f"--json {given}: is there already and no report; give another name")
    return given


def _is_report(path: Path) -> bool:
    try:
        values = read_json(path)
    except UserError:
        return False
    return isinstance(values, dict) and {"rows", "facts"} <= values.keys()


def report_of_samples(samples: Path, score: str) -> Path:
    """Where the report on samples goes by itself: into the folder that ``sampling.generate`` fills.

    Beside all else: in a plain folder of pictures, those of a report would be new samples.
    """
    if (samples / "samples.json").is_file() or not samples.exists():
        return samples / f"{score}.json"
    samples = samples if samples.name else samples.resolve()
    name = samples.name if samples.is_dir() else samples.stem
    return samples.with_name(f"{name}-{score}.json")
