import dataclasses
import json
from pathlib import Path

from eval.report import Report, format_report, write_report

REPORT = Report(
    scores={"fid": 12.345, "kid": 0.01234, "kid_std": 0.0004, "kid_subset_size": 1000},
    floor={"fid": 3.21, "kid": 0.0001, "kid_subset_size": 717},
    samples="runs/samples",
    samples_n=2000,
    samples_total=10000,
    samples_hash="a" * 64,
    sampler={"seed": 7, "settings": {"temperature": 0.9}},
    reference="emoji train",
    reference_hash="b" * 64,
    reference_split="train",
    reference_n=2000,
    reference_total=6119,
    floor_n=717,
    extractor="inception-v3-compat",
    weights="some weights",
    weights_digest="c" * 64,
    resize="299x299",
    dtype="float32",
    metric_seed=2020,
    subset_seed=0,
    device="cpu",
    versions={"pqvae": "1.2.3", "torch": "2.10"},
    command="python -m eval.fid",
    seconds=12.3,
    notes=("a note",),
)


def test_table_puts_the_floor_beside_every_score() -> None:
    rows = [line.split() for line in format_report(REPORT).splitlines()]
    assert rows[:4] == [
        ["samples", "floor", "(test", "split)"],
        ["images", "2,000", "717"],
        ["FID", "12.35", "3.21"],
        ["KID", "0.01234", "±", "0.00040", "0.00010"],
    ]


def test_table_names_only_the_scores_that_were_computed() -> None:
    scores = {"kid": 1.0, "kid_std": 0.5, "kid_subset_size": 10}
    text = format_report(dataclasses.replace(REPORT, scores=scores, floor={}))
    assert "FID" not in text
    assert "IS " not in text
    assert "floor" not in text


def test_table_states_the_protocol() -> None:
    text = format_report(REPORT)
    for fact in (
        "the first 2,000 of 10,000 images",
        "a subset (seed 0) of 2,000 of 6,119 images",
        'seed 7, {"temperature": 0.9}',
        "KID over 100 subsets of 1,000 and 717",
        "aaaaaaaa",
        "bbbbbbbb",
        "cccccccc",
        "pqvae 1.2.3",
        "a note",
    ):
        assert fact in text


def test_json_holds_everything_and_replaces_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "fid.json"
    path.write_text("old")
    write_report(REPORT, path)
    values = json.loads(path.read_text())
    assert values.pop("notes") == ["a note"]
    assert Report(**values, notes=("a note",)) == REPORT
    assert list(tmp_path.iterdir()) == [path]
