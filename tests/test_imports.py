"""Structure: imports go one way and in no circle, every config file loads, every package ships."""

import ast
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pqvae.config import load_config
from stage1_tokenizer.config import Config as TokenizerRunConfig
from stage1_tokenizer.drawn_config import Config as DrawnRunConfig
from stage2_prior.config import Config as PriorRunConfig

ROOT = Path(__file__).parents[1]
# Each may import those before it.
PACKAGES = ("pqvae", "stage1_tokenizer", "stage2_prior", "sampling", "eval")
CONFIGS = sorted(path.name for path in (ROOT / "configs").glob("*.yaml"))
# Commands: they parse, and import the one module that does the work when they are called.
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
FACES = tuple(entry.removesuffix(":main") for entry in PROJECT["project"]["scripts"].values())
PUBLIC = (
    "stage1_tokenizer",
    "stage2_prior",
    "stage2_prior.codec",
)  # import their class when it is asked for
# Rooms of kinds: what a kind may import besides the ground and torch.
KINDS = {
    "stage1_tokenizer.quantizers": {
        "stage1_tokenizer.config",
        "stage1_tokenizer.quantizers.contract",
        "stage1_tokenizer.quantizers.codes",
        "stage1_tokenizer.quantizers.codebook",
        "stage1_tokenizer.quantizers.progressive",
        "stage1_tokenizer.quantizers.learned",
        "stage1_tokenizer.quantizers.shared",
    },
    "stage1_tokenizer.decoders": {
        "stage1_tokenizer.config",
        "stage1_tokenizer.decoder_config",
        "stage1_tokenizer.blocks",
        "stage1_tokenizer.decoders.contract",
        "stage1_tokenizer.decoders.direct",
    },
    "pqvae.data.sources": {"pqvae.data.sample", "pqvae.data.splits", "pqvae.data.shard_index"},
}

Import = tuple[str, ast.AST]  # a module of ours, and the statement


def modules() -> dict[str, Path]:
    """Every module of ours, by its dotted name; a package by its own."""
    found = {}
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
            found[name.removesuffix(".__init__")] = path
    return found


MODULES = modules()


def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def imports(tree: ast.AST) -> Iterator[Import]:
    """The modules of ours that a file imports, anywhere in it."""
    for node in ast.walk(tree):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "a relative import"
            module = node.module or ""
            # `from a import b` imports the module a.b where there is one.
            below = [f"{module}.{alias.name}" for alias in node.names]
            names = [name if name in MODULES else module for name in below]
        for name in dict.fromkeys(names):
            assert name.split(".")[0] not in ("tests", "benchmarks")
            if name in MODULES:
                yield name, node


GRAPH = {name: {module for module, _ in imports(tree_of(path))} for name, path in MODULES.items()}


def test_imports_go_one_way() -> None:
    for name, imported in GRAPH.items():
        if name in FACES:  # nobody imports it, so what it imports late may come from above
            imported = imported - {module for module, _ in late_imports(MODULES[name])}
        allowed = PACKAGES[: PACKAGES.index(name.split(".")[0]) + 1]
        for module in imported:
            assert module.split(".")[0] in allowed, f"{name} imports {module}"


def test_no_import_goes_round_in_a_circle() -> None:
    done: set[str] = set()

    def visit(name: str, way: tuple[str, ...]) -> None:
        assert name not in way, f"a circle: {' -> '.join((*way[way.index(name) :], name))}"
        if name not in done:
            for module in sorted(GRAPH[name] - {name}):
                visit(module, (*way, name))
            done.add(name)

    for name in MODULES:
        if name not in PUBLIC:  # their late import is of a module that imports the package's others
            visit(name, ())


def late_imports(path: Path) -> list[Import]:
    tree = tree_of(path)
    return [(name, node) for name, node in imports(tree) if node not in tree.body]


@pytest.mark.parametrize("face", FACES)
def test_a_command_has_one_late_import_and_nobody_imports_it(face: str) -> None:
    assert len(late_imports(MODULES[face])) <= 1
    assert not [name for name, imported in GRAPH.items() if face in imported]


def test_all_other_imports_stand_at_the_top() -> None:
    for name, path in MODULES.items():
        if name not in (*FACES, *PUBLIC):
            assert not late_imports(path), f"{name} imports {late_imports(path)[0][0]} late"


def test_only_the_public_packages_import_for_types_alone() -> None:
    for name, path in MODULES.items():
        for node in tree_of(path).body:
            if isinstance(node, ast.If) and name not in PUBLIC:  # of a library that may be missing
                assert not list(imports(node)), f"{name} imports for types alone"


@pytest.mark.parametrize("room", KINDS)
def test_a_kind_imports_its_contract_and_the_ground(room: str) -> None:
    kinds = [name for name in MODULES if name.startswith(f"{room}.")]
    assert len(kinds) > 1
    for name in kinds:
        for module in GRAPH[name]:
            ground = module.startswith("pqvae.") and not module.startswith(room)
            assert ground or module in KINDS[room], f"{name} imports {module}"


def test_one_file_for_each_trade() -> None:
    def users(text: str) -> set[str]:
        return {name for name, path in MODULES.items() if text in path.read_text(encoding="utf-8")}

    assert users('"WORLD_SIZE"') == {"pqvae.distributed"}
    assert users("torch.Generator()") == {"pqvae.randomness"}
    assert users("load_model(") <= {
        "pqvae.pretrained",
        "stage1_tokenizer.tokenizer",
        "stage2_prior.prior",
    }


def test_every_package_ships_and_is_typed() -> None:
    listed = PROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]
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
    faces: dict[str, type[Any]] = {
        "stage1_tokenizer.train": TokenizerRunConfig,
        "stage1_tokenizer.train_drawn": DrawnRunConfig,
        "stage2_prior.train": PriorRunConfig,
    }
    load_config(faces[commands[0].split("python -m ")[1].split()[0]], path, [])
    assert f"configs/{name}" in commands[0]


def test_a_file_with_configs_is_there() -> None:
    assert {"cifar10.yaml", "imagenet256.yaml"} <= set(CONFIGS)
