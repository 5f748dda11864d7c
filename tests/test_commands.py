"""The commands as a user types them: what they write and say, and how they refuse bad input."""

import importlib
import itertools
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from eval.networks import trunk
from stage1_tokenizer import Tokenizer
from stage2_prior import Prior

ROOT = Path(__file__).parents[1]
COMMANDS = (
    "stage1_tokenizer.train",
    "stage1_tokenizer.reconstruct",
    "stage2_prior.train",
    "sampling.generate",
    "sampling.gallery",
    "eval.fid",
    "eval.reconstruction",
    "eval.rate_distortion",
    "eval.probe",
    "eval.memorization",
)
needs_trunk = pytest.mark.skipif(
    trunk.installed_trunk() is None, reason=f"{trunk.PACKAGE} is not installed"
)

# The folders are the defaults, so that the commands find each other's without arguments.
TINY = """\
device: cpu
data:
  path: {data}
  image_size: 16
  shift: 1
architecture:
  widths: [16, 32]
  encoder_blocks: [0, 1]
  decoder_blocks: [0, 1]
  latent_channels: 4
quantizer:
  num_codes: 6
  codebook_sizes: [16]
trainer:
  steps: 20
  batch_size: 16
  evaluate_every: 10
"""
TINY_PRIOR = """\
device: cpu
views: 2
prior:
  width: 64
  depth: 1
  heads: 1
  code_features: 8
trainer:
  steps: 20
  batch_size: 16
  evaluate_every: 10
"""


def run_process(arguments: Sequence[str], folder: Path) -> subprocess.CompletedProcess[str]:
    """Run Python with these arguments in a folder, as on a machine without internet."""
    nowhere = "http://127.0.0.1:9"
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
        "TORCH_HOME": str(folder / "torch"),
        "XDG_CACHE_HOME": str(folder / "cache"),
        "http_proxy": nowhere,
        "https_proxy": nowhere,
    }
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def run_command(folder: Path, *arguments: str) -> str:
    """Run ``python -m ...``; returns the last line of its stdout."""
    done = run_process(["-m", *arguments], folder)
    assert done.returncode == 0, done.stderr
    assert "Warning" not in done.stderr
    return done.stdout.splitlines()[-1]


def in_process(command: str, *arguments: str) -> int:
    """The same command without the seconds that a new process takes to import torch."""
    code = importlib.import_module(command).main(list(arguments))
    assert isinstance(code, int)
    return code


@pytest.fixture(scope="module")
def finished(tiny_run: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """A folder where the first three commands have run, and the last line of each."""
    folder = tmp_path_factory.mktemp("commands")
    (folder / "tiny.yaml").write_text(TINY.format(data=tiny_run.data))
    (folder / "tiny-prior.yaml").write_text(TINY_PRIOR)
    lines = [
        run_command(folder, "stage1_tokenizer.train", "tiny.yaml"),
        run_command(folder, "stage2_prior.train", "tiny-prior.yaml"),
        run_command(folder, "sampling.generate", "--n", "12", "--device", "cpu"),
    ]
    return folder, lines


@pytest.fixture
def work(finished: tuple[Path, list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the finished folder, which is the current one."""
    folder = tmp_path / "work"
    shutil.copytree(finished[0], folder)
    monkeypatch.chdir(folder)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return folder


def test_stage_1_writes_its_run_folder(finished: tuple[Path, list[str]]) -> None:
    folder, lines = finished
    assert lines[0].startswith("made runs/tokenizer/model; look at runs/tokenizer/")
    assert lines[0].endswith("then: python -m stage2_prior.train")
    run = folder / "runs" / "tokenizer"
    assert {"config.yaml", "grids", "model", "result.json", "state", "stats.jsonl"} <= {
        path.name for path in run.iterdir()
    }
    names = [path.name for path in sorted((run / "grids").iterdir())]
    assert {"step-00000010.png", "step-00000020.png"} <= set(names)
    result = json.loads((run / "result.json").read_text())
    assert list(result["psnr"]) == ["1", "2", "4", "6"]
    assert all(5 < value < 60 for value in result["psnr"].values())
    for split in ("train", "test"):
        shares = result[f"residual_{split}"]
        assert len(shares) == 6
        assert all(0 < later < share < 1 for share, later in itertools.pairwise(shares))
    assert len(result["code_entropy_bits"]) == 6
    assert all(0 <= bits <= 4 for bits in result["code_entropy_bits"])
    assert result["bits_per_image"] == 6 * 4
    assert result["images_seen"] == 20 * 16
    assert result["psnr_images"] == 12
    assert result["seconds"] > 0
    assert {"python", "torch", "pqvae"} <= set(result["versions"])
    assert result["content_hash"] == Tokenizer.from_pretrained(run).content_hash


def test_stage_2_writes_its_run_folder(finished: tuple[Path, list[str]]) -> None:
    folder, lines = finished
    assert lines[1].startswith("made runs/prior/model; look at runs/prior/")
    assert lines[1].endswith("then: python -m sampling.generate --n 10000")
    run = folder / "runs" / "prior"
    assert {"codes", "config.yaml", "grids", "model", "result.json"} <= {
        path.name for path in run.iterdir()
    }
    result = json.loads((run / "result.json").read_text())
    for split in ("test", "train", "test_unigram"):
        bits = result[split]["bits_per_code"]
        assert len(bits) == 6
        assert all(0 < value < 12 for value in bits)
        # 6 numbers rounded to a thousandth.
        assert result[split]["bits_per_image"] == pytest.approx(sum(bits), abs=0.01)
    assert result["fixed_length_bits_per_image"] == 24
    prior = Prior.from_pretrained(run)
    assert result["content_hash"] == prior.content_hash
    assert prior.class_names == ("circles", "squares", "stripes")
    assert prior.class_counts == (22, 22, 22)
    tokenizer = Tokenizer.from_pretrained(folder / "runs" / "tokenizer")
    assert result["codes_hash"] == prior.provenance["codes_hash"] == tokenizer.codes_hash


def test_generation_writes_samples(finished: tuple[Path, list[str]]) -> None:
    folder, lines = finished
    assert lines[2].startswith("made 12 images in runs/samples/images (12 new, ")
    assert lines[2].endswith("look at runs/samples/grid.png, then: python -m eval.fid")
    assert len(list((folder / "runs" / "samples" / "images").iterdir())) == 12


@needs_trunk
def test_the_score_needs_no_internet_where_the_trunk_is_installed(work: Path) -> None:
    last = run_command(work, "eval.fid", "--n", "4", "--reference-n", "4", "--device", "cpu")
    assert last.startswith("wrote runs/samples/fid.json; ")
    assert last.endswith("look at runs/samples/grid.png beside it")
    report = json.loads((work / "runs" / "samples" / "fid.json").read_text())
    scored, floor = report["rows"]
    assert {"fid", "kid", "precision"} <= scored.keys() == floor.keys()
    assert "isc" not in scored
    facts = report["facts"]
    assert [facts[side]["images"] for side in ("samples", "reference", "floor")] == [4, 4, 4]
    assert report["command"] == "python -m eval.fid --n 4 --reference-n 4 --device cpu"


def test_a_finished_training_changes_nothing_when_called_again(work: Path) -> None:
    before = {
        name: (work / "runs" / name / "model" / "config.json").read_bytes()
        for name in ("tokenizer", "prior")
    }
    assert in_process("stage1_tokenizer.train", "tiny.yaml") == 0
    assert in_process("stage2_prior.train", "tiny-prior.yaml") == 0
    for name, data in before.items():
        assert (work / "runs" / name / "model" / "config.json").read_bytes() == data


def test_other_folders_are_named_in_the_next_command(
    work: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def last() -> str:
        return capsys.readouterr().out.splitlines()[-1]

    assert in_process("stage1_tokenizer.train", "tiny.yaml", "trainer.steps=1", "out=t") == 0
    assert last().endswith("then: python -m stage2_prior.train tokenizer=t out=t-prior")
    arguments = ("tiny-prior.yaml", "trainer.steps=1", "tokenizer=t", "out=t-prior")
    assert in_process("stage2_prior.train", *arguments) == 0
    assert last().endswith("then: python -m sampling.generate --n 10000 --prior t-prior")


def test_any_picture_can_be_reconstructed(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    picture = next((work / "runs" / "tokenizer" / "grids").iterdir())
    arguments = ("--out", "strip.png", "--device", "cpu")
    assert in_process("stage1_tokenizer.reconstruct", str(picture), *arguments) == 0
    output = capsys.readouterr().out
    assert "cut and resized to 16x16" in output
    assert "PSNR in dB by prefix length  1:" in output
    assert output.splitlines()[-1].startswith("made strip.png")
    assert (work / "strip.png").is_file()


HELP = """
import runpy, sys
sys.argv = ["x", sys.argv[2]]
try:
    runpy.run_module({command!r}, run_name="__main__", alter_sys=True)
except SystemExit as end:
    assert not end.code, end.code
assert not sys.modules.keys() & {{"torch", "numpy", "matplotlib", "sklearn"}}
"""


@pytest.mark.parametrize("command", COMMANDS)
def test_help_starts_with_examples_and_does_not_wait_for_torch(
    command: str, tmp_path: Path
) -> None:
    done = run_process(["-c", HELP.format(command=command), "x", "--help"], tmp_path)
    assert done.returncode == 0, done.stderr
    examples = done.stdout.partition("examples:")[2].splitlines()[1:3]
    assert all(line.startswith(f"  python -m {command}") for line in examples)
    assert done.stderr == ""


# Bad input. {data} is the data of the tiny run; the current folder is a copy of a finished one.

STAGE_1, STAGE_2 = "stage1_tokenizer.train", "stage2_prior.train"
GENERATE, FID, RECONSTRUCT = "sampling.generate", "eval.fid", "stage1_tokenizer.reconstruct"
BAD_INPUT: list[tuple[str, str, str]] = [
    (STAGE_1, "data.path=no/such out=x", "no/such: no such file or folder; give emoji, cifar10"),
    (STAGE_1, "data.path=empty out=x", "empty: no images and no .tar shards in this folder"),
    (STAGE_1, "data.path=tiny.yaml out=x", "tiny.yaml: no source of images can read this"),
    (STAGE_1, "trainer.step=9", "command line: unknown key 'trainer.step' (did you mean 'trainer."),
    (STAGE_1, "bad.yaml", "bad.yaml: unknown key 'quantiser' (did you mean 'quantizer'?)"),
    (STAGE_1, "no.yaml", "no.yaml: no such config file"),
    (STAGE_1, "trainer.steps=many", "command line: 'trainer.steps' must be a whole number"),
    (STAGE_1, "trainer.steps=0", "command line: 'trainer.steps' must be 1 to 1000000000, n"),
    (STAGE_1, "quantizer.num_codes=0", "command line: 'quantizer.num_codes' must be 1 to 4096,"),
    (STAGE_1, "device=abacus", "device 'abacus' cannot be used here"),
    (STAGE_1, "device=meta", "device 'meta' is not supported; try auto, cpu, cuda or mps"),
    (STAGE_1, "tiny.yaml quantizer.num_codes=5", "runs/tokenizer holds a run with another quant"),
    (STAGE_1, "tiny.yaml out=empty/..", "empty/.. exists and is not a run folder; choose another"),
    (STAGE_1, "tiny.yaml out=tiny.yaml/x", "tiny.yaml/x: a file stands where a folder is needed"),
    (STAGE_2, "tokenizer=no/such out=x", "no/such: no tokenizer here; run python -m stage1_token"),
    (
        STAGE_2,
        "tokenizer=runs/prior out=x",
        "runs/prior/model: holds a prior, but a tokeni",
    ),
    (STAGE_2, "tiny-prior.yaml prior.width=128", "runs/prior holds a run with another prior.width"),
    (STAGE_2, "prior.with=3", "command line: unknown key 'prior.with' (did you mean 'prior.width'"),
    (STAGE_2, "views=0", "command line: 'views' must be 1 to 10000, not 0"),
    (STAGE_2, "prior.width=64 prior.heads=5", "command line: width 64 must"),
    (STAGE_2, "tiny-prior.yaml out=tiny.yaml/x", "tiny.yaml/x: a file stands where a folder is n"),
    (GENERATE, "", "the following arguments are required: --n"),
    (GENERATE, "--n 0", "argument --n: '0' is not a whole number of at least 1"),
    (GENERATE, "--n 2 --out x --prior no/such", "no/such: no prior here; run python -m stage2_p"),
    (GENERATE, "--n 2 --out x --prior runs/tokenizer", "runs/tokenizer/model: holds a tokenizer"),
    (GENERATE, "--n 2 --out x --class ghosts", "--class ghosts: the classes are circles, square"),
    (GENERATE, "--n 2 --out x --prefix 7", "--prefix 7: an image has 1 to 6 codes"),
    (GENERATE, "--n 2", "runs/samples holds 12 samples already"),
    (GENERATE, "--n 12 --seed 1", "runs/samples holds samples of another seed"),
    (GENERATE, "--n 2 --out tiny.yaml/x", "tiny.yaml/x: a file stands where a folder is needed"),
    (FID, "--samples no/such", "no/such: no such folder; `python -m sampling.generate"),
    (FID, "--n 0", "argument --n: '0' is not a whole number of at least 1"),
    (FID, "--weights tiny.yaml", "tiny.yaml: sha256 is "),
    (FID, "--json tiny.yaml/x.json", "--json tiny.yaml/x.json: there is no folder tiny.yaml"),
    (RECONSTRUCT, "tiny.yaml", "tiny.yaml: not an image; a picture file is needed"),
    (FID, "--json runs/samples/samples.json", "--json runs/samples/samples.json: is there already"),
    (FID, "--export-reference x.json", "--export-reference x.json: must end in .npz"),
    (
        FID,
        "--samples a.npz --export-reference empty/../a.npz",
        "--export-reference empty/../a.npz: would replace a.npz; give another name",
    ),
    (
        RECONSTRUCT,
        "a.png --out empty/../a.png",
        "--out empty/../a.png: is the picture a.png itself; give another name",
    ),
    (RECONSTRUCT, "a.png --out link.png", "--out link.png: is the picture a.png itself"),
    (RECONSTRUCT, "a.png --out x.jpg", "--out x.jpg: must end in .png, as it becomes a PNG"),
    (RECONSTRUCT, "a.png --out strip", "--out strip: must end in .png, as it becomes a PNG"),
    (RECONSTRUCT, "no.png", "no.png: no such picture file"),
    (RECONSTRUCT, "no.png --tokenizer runs/prior", "runs/prior/model: holds a prior, but a tok"),
]


def everything_in(folder: Path) -> dict[Path, bytes | None]:
    return {path: path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


def check_refusal(code: int, error: str, message: str) -> None:
    assert code == 2
    lines = error.splitlines()
    assert "Traceback" not in error
    assert [line for line in lines if line.startswith("error:")] == lines[-1:]
    assert lines[-1].startswith(f"error: {message}")


@pytest.mark.parametrize(
    ("command", "arguments", "message"), BAD_INPUT, ids=[f"{c} {a}" for c, a, _ in BAD_INPUT]
)
def test_bad_input_is_one_line_and_leaves_nothing(
    work: Path, capsys: pytest.CaptureFixture[str], command: str, arguments: str, message: str
) -> None:
    (work / "empty").mkdir()
    (work / "bad.yaml").write_text("quantiser:\n  num_codes: 3\n")
    shutil.copy(work / "runs" / "samples" / "grid.png", work / "a.png")
    (work / "link.png").symlink_to("a.png")
    (work / "a.npz").write_bytes(b"")
    before = everything_in(work)
    capsys.readouterr()
    code = in_process(command, *arguments.split())
    output = capsys.readouterr()
    check_refusal(code, output.err, message)
    assert output.out == ""
    assert everything_in(work) == before


def test_bad_input_is_refused_by_a_process_as_well(work: Path) -> None:
    for arguments, message in (
        (["sampling.generate", "--n", "0"], "argument --n: '0' is not a whole number"),
        (["eval.fid", "--metrics", "fidd"], "--metrics: no metric 'fidd'; did you mean fid?"),
        (["stage1_tokenizer.train", "trainer.step=9"], "command line: unknown key 'trainer.step'"),
    ):
        done = run_process(["-m", *arguments], work)
        check_refusal(done.returncode, done.stderr, message)
        assert done.stdout == ""


def retrain(folder: Path) -> None:
    """Stand in for a tokenizer that was trained anew in the same folder."""
    tokenizer = Tokenizer.from_pretrained(folder)
    with torch.no_grad():
        next(tokenizer.encoder.parameters()).add_(0.1)
    tokenizer.save_pretrained(folder / "model")


def test_a_prior_of_another_tokenizer_is_refused(
    work: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    retrain(work / "runs" / "tokenizer")
    capsys.readouterr()
    code = in_process(GENERATE, "--n", "2", "--out", "x")
    check_refusal(code, capsys.readouterr().err, "runs/prior was trained on tokenizer ")
    code = in_process(STAGE_2, "tiny-prior.yaml")
    check_refusal(code, capsys.readouterr().err, "runs/prior was trained on tokenizer ")
    shutil.rmtree(work / "runs" / "tokenizer")
    code = in_process(GENERATE, "--n", "2", "--out", "x")
    check_refusal(code, capsys.readouterr().err, "runs/tokenizer: no tokenizer here")
    assert not (work / "x").exists()
