"""A score with everything that decided it, as a table for people and as JSON."""

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pqvae.files import write_json

# Score, its deviation, its name in the table, digits after the point.
_ROWS = (
    ("fid", None, "FID", 2),
    ("kid", "kid_std", "KID", 5),
    ("isc", "isc_std", "IS", 2),
    ("precision", None, "precision", 3),
    ("recall", None, "recall", 3),
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Report:
    scores: dict[str, float]  # of the samples
    floor: dict[str, float]  # of held-out real images, the best that is to be expected; or empty
    samples: str  # folder
    samples_n: int
    samples_total: int  # images in the folder
    samples_hash: str  # sha256 of the scored pixels, in order
    sampler: dict[str, Any]  # samples.json; empty for a plain folder of images
    reference: str
    reference_hash: str  # content hash of the whole split
    reference_split: str
    reference_n: int
    reference_total: int  # images in the split
    floor_n: int  # images of the test split; 0 without a floor
    extractor: str
    weights: str
    weights_digest: str  # sha256 of the weights file
    resize: str
    dtype: str
    metric_seed: int
    subset_seed: int  # draws the images of the reference and of the floor
    device: str
    versions: dict[str, str]
    command: str
    seconds: float
    notes: tuple[str, ...]


def format_report(report: Report) -> str:
    """The table and the protocol, as text without a final newline."""
    floor = bool(report.floor)
    lines = [_line("", "samples", "floor (test split)" if floor else "")]
    lines.append(_line("images", f"{report.samples_n:,}", f"{report.floor_n:,}" if floor else ""))
    for key, deviation, name, digits in _ROWS:
        if key in report.scores:
            cells = [_cell(scores, key, deviation, digits) for scores in _columns(report)]
            lines.append(_line(name, *cells))
    settings = report.sampler.get("settings")
    protocol = {
        "samples": f"{report.samples}, {_of(report.samples_n, report.samples_total)}, "
        f"sha256 {report.samples_hash[:16]}",
        "sampler": f"seed {report.sampler.get('seed')}, {json.dumps(settings)}" if settings else "",
        "reference": f"{report.reference}, "
        f"{_of(report.reference_n, report.reference_total, report.subset_seed)}, "
        f"content {report.reference_hash[:16]}",
        "floor": "the test split against the same reference: what real images score"
        if floor
        else "",
        "extractor": f"{report.extractor}, {report.weights}, sha256 {report.weights_digest[:16]}",
        "protocol": f"resized to {report.resize}; {report.dtype}; seed {report.metric_seed}"
        + _kid_subsets(report),
        "computed": f"on {report.device} in {report.seconds:.0f} s; "
        + ", ".join(f"{name} {version}" for name, version in report.versions.items()),
    }
    lines.append("")
    lines += [f"{name:<10} {text}" for name, text in protocol.items() if text]
    lines += [f"{'note':<10} {note}" for note in report.notes]
    return "\n".join(line.rstrip() for line in lines)


def write_report(report: Report, path: Path) -> None:
    """Write the report as JSON, whole or not at all."""
    write_json(path, dataclasses.asdict(report))


def _columns(report: Report) -> tuple[Mapping[str, float], ...]:
    return (report.scores, report.floor) if report.floor else (report.scores,)


def _line(name: str, *cells: str) -> str:
    return f"{name:<10}" + "".join(f"{cell:>22}" for cell in cells)


def _cell(scores: Mapping[str, float], key: str, deviation: str | None, digits: int) -> str:
    if key not in scores:
        return "-"
    text = f"{scores[key]:.{digits}f}"
    return f"{text} ± {scores[deviation]:.{digits}f}" if deviation in scores else text


def _of(n: int, total: int, seed: int | None = None) -> str:
    if n == total:
        return f"all {n:,} images"
    chosen = "the first" if seed is None else f"a subset (seed {seed}) of"
    return f"{chosen} {n:,} of {total:,} images"


def _kid_subsets(report: Report) -> str:
    sizes = [f"{scores['kid_subset_size']:,}" for scores in _columns(report) if "kid" in scores]
    return f"; KID over 100 subsets of {' and '.join(sizes)}" if sizes else ""
