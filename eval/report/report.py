"""Numbers with everything that decided them: as a table for people, as JSON for programs."""

import dataclasses
import importlib.metadata
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eval.report.options import Request
from pqvae.files import write_json
from pqvae.runtime import versions

HEX_SHOWN = 16  # digits of a digest in the text; the JSON has them all


@dataclass(frozen=True, slots=True)
class Column:
    """How one value of each row is shown."""

    key: str
    title: str
    digits: int = 2  # after the point
    deviation: str | None = None  # key of its standard deviation


@dataclass(frozen=True, kw_only=True, slots=True)
class Report:
    rows: tuple[dict[str, Any], ...]  # what was measured: a row for each thing that was
    facts: dict[str, dict[str, Any]]  # what decided it: images, models, networks, settings, seeds
    notes: tuple[str, ...]
    device: str
    versions: dict[str, str]
    command: str
    seconds: float


def make_report(
    rows: Sequence[dict[str, Any]],
    facts: Mapping[str, Mapping[str, Any]],
    notes: Sequence[str],
    device: object,
    request: Request,
) -> Report:
    """A report of what has just been measured.

    Args:
        rows: A row for each thing measured, by the keys of ``Column``.
        facts: What decided the numbers, by subject; facts that are None or empty are skipped.
        notes: Sentences on how to read them.
        device: Where it was computed.
        request: The command that asked for it.
    """
    kept = {
        subject: {name: fact for name, fact in about.items() if fact not in (None, "", {}, ())}
        for subject, about in facts.items()
    }
    return Report(
        rows=tuple(rows),
        facts={subject: about for subject, about in kept.items() if about},
        notes=tuple(notes),
        device=str(device),
        versions={**versions(), "torch-fidelity": importlib.metadata.version("torch-fidelity")},
        command=request.command,
        seconds=round(time.monotonic() - request.started, 1),
    )


def format_report(report: Report, columns: Sequence[Column]) -> str:
    """The table and what decided it, as text without a final newline.

    Args:
        report: What was measured.
        columns: Of the table; one that no row has a value for is left out.
    """
    shown = [column for column in columns if any(column.key in row for row in report.rows)]
    cells = [[column.title for column in shown]]
    cells += [[_cell(row, column) for column in shown] for row in report.rows]
    widths = [max(len(row[place]) for row in cells) for place in range(len(shown))]
    lines = [
        "  ".join(
            text.rjust(width) if place else text.ljust(width)
            for place, (text, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in cells
    ]
    about = {subject: _sentence(facts) for subject, facts in report.facts.items()}
    about["computed"] = f"on {report.device} in {report.seconds:.0f} s; " + ", ".join(
        f"{name} {version}" for name, version in report.versions.items()
    )
    width = max(len(subject) for subject in about)
    lines.append("")
    lines += [f"{subject:<{width}}  {text}" for subject, text in about.items()]
    lines += [f"{'note':<{width}}  {note}" for note in report.notes]
    return "\n".join(line.rstrip() for line in lines)


def write_report(report: Report, path: Path) -> None:
    """Write the report as JSON, whole or not at all."""
    write_json(path, dataclasses.asdict(report))


def _cell(row: Mapping[str, Any], column: Column) -> str:
    value = row.get(column.key)
    if value is None:
        return "-"
    text = _value(value, column.digits)
    deviation = row.get(column.deviation) if column.deviation else None
    return text if deviation is None else f"{text} ± {_value(deviation, column.digits)}"


def _sentence(facts: Mapping[str, Any]) -> str:
    return ", ".join(f"{name.replace('_', ' ')} {_fact(fact)}" for name, fact in facts.items())


def _fact(fact: Any) -> str:
    if isinstance(fact, str) and len(fact) == 64 and set(fact) <= set("0123456789abcdef"):
        return fact[:HEX_SHOWN]
    if isinstance(fact, Mapping):
        return f"({_sentence(fact)})"
    if isinstance(fact, list | tuple):
        return " ".join(_fact(one) for one in fact)
    if isinstance(fact, float):
        return f"{fact:zg}"
    # A seed such as 2020 is no quantity.
    return _value(fact, 0) if isinstance(fact, int) and fact >= 10_000 else str(fact)


def _value(value: Any, digits: int) -> str:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    # "z": a distance that is 0 but for rounding is not shown as -0.00.
    return f"{value:,}" if isinstance(value, int) else f"{value:z,.{digits}f}"
