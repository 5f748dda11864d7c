"""Structure: imports go one way, every config file loads, every package ships."""

import ast
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from pqvae.config import config_to_yaml, load_config
from stage1_tokenizer.config import Config as TokenizerRunConfig
from stage2_prior.config import Config as PriorRunConfig

ROOT = Path(__file__).parents[1]
# Each may import those before it.
PACKAGES = ("pqvae", "stage1_tokenizer", "stage2_prior", "sampling", "eval")
# The prior's training draws samples as it goes.
EXCEPTIONS = {("stage2_prior/task.py", "sampling.sampler")}
CONFIGS = sorted(path.name for path in (ROOT / "configs").glob("*.yaml"))


def imports(path: Path) -> Iterator[str]:
    """The modules that a file imports, anywhere in it."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            yield node.module or ""


@pytest.mark.parametrize("package", PACKAGES)
def test_imports_go_one_way(package: str) -> None:
    allowed = PACKAGES[: PACKAGES.index(package) + 1]
    files = sorted((ROOT / package).rglob("*.py"))
    assert len(files) > 1
    for path in files:
        name = path.relative_to(ROOT).as_posix()
        for module in imports(path):
            ours = module.split(".")[0] in PACKAGES
            if ours and (name, module) not in EXCEPTIONS:
                assert module.split(".")[0] in allowed, f"{name} imports {module}"
            assert module.split(".")[0] != "tests"


def test_every_package_ships_and_is_typed() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    listed = project["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]
    assert listed == list(PACKAGES)
    found = {path.parent.name for path in ROOT.glob("*/__init__.py")}
    assert found == set(PACKAGES)  # tests/ is none: it must not end up in site-packages
    for package in PACKAGES:
        assert (ROOT / package / "py.typed").is_file()


@pytest.mark.parametrize("name", CONFIGS)
def test_every_config_file_loads(name: str) -> None:
    path = ROOT / "configs" / name
    head = [line for line in path.read_text(encoding="utf-8").splitlines() if line.startswith("#")]
    commands = [line for line in head if "python -m" in line]
    assert commands, "the first lines say what to type"
    if "stage2_prior.train" in commands[0]:
        load_config(PriorRunConfig, path, [])
    else:
        assert "stage1_tokenizer.train" in commands[0]
        load_config(TokenizerRunConfig, path, [])
    assert f"configs/{name}" in commands[0]


def test_a_file_with_configs_is_there() -> None:
    assert {"cifar10.yaml", "imagenet256.yaml"} <= set(CONFIGS)


@pytest.mark.parametrize(
    ("name", "config"),
    [("emoji.yaml", TokenizerRunConfig()), ("emoji-prior.yaml", PriorRunConfig())],
)
def test_the_emoji_files_spell_out_the_defaults(
    name: str, config: TokenizerRunConfig | PriorRunConfig
) -> None:
    text = (ROOT / "configs" / name).read_text(encoding="utf-8")
    settings = "".join(line for line in text.splitlines(True) if not line.startswith("#"))
    assert settings == config_to_yaml(config)
