import dataclasses
import json
from pathlib import Path

from eval.report.options import Request
from eval.report.report import Column, Report, format_report, make_report, write_report

COLUMNS = (
    Column("subject", ""),
    Column("images", "images"),
    Column("fid", "FID", 2),
    Column("kid", "KID", 5, "kid_std"),
    Column("isc", "IS", 2),
)
REPORT = Report(
    rows=(
        {"subject": "samples", "images": 2000, "fid": 12.345, "kid": 0.01234, "kid_std": 0.0004},
        {"subject": "floor", "images": 717, "fid": 3.21},
    ),
    facts={
        "samples": {"path": "runs/samples", "images": 2000, "of": 10000, "sha256": "a" * 64},
        "sampler": {"seed": 7, "temperature": 0.9, "layers": [1, 2], "with": {"top_p": 1.0}},
    },
    notes=("a note",),
    device="cpu",
    versions={"pqvae": "1.2.3", "torch": "2.10"},
    command="python -m eval.fid",
    seconds=12.3,
)


def test_table_has_a_row_for_each_subject() -> None:
    rows = [line.split() for line in format_report(REPORT, COLUMNS).splitlines()]
    assert rows[:3] == [
        ["images", "FID", "KID"],
        ["samples", "2,000", "12.35", "0.01234", "±", "0.00040"],
        ["floor", "717", "3.21", "-"],
    ]


def test_what_rounds_to_zero_has_no_sign() -> None:
    row = {"subject": "samples", "images": 3, "fid": -0.0, "kid": -0.000004, "isc": -0.006}
    report = dataclasses.replace(REPORT, rows=(row,), facts={"x": {"y": -0.0}})
    lines = format_report(report, COLUMNS).splitlines()
    assert lines[1].split() == ["samples", "3", "0.00", "0.00000", "-0.01"]
    assert lines[3] == "x         y 0"


def test_text_states_what_decided_the_numbers() -> None:
    lines = format_report(REPORT, COLUMNS).splitlines()
    assert lines[4:] == [
        "samples   path runs/samples, images 2000, of 10,000, sha256 aaaaaaaaaaaaaaaa",
        "sampler   seed 7, temperature 0.9, layers 1 2, with (top p 1)",
        "computed  on cpu in 12 s; pqvae 1.2.3, torch 2.10",
        "note      a note",
    ]


def test_facts_that_are_not_there_are_skipped() -> None:
    facts = {"samples": {"n": 3, "of": None, "seed": 0}, "sampler": {"seed": None, "settings": {}}}
    report = make_report([], facts, [], "cpu", Request("x", Path("x.json")))
    assert report.facts == {"samples": {"n": 3, "seed": 0}}
    assert {"pqvae", "torch", "torch-fidelity"} <= report.versions.keys()


def test_json_holds_everything_and_replaces_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "fid.json"
    path.write_text("old")
    write_report(REPORT, path)
    values = json.loads(path.read_text())
    assert values == json.loads(json.dumps(dataclasses.asdict(REPORT)))
    assert list(tmp_path.iterdir()) == [path]
