"""The wheel in an empty environment and an empty directory: recipes, launch configurations and stages come with it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest
import torch

from tests.tiny_run import ROOT

SOURCES = ["pyproject.toml", "README.md", "LICENSE", "pipeline", "data_prep", "stages", "recipes", "accelerate_configs"]
SHORT = ["prepare.vocabulary_size=1000", "prepare.vocabulary_characters=200000", "prepare.max_documents=2000"]
SHORT += ["evaluate.limit=6"]
SHORT += [
    f"{stage}.{setting}"
    for stage in ("span_corrupt", "lm_adapt")
    for setting in ("steps=2", "batch_size=4", "warmup_steps=0", "validation_batches=1")
]
SHORT += [f"prompt_tune.{setting}" for setting in ("steps=2", "init_population=500", "select=last", "seed=0")]
SHORT += ["prompt_tune.model=lm_adapt", "lm_adapt.launch=accelerate_configs/cpu.yaml"]
SHORT += [f"{stage}.threads=1" for stage in ("span_corrupt", "lm_adapt", "sentinel", "prompt_tune", "evaluate")]

# Every process of the environment notes the modules that it took from the checkout; its libraries may be in there, too.
WATCH = """\
import atexit, os, sys
def note():
    files = [getattr(module, "__file__", None) or "" for module in list(sys.modules.values())]
    with open(os.environ["IMPORTED"], "a") as log:
        log.write("".join(f"{file}\\n" for file in files if "t5_pipeline" in file or file.startswith(FOLDERS)))
atexit.register(note)
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel that `make wheel` checks, or one that is built here from a copy of the sources."""
    if given := os.environ.get("T5_PIPELINE_WHEEL"):
        return Path(given)
    source, to = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("dist")
    for name in SOURCES:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy2(ROOT / name, source / name)
    pip("wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", to, source)
    return next(to.glob("*.whl"))


@pytest.fixture(scope="module")
def environment(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment with the wheel, and the libraries of this one without the checkout."""
    place = tmp_path_factory.mktemp("environment")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", place], check=True)
    pip("--python", place / "bin" / "python", "install", "--no-deps", "--no-index", wheel)
    packages = Path(sysconfig.get_path("purelib", vars={"base": str(place)}))
    folders = tuple(str(ROOT / name) for name in ("pipeline", "data_prep", "stages", "tests"))
    (packages / "watch.py").write_text(WATCH.replace("FOLDERS", repr(folders)))
    (packages / "libraries.pth").write_text(f"import watch\n{Path(torch.__file__).parents[1]}\n")
    return place


def pip(*arguments: object) -> None:
    words = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", *map(str, arguments)]
    # pip would take the checkout in PYTHONPATH for an installed package.
    subprocess.run(words, check=True, env={**os.environ, "PYTHONPATH": ""})


def test_contents(wheel: Path) -> None:
    files = set(zipfile.ZipFile(wheel).namelist())
    for folder in ("recipes", "accelerate_configs"):
        assert {f"t5_pipeline/{folder}/{path.name}" for path in (ROOT / folder).glob("*.yaml")} <= files
    assert {"t5_pipeline/py.typed", "t5_pipeline/report/style.css", "t5_pipeline/stages/lm_adapt.py"} <= files
    assert {name.split("/")[0].split("-")[0] for name in files} == {"t5_pipeline"}


def test_the_demo_from_a_wheel(environment: Path, tmp_path: Path) -> None:
    imported = tmp_path / "imported.txt"
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "T5_PIPELINE_"))}
    empty = tmp_path / "empty"
    empty.mkdir()

    def run(program: str, *arguments: str) -> str:
        done = subprocess.run(
            [str(environment / "bin" / program), *arguments],
            cwd=empty, env={**clean, "IMPORTED": str(imported)}, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return done.stdout + done.stderr

    assert run("t5-pipeline", "--version").startswith("t5-pipeline ")
    assert run("python", "-m", "t5_pipeline.stages.lm_adapt", "--help").startswith("usage: lm_adapt.py")
    planned = run("t5-pipeline", "plan", "recipes/demo.yaml", "--set", "launch=accelerate_configs/ddp.yaml")
    assert planned.count("using the packaged") == 2
    assert list(empty.iterdir()) == []

    said = run("t5-pipeline", "run", "recipes/demo.yaml", *(word for item in SHORT for word in ("--set", item)))
    assert "6 of 6 stages ran" in said
    assert (empty / "runs" / "demo" / "report.html").stat().st_size > 10_000
    files = imported.read_text().splitlines()
    assert any(file.endswith("t5_pipeline/training/loop.py") for file in files)
    assert [file for file in files if not file.startswith(str(environment))] == []
