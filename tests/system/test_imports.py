"""Folders are layers: a folder imports those before it in the list, never those after it."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from tests.tiny_run import ROOT, Tiny

LAYERS = [
    "core", "data_prep", "modeling", "config", "artifacts", "execution", "training", "cost", "methods", "evaluation",
    "serving", "diagnosis", "report", "tune", "cli", "stages", "api",
]  # fmt: skip
APART = [{"training", "cost"}]  # neither imports the other
TORCH_FREE = ["core", "data_prep", "config", "artifacts", "execution", "cost", "report", "tune", "cli"]
HEAVY = {"torch", "transformers", "accelerate", "datasets", "deepspeed", "peft", "ray", "matplotlib.pyplot"}
PACKAGES = {
    "t5_pipeline": ROOT / "pipeline",
    "t5_pipeline.data_prep": ROOT / "data_prep",
    "t5_pipeline.stages": ROOT / "stages",
}


def modules() -> Iterator[tuple[str, Path]]:
    """Every module of the package and its file."""
    for package, folder in PACKAGES.items():
        for path in sorted(folder.rglob("*.py")):
            inner = path.relative_to(folder).with_suffix("").parts
            yield ".".join((package, *inner)).removesuffix(".__init__"), path


def layer(module: str) -> str | None:
    """The folder that a module is in: `core` for t5_pipeline.core.errors; None outside the package."""
    parts = module.split(".")
    return parts[1] if parts[0] == "t5_pipeline" and len(parts) > 1 else None


@cache
def imported(path: Path) -> set[str]:
    """Every module that a file imports, wherever in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


@pytest.mark.parametrize(("module", "path"), list(modules()))
def test_imports_point_downwards(module: str, path: Path) -> None:
    mine = layer(module)
    for other in imported(path):
        assert not other.startswith(("pipeline.", "data_prep.", "stages.", "tests.")), f"{module} imports {other}"
        theirs = layer(other)
        if mine is None or theirs not in LAYERS or theirs == mine:
            continue
        assert LAYERS.index(theirs) < LAYERS.index(mine), f"{module} imports {other}"
        assert {mine, theirs} not in APART, f"{module} imports {other}"


def test_every_folder_is_a_layer() -> None:
    folders = {path.name for path in (ROOT / "pipeline").iterdir() if path.is_dir() and path.name != "__pycache__"}
    assert folders | {"data_prep", "stages"} == set(LAYERS)
    assert [path.name for path in (ROOT / "pipeline").glob("*.py")] == ["__init__.py"], "a loose module"


def test_modules_do_not_import_each_other() -> None:
    files = dict(modules())
    graph = {
        module: {other if other in files else other.rpartition(".")[0] for other in imported(path)} & files.keys()
        for module, path in files.items()
    }
    done: set[str] = set()

    def visit(module: str, above: tuple[str, ...]) -> None:
        assert module not in above, " → ".join([*above[above.index(module) :], module])
        if module not in done:
            for other in graph.get(module, ()):
                visit(other, (*above, module))
            done.add(module)

    for module in graph:
        visit(module, ())


def test_folders_without_torch() -> None:
    """Importing all modules of the torch-free folders imports nothing heavy, so that commands start at once."""
    names = [module for module, _ in modules() if layer(module) in TORCH_FREE]
    check = f"import sys; found = {HEAVY!r} & set(sys.modules); assert not found, found"
    subprocess.run([sys.executable, "-c", "\n".join([*(f"import {name}" for name in names), check])], check=True)


def test_answering_and_training_do_not_import_the_compiler_of_torch(finished: Tiny, tmp_path: Path) -> None:
    """It takes as long as torch itself; many functions of torch import it when they are first called."""
    (tmp_path / "rows.jsonl").write_text('{"text": "Copy a file."}\n')
    prompt = finished.run / "prompt_tune/model=lm_adapt,seed=0"
    command = ["predict", "--model", str(finished.run / "lm_adapt"), "--prompts", str(prompt)]
    program = f"""
import sys
from t5_pipeline.cli.main import main
assert main({[*command, "--input", str(tmp_path / "rows.jsonl"), "--output", str(tmp_path / "answers")]!r}) == 0
import torch
from t5_pipeline.modeling.load import init_t5
from t5_pipeline.modeling.config import T5Config
from t5_pipeline.training.adafactor import Adafactor
t5 = init_t5(T5Config(vocab_size=9, d_model=4, d_kv=2, d_ff=4, num_layers=1, num_decoder_layers=1, num_heads=2), 0)
optimizer = Adafactor(t5.parameters(), lr=0.1)
t5(torch.tensor([[5, 1]]), torch.tensor([[6, 1]])).sum().backward()
optimizer.step()
optimizer.zero_grad()
assert t5.shared.weight.grad is None
assert "torch._dynamo" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", program], check=True)
    assert json.loads((tmp_path / "answers").read_text())["output"] in ("files", "numbers")


def test_every_package_is_installed() -> None:
    """`packages` of pyproject.toml lists every folder: one that is missing would be missing from the wheel."""
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    data = ["t5_pipeline.accelerate_configs", "t5_pipeline.recipes"]
    assert sorted(listed) == sorted([*data, *(module for module, path in modules() if path.name == "__init__.py")])


def test_tests_mirror_the_packages() -> None:
    """tests/FOLDER/test_NAME.py tests FOLDER/NAME.py, or begins with its name; tests/system tests the whole."""
    for path in sorted((ROOT / "tests").rglob("test_*.py")):
        folder = path.parent.relative_to(ROOT / "tests")
        if folder.parts[0] == "system":
            continue
        home = ROOT / folder if folder.parts[0] in ("data_prep", "stages") else ROOT / "pipeline" / folder
        name = path.stem.removeprefix("test_")
        stems = [file.stem for file in home.glob("*.py") if file.stem != "__init__"]
        assert any(name == stem or name.startswith(f"{stem}_") for stem in stems), f"{path}: no module of that name"
