from __future__ import annotations

import os
import platform
import threading
import weakref
from pathlib import Path
from types import SimpleNamespace

import pytest
from torch.nn import Module

from t5_pipeline.artifacts.run_dir import RunDir
from t5_pipeline.config import recipe_file
from t5_pipeline.config.adaptation import LMAdaptConfig
from t5_pipeline.config.command_line import parse
from t5_pipeline.config.launch import LaunchContext
from t5_pipeline.config.recipe import Recipe
from t5_pipeline.config.registry import STAGES
from t5_pipeline.core.errors import InputError
from t5_pipeline.core.located_yaml import Located, read_yaml
from t5_pipeline.execution import stage_process
from t5_pipeline.execution.job import JobRunner

RECIPE = """\
name: two
stages:
  prepare: {corpus: c}
  lm_adapt: {model: /m, tokens: prepare, steps: 4, matrix: {seed: [0, 1]}}
"""
SECOND = "  longer: {uses: lm_adapt, model: /m, tokens: prepare, steps: 8}\n"


def resolved(path: Path, *flags: str) -> tuple[Recipe, str]:
    """The recipe and the name of the stage for a command line of lm_adapt."""
    given = parse(LMAdaptConfig, "lm_adapt.py", ["--recipe", str(path), *flags])
    recipe, _, name = stage_process._recipe(LMAdaptConfig, given, "lm_adapt.py", STAGES)
    return recipe, name


def test_a_recipe_is_read_once_and_flags_override_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "r.yaml"
    path.write_text(RECIPE)
    reads: list[Path] = []

    def counted(path: Path) -> Located:
        reads.append(path)
        return read_yaml(path)

    monkeypatch.setattr(recipe_file, "read_yaml", counted)
    recipe, name = resolved(path, "--steps", "9", "--seed", "5", "--set", "lm_adapt.steps=7", "--set", "prepare.seed=3")
    assert reads == [path]
    (cell,) = recipe.stages[name]
    assert isinstance(cell.settings, LMAdaptConfig)
    assert (name, cell.settings.steps, cell.settings.seed) == ("lm_adapt", 9, 5)
    assert recipe.stages["prepare"][0].settings.seed == 3


def test_the_stage_of_a_recipe_must_be_unambiguous(tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    path.write_text(RECIPE + SECOND)
    assert resolved(path, "--stage", "longer")[1] == "longer"
    with pytest.raises(InputError, match=r"has 2 stages of kind lm_adapt; choose one with --stage: lm_adapt, longer$"):
        resolved(path, "--steps", "9")
    with pytest.raises(InputError, match=r"^--stage prepare: is not a stage of kind lm_adapt in .*; choose one of"):
        resolved(path, "--stage", "prepare")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--steps", "many"], r"^--steps: stages\.lm_adapt\.steps: must be an integer.*, not 'many'$"),
        (["--set", "lm_adapt.steps=many"], r"^--set: stages\.lm_adapt\.steps: must be an integer"),
        (["--set", "lm_adapt.stepz=1"], r"^--set: stages\.lm_adapt\.stepz: unknown key; did you mean `steps`\?$"),
        (["--set", "lm_adap.steps=1"], r"^--set lm_adap\.steps: there is no stage `lm_adap`; did you mean"),
        (["--set", "lm_adapt.steps.x=1"], r"^--set lm_adapt\.steps\.x: `steps` is a value without keys; set it"),
    ],
)
def test_a_wrong_value_names_its_flag(tmp_path: Path, flags: list[str], message: str) -> None:
    path = tmp_path / "r.yaml"
    path.write_text(RECIPE)
    with pytest.raises(InputError, match=message):
        resolved(path, *flags)


@pytest.mark.parametrize(
    ("error", "prints"),
    [
        (RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 1 has … of which 1.50 GiB is free."), True),
        (InputError("recipe.yaml:3: steps: is missing; give it"), False),
    ],
)
def test_a_rank_reports_that_its_own_memory_does_not_suffice(
    error: Exception, prints: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Other errors are the same on all ranks of a machine, of which the first reports them."""

    def fail(*_: object) -> None:
        raise error

    (tmp_path / "r.yaml").write_text(RECIPE)
    monkeypatch.setattr(stage_process, "_run", fail)
    for name, value in {"RANK": "1", "LOCAL_RANK": "1", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    flags = ["--recipe", str(tmp_path / "r.yaml")]
    assert stage_process.run(lambda stage: None, LMAdaptConfig, flags, "lm_adapt.py") == 2
    said = capsys.readouterr().err
    assert said.startswith("error: the GPU is out of memory (Tried to allocate 2.00 GiB.") == prints
    assert said.count("\n") == prints


def test_a_rank_that_fails_first_lets_the_main_process_leave_its_message(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The launcher kills the main process as soon as another one has exited. A message of an earlier run does not count."""

    def fail(*_: object) -> None:
        raise InputError("no checkpoint of step 7")

    (tmp_path / "r.yaml").write_text(RECIPE)
    left = tmp_path / "run/.state/lm_adapt.exit"
    left.parent.mkdir(parents=True)
    left.write_text("earlier")
    os.utime(left, (1, 1))
    monkeypatch.setattr(stage_process, "_run", fail)
    for name, value in {"RANK": "1", "LOCAL_RANK": "1", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    main_process = threading.Timer(0.3, left.write_text, ["of this run"])
    main_process.start()
    flags = ["--recipe", str(tmp_path / "r.yaml"), "--run-dir", str(tmp_path / "run")]
    assert stage_process.run(lambda stage: None, LMAdaptConfig, flags, "lm_adapt.py") == 2
    assert left.read_text() == "of this run"
    main_process.join()


def test_another_machine_reports_its_errors(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Tokens that only the first machine has: the first rank of the second one says so, with the machine's name."""
    for rank, lines in ((2, 1), (3, 0)):
        of_launch = {"RANK": rank, "LOCAL_RANK": rank % 2, "WORLD_SIZE": 4, "LOCAL_WORLD_SIZE": 2}
        for name, number in of_launch.items():
            monkeypatch.setenv(name, str(number))
        flags = ["--model", str(tmp_path), "--tokens", str(tmp_path / "absent"), "--output-dir", str(tmp_path / "out")]
        assert stage_process.run(lambda stage: None, LMAdaptConfig, [*flags, "--steps", "1"], "lm_adapt.py") == 2
        said = capsys.readouterr().err
        assert said.count("\n") == lines
        assert (f"error: {platform.node()}: --tokens: {tmp_path}/absent does not exist" in said) == bool(lines)


def test_a_job_frees_its_memory_before_the_next(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also what is in reference cycles, as engines are: two models need not fit on a device together."""
    path = tmp_path / "r.yaml"
    path.write_text(RECIPE)
    recipe, name = resolved(path)
    statuses = [
        SimpleNamespace(cell=cell, up_to_date=False, fingerprint="f", reason="") for cell in recipe.stages[name]
    ]
    models: list[weakref.ref[Module]] = []

    def run_job(self: JobRunner[LMAdaptConfig], group: object) -> int:
        assert not any(one() for one in models)
        model = Module()
        model.register_forward_hook(lambda *_: model)
        self.accelerator._models.append(model)  # as accelerate does for DeepSpeed
        models.append(weakref.ref(model))
        return 0

    monkeypatch.setattr(stage_process, "check_outside", lambda *_: None)
    monkeypatch.setattr(stage_process, "cell_statuses", lambda *_: statuses)
    monkeypatch.setattr(stage_process, "jobs", lambda *_: [[one] for one in statuses])
    monkeypatch.setattr(JobRunner, "run", run_job)
    given = parse(LMAdaptConfig, "lm_adapt.py", ["--recipe", str(path)])
    run_dir = RunDir(tmp_path / "run")
    stage_process._run(lambda stage: None, given, recipe, run_dir, name, LaunchContext())
    assert len(models) == 2
