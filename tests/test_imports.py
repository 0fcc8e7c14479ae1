"""The import directions that the layout promises."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
TORCH_FREE = [
    "activations", "allocator", "architecture", "artifacts", "blocks", "cli", "decide", "devices", "digests", "disk", "entry", "errors", "estimate", "fields", "files", "fingerprint", "flags", "launch", "launch_config",
    "manifest", "memory", "plan", "prompt_commands", "rates", "recipe", "remote", "run_dir", "runner", "settings", "stage", "stage_settings", "status", "task_files", "task_formats", "task_settings", "tune",
    "tuning_settings", "evaluate_settings",
    "validation",
    "yaml_lines",
]  # fmt: skip
WITH_TORCH = {"interchange", "serve"}
APART = ("data_prep", "pipeline.modeling", "pipeline.training")


def modules() -> Iterator[tuple[str, Path]]:
    for package in ("pipeline", "stages", "data_prep"):
        for path in sorted((ROOT / package).rglob("*.py")):
            yield ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"), path


def imported(path: Path) -> set[str]:
    """Every module that a file imports, wherever in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found |= {f"{node.module}.{alias.name}" for alias in node.names} | {str(node.module)}
    return found


def within(module: str, package: str) -> bool:
    return module == package or module.startswith(package + ".")


@pytest.mark.parametrize(("module", "path"), list(modules()))
def test_directions(module: str, path: Path) -> None:
    for other in imported(path):
        assert not within(other, "stages"), f"{module} imports {other}: nothing imports stages"
        for package in APART:
            if within(module, package):
                for apart in APART:
                    assert apart == package or not within(other, apart), f"{module} imports {other}"


def test_data_prep_is_free_of_torch() -> None:
    for module, path in modules():
        if within(module, "data_prep"):
            assert not {"torch", "pipeline.stage"} & imported(path), module


def test_the_runner_starts_without_torch() -> None:
    lines = [f"import pipeline.{name}" for name in TORCH_FREE] + ["import pipeline.report.page"]
    check = "import sys; assert not {'torch', 'transformers', 'accelerate'} & set(sys.modules), 'torch was imported'"
    subprocess.run([sys.executable, "-c", "\n".join([*lines, check])], check=True)
    there = {path.stem for path in (ROOT / "pipeline").glob("*.py")} - {"__init__"} - WITH_TORCH
    assert there == set(TORCH_FREE)
