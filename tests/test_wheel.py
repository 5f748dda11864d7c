"""What is installed from the wheel works where the current directory has packages of our names."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from stage1_tokenizer.shipped import shipped_models

ROOT = Path(__file__).parents[1]
COMMANDS = ("train-tokenizer", "train-prior", "generate", "fid", "probe")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, as ``python -m build`` makes it."""
    out = tmp_path_factory.mktemp("dist")
    arguments = ["--wheel", "--no-isolation", "--outdir", str(out), str(ROOT)]
    subprocess.run([sys.executable, "-m", "build", *arguments], check=True, capture_output=True)
    (path,) = out.glob("pqvae-*.whl")
    return path


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the wheel's packages and scripts in it, and nothing else."""
    target = tmp_path_factory.mktemp("installed")
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index"]
    subprocess.run([*pip, "--target", str(target), str(wheel)], check=True)
    return target


def test_the_wheel_holds_code_data_and_licences_but_no_tests(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {"pqvae/py.typed", "eval/py.typed", "pqvae/data/emoji/emoji-train-000000.tar"} <= names
    assert {f"eval/gallery/page.{part}" for part in ("html", "css", "js")} <= names
    parts = ("README.md", "config.json", "model.safetensors", "tables.safetensors")
    for model in shipped_models():
        assert {f"stage1_tokenizer/models/{model}/{part}" for part in parts} <= names
    assert any(name.endswith("licenses/LICENSE") for name in names)
    assert any(name.endswith("licenses/pqvae/data/emoji/LICENSES.md") for name in names)
    assert not [name for name in names if name.startswith(("tests/", "benchmarks/", "configs/"))]


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_run_beside_packages_of_the_same_names(
    installed: Path, tmp_path: Path, command: str
) -> None:
    for name in ("eval", "sampling", "stage2_prior"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("raise SystemExit('not this one')")
    environment = {**os.environ, "PYTHONPATH": str(installed)}
    script = installed / "bin" / f"pqvae-{command}"
    done = subprocess.run(
        [sys.executable, "-P", str(script), "--help"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "example" in done.stdout


def test_modules_run_beside_folders_of_the_same_names(installed: Path, tmp_path: Path) -> None:
    for name in ("eval", "sampling"):  # folders of pictures, say: no packages
        (tmp_path / name).mkdir()
    environment = {**os.environ, "PYTHONPATH": str(installed)}
    for module in ("eval.fid", "sampling.generate"):
        done = subprocess.run(
            [sys.executable, "-m", module, "--help"],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
