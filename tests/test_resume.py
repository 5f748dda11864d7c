"""Commands that are killed, stopped, or meet a full disk, as processes: what is left goes on."""

import hashlib
import json
import re
import shlex
import shutil
import signal
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml
from safetensors.torch import load_file

from pqvae.files import read_json, write_json
from pqvae.images import encode_png, to_uint8
from pqvae.training.checkpoint import digest_of, load_newest_state
from sampling import generate
from stage1_tokenizer import train as train_tokenizer
from stage2_prior import train as train_prior

if TYPE_CHECKING:
    from tests.conftest import BlobImages, Process, Start, TinyRun

STAGE_1 = "stage1_tokenizer.train", "tokenizer.yaml"
STAGE_2 = "stage2_prior.train", "prior.yaml"
GENERATE = "sampling.generate", "--n=4000", "--batch-size=4", "--device=cpu", "--prior=straight-2"

# A line after every step, to know when to strike, and a state after every fourth.
TRAINER = {"steps": 20, "batch_size": 32, "log_every": 1, "evaluate_every": 4}
VIEWS = 50  # encoding them takes about a second: time to be stopped in
PRIOR = {
    "device": "cpu",
    "tokenizer": "given",
    "data": {"path": "data"},
    "views": VIEWS,
    "prior": {"width": 64, "depth": 1, "heads": 1, "code_features": 8},
    "trainer": TRAINER,
}


@dataclass(frozen=True)
class Runs:
    """A folder where both stages have run straight through, and the prior has drawn images."""

    folder: Path
    start: "Start"

    def run(self, command: Sequence[str], *arguments: str) -> "Process":
        return self.start(self.folder, "-m", *command, *arguments)

    def cut(self, straight: str, name: str) -> Path:
        """A copy of a straight run as it was after step 16 of 20."""
        folder = self.folder / name
        shutil.copytree(self.folder / straight, folder)
        shutil.rmtree(folder / "state" / "step-00000020")
        (folder / "result.json").unlink()
        return folder


@pytest.fixture(scope="module")
def runs(tiny_run: "TinyRun", start: "Start", tmp_path_factory: pytest.TempPathFactory) -> Runs:
    folder = tmp_path_factory.mktemp("resume")
    shutil.copytree(tiny_run.data, folder / "data")
    shutil.copytree(tiny_run.tokenizer, folder / "given")
    record = read_json(folder / "given" / "model" / "config.json")
    record["provenance"]["data"]["path"] = "data"
    write_json(folder / "given" / "model" / "config.json", record)
    config = yaml.safe_load((folder / "given" / "config.yaml").read_text())
    config["data"]["path"] = "data"
    del config["out"]
    config |= {
        "trainer": TRAINER,
        "quantizer": {**config["quantizer"], "revive_every": 3, "learned_codes": 4},
    }
    (folder / "tokenizer.yaml").write_text(yaml.safe_dump(config))
    (folder / "prior.yaml").write_text(yaml.safe_dump(PRIOR))
    runs = Runs(folder, start)
    for process in [runs.run(STAGE_1, "out=straight-1"), runs.run(STAGE_2, "out=straight-2")]:
        process.succeed()
    return runs


def side_by_side(*tasks: Callable[[], None]) -> None:
    """Run these at the same time; what fails in one fails here."""
    with ThreadPoolExecutor(len(tasks)) as pool:
        for future in [pool.submit(task) for task in tasks]:
            future.result()


def hashes(folder: Path) -> dict[str, str]:
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file()
    }


def newest(run: Path) -> tuple[int, dict[str, Any]]:
    found = load_newest_state(run / "state")
    assert found is not None
    return found


def outcome(run: Path) -> dict[str, Any]:
    """All that a run has come to, but for how long it took."""
    step, state = newest(run)
    result = json.loads((run / "result.json").read_text())
    lines = [json.loads(line) for line in (run / "stats.jsonl").read_text().splitlines()]
    for line in lines:
        line.pop("images_per_second", None)
    return {
        "step": step,
        "state": digest_of({name: value for name, value in state.items() if name != "seconds"}),
        "states": sorted(path.name for path in (run / "state").iterdir()),
        "stats": lines,
        "result": {name: value for name, value in result.items() if name != "seconds"},
        "files": {name: hashes(run / name) for name in ("model", "grids")},
    }


def times(folder: Path) -> dict[str, int]:
    """When each of the whole files in a folder was written, in nanoseconds."""
    files = [path for path in folder.glob("*") if ".tmp" not in path.name]
    return {path.name: path.stat().st_mtime_ns for path in files}


def codes_in(run: Path) -> dict[str, list[Any]]:
    """Of each file; the order of the metadata in front of the codes is left to chance."""
    return {path.name: load_file(path)["codes"].tolist() for path in run.glob("codes/*")}


def test_killed_runs_end_as_straight_ones_to_the_bit(runs: Runs) -> None:
    def chain(command: Sequence[str], name: str, kills: dict[int, str], last: str = "") -> None:
        """Kill after each of these steps, with other arguments each time; then let it end."""
        for step, arguments in kills.items():
            process = runs.run(command, f"out={name}", *arguments.split())
            process.wait_for(f"step {step}/20")
            process.send(signal.SIGKILL)
            assert process.end() == 137
            assert not (runs.folder / name / "result.json").exists()
        process = runs.run(command, f"out={name}", *last.split())
        process.succeed()
        assert "resuming from step" in process.told()

    side_by_side(
        lambda: chain(STAGE_1, "killed-1", {2: "", 13: ""}),  # at step 2 nothing has been saved
        lambda: chain(STAGE_1, "workers", {7: "data.workers=2"}, "data.workers=1"),
        lambda: chain(STAGE_2, "killed-2", {10: ""}),
    )
    straight_1, straight_2 = (outcome(runs.folder / f"straight-{stage}") for stage in (1, 2))
    assert outcome(runs.folder / "killed-1") == straight_1
    assert outcome(runs.folder / "workers") == straight_1  # which had none
    assert outcome(runs.folder / "killed-2") == straight_2


def stop(process: "Process", number: signal.Signals, folder: Path, message: str) -> None:
    """Send the signal; the process must say so in one line, and leave nothing half written."""
    process.send(number)
    assert process.end() == 128 + number, process.told()
    last = process.told().splitlines()[-1]
    assert re.fullmatch(f"{message}; the same command resumes from there", last)
    assert "Traceback" not in process.told()
    assert list(folder.rglob("*.tmp*")) == []


def test_stopped_training_has_saved_its_last_step_and_goes_on_alike(runs: Runs) -> None:
    def training() -> None:
        run = runs.folder / "stopped-1"
        for number, step in ((signal.SIGTERM, 5), (signal.SIGINT, 11)):
            process = runs.run(STAGE_1, "out=stopped-1")
            process.wait_for(f"step {step}/20")
            stop(process, number, run, r"stopped after step \d+ of 20, saved in stopped-1")
            done, _ = newest(run)
            assert step <= done < 20
            assert f"stopped after step {done} " in process.told()
        runs.run(STAGE_1, "out=stopped-1").succeed()

    def encoding() -> None:
        codes = runs.folder / "stopped-2" / "codes"
        process = runs.run(STAGE_2, "out=stopped-2")
        process.wait_until(lambda: len(times(codes)) >= 3)
        stop(process, signal.SIGTERM, codes.parent, "stopped")
        kept = times(codes)
        assert len(kept) < VIEWS  # of the train split; the others are one more each
        runs.run(STAGE_2, "out=stopped-2").succeed()
        assert kept.items() <= times(codes).items()  # and were not encoded again

    side_by_side(training, encoding)
    for stage in (1, 2):
        stopped, straight = (runs.folder / f"{name}-{stage}" for name in ("stopped", "straight"))
        assert outcome(stopped) == outcome(straight)
    stopped, straight = (codes_in(runs.folder / f"{name}-2") for name in ("stopped", "straight"))
    assert len(stopped) == VIEWS + 2
    assert stopped == straight


def test_stopped_sampling_goes_on_to_the_same_images(
    runs: Runs, monkeypatch: pytest.MonkeyPatch
) -> None:
    stopped, straight = runs.folder / "stopped-samples", runs.folder / "samples"
    process = runs.run(GENERATE, "--out=stopped-samples")
    process.wait_until(lambda: len(times(stopped / "images")) >= 10)
    stop(process, signal.SIGINT, stopped, "stopped")
    kept = times(stopped / "images")
    assert 10 <= len(kept) < 4000
    assert json.loads((stopped / "samples.json").read_text())["complete"] is False

    monkeypatch.chdir(runs.folder)
    for out in ("stopped-samples", "samples"):
        assert generate.main([*GENERATE[1:], f"--out={out}"]) == 0
    assert kept.items() <= times(stopped / "images").items()
    records = [json.loads((path / "samples.json").read_text()) for path in (stopped, straight)]
    assert [record.pop("complete") for record in records] == [True, True]
    assert [shlex.split(record.pop("command"))[-1] for record in records] == [
        "--out=stopped-samples",
        "--out=samples",
    ]
    assert records[0] == records[1]
    images, expected = hashes(stopped), hashes(straight)
    del images["samples.json"], expected["samples.json"]
    assert len(expected) == 4000 + 1  # and the grid
    assert images == expected


def in_process(command: Sequence[str], *arguments: str) -> int:
    """The same command without the seconds that a new process takes."""
    main = {STAGE_1: train_tokenizer.main, STAGE_2: train_prior.main}[command[0], command[1]]
    return main([*command[1:], *arguments])


def refusal(capsys: pytest.CaptureFixture[str], command: Sequence[str], *arguments: str) -> str:
    """The one line with which a command refuses."""
    capsys.readouterr()
    assert in_process(command, *arguments) == 2
    lines = capsys.readouterr().err.splitlines()
    assert [line for line in lines if line.startswith("error: ")] == lines[-1:]
    return lines[-1].removeprefix("error: ")


# Starts Python anew with a limit on the size of its files, as `ulimit -f` does.
WITH_LIMIT = """\
import os, resource, sys
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]),) * 2)
os.execv(sys.executable, [sys.executable, *sys.argv[2:]])
"""
# Starts Python anew, as root without the right to write where permissions forbid it.
WITHOUT_OVERRIDE = """\
import os, sys
if os.geteuid() == 0:
    import ctypes
    PR_CAPBSET_DROP, CAP_DAC_OVERRIDE = 24, 1
    ctypes.CDLL(None).prctl(PR_CAPBSET_DROP, CAP_DAC_OVERRIDE, 0, 0, 0)
os.execv(sys.executable, [sys.executable, *sys.argv[1:]])
"""


def test_state_that_cannot_be_saved_is_an_error_and_the_old_one_stays(
    runs: Runs, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = runs.cut("straight-1", "limit")
    before = hashes(run / "state")
    largest = max(path.stat().st_size for path in run.glob("state/*/state.pt"))
    assert max(path.stat().st_size for path in run.glob("model/*")) < largest // 2
    arguments = ("-c", WITH_LIMIT, f"{largest // 2}", "-m", *STAGE_1, "out=limit")
    process = runs.start(runs.folder, *arguments)

    monkeypatch.chdir(runs.folder)
    state = runs.cut("straight-2", "obstacle") / "state"
    shutil.rmtree(state)
    state.write_text("a file")
    message = refusal(capsys, STAGE_2, "out=obstacle")
    assert message.startswith("obstacle/state")
    assert message.endswith(": a file stands where a folder is needed")
    assert state.read_text() == "a file"

    assert process.refusal() == (
        "limit/state/step-00000020: the file is larger than this disk or a limit of this "
        "account allows"
    )
    assert list(run.rglob("*.tmp*")) == []
    assert hashes(run / "state") == before
    assert in_process(STAGE_1, "out=limit") == 0
    assert outcome(run) == outcome(runs.folder / "straight-1")


def test_state_that_may_not_be_written_is_an_error_and_the_old_one_stays(runs: Runs) -> None:
    run = runs.cut("straight-1", "forbidden")
    before = hashes(run / "state")
    (run / "state").chmod(0o555)
    probe = runs.start(runs.folder, "-c", WITHOUT_OVERRIDE, "-c", "open('forbidden/state/x', 'w')")
    if probe.end() == 0:
        pytest.skip("permissions do not count for this user")
    arguments = ("-c", WITHOUT_OVERRIDE, "-m", *STAGE_1, "out=forbidden")
    message = runs.start(runs.folder, *arguments).refusal()
    (run / "state").chmod(0o755)
    assert message.startswith("forbidden/state")
    assert message.endswith(": no permission")
    assert hashes(run / "state") == before


def test_second_command_in_a_run_folder_is_refused_and_the_first_goes_on(
    runs: Runs, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(runs.folder)
    run = runs.cut("straight-1", "shared")
    first = runs.run(STAGE_1, "out=shared")
    first.wait_for("step 17/20")
    first.send(signal.SIGSTOP)  # so that it has the folder for long enough
    before = hashes(run)
    message = refusal(capsys, STAGE_1, "out=shared")
    assert message.startswith("shared: another process is at work in this folder")
    assert hashes(run) == before
    first.send(signal.SIGCONT)
    first.succeed()
    assert outcome(run) == outcome(runs.folder / "straight-1")


def test_run_goes_on_under_harmless_changes_only(
    runs: Runs, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    runs.cut("straight-1", "here").rename(runs.folder / "moved")
    harmless = "out=moved device=auto data.workers=1 trainer.accumulate=2 trainer.log_every=2"
    process = runs.run(STAGE_1, *harmless.split(), "trainer.steps=23")

    monkeypatch.chdir(runs.folder)
    for straight, command, changes in (
        ("straight-1", STAGE_1, ["data.shift=0", "quantizer.revive_every=4"]),
        ("straight-2", STAGE_2, ["prior.depth=2", "trainer.learning_rate=1e-4"]),
    ):
        run = runs.cut(straight, f"changed-{straight}")
        before = hashes(run)
        arguments = [f"out={run.name}", *changes, "trainer.log_every=9"]
        message = refusal(capsys, command, *arguments)
        keys = ", ".join(change.partition("=")[0] for change in changes)
        assert message.startswith(f"{run.name} holds a run with another {keys}; ")
        assert hashes(run) == before

    process.succeed()
    assert "resuming from step 16 in moved" in process.told()
    assert outcome(runs.folder / "moved")["result"]["steps"] == 23
    lines = outcome(runs.folder / "moved")["stats"]
    assert [line["step"] for line in lines if "loss" in line] == [*range(1, 17), 18, 20, 22, 23]


def test_run_does_not_go_on_with_other_training_images(
    runs: Runs,
    blob_images: "BlobImages",
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(runs.folder)
    image = runs.folder / "data" / "train" / "circles" / "00.png"
    original = image.read_bytes()
    image.write_bytes(encode_png(to_uint8(blob_images(1, 16, 7)[0])))
    try:
        for straight, command, text in (
            ("straight-1", STAGE_1, "other-straight-1: the training images in data are not those"),
            ("straight-2", STAGE_2, "given was trained on other images than those in data;"),
        ):
            run = runs.cut(straight, f"other-{straight}")
            before = hashes(run / "state") | hashes(run / "model")
            message = refusal(capsys, command, f"out={run.name}")
            assert message.startswith(text)
            assert hashes(run / "state") | hashes(run / "model") == before
    finally:
        image.write_bytes(original)
