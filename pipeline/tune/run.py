"""The run of `tune`: from a task to a tested prompt.

The settings become a recipe with the stages prompt_tune, one cell for each seed, and evaluate. The runner runs it in
the output directory, which is therefore a run directory: the same command resumes, and status, report and verify read
it. The best seed by validation is published as a package in `prompt/`, or all of them in `prompts/` for voting.
"""

from __future__ import annotations

import os
import statistics
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from t5_pipeline.artifacts.kinds import locate_one
from t5_pipeline.artifacts.run_dir import RunDir
from t5_pipeline.config.command_line import flag, setting_at, validate_flags
from t5_pipeline.config.recipe import Recipe, parse_recipe
from t5_pipeline.config.recipe_file import read_recipe
from t5_pipeline.config.soft_prompt import PromptTuneConfig
from t5_pipeline.core.atomic_files import move_directory
from t5_pipeline.core.errors import InputError
from t5_pipeline.core.located_yaml import Key, Located
from t5_pipeline.core.records import read_published
from t5_pipeline.data_prep.tasks.config import TaskConfig
from t5_pipeline.execution.launcher import command
from t5_pipeline.execution.runner import run
from t5_pipeline.report.collect import collect
from t5_pipeline.report.tuned import score_on_test
from t5_pipeline.tune.task import Named

TUNE, EVALUATE = "prompt_tune", "evaluate"
_ALSO_OF_EVALUATE = ("scoring", "precision", "threads")


def checked(task: TaskConfig, settings: Mapping[str, Any], launch: str | None, named: Named = flag) -> dict[str, Any]:
    """The settings of prompt_tune with the defaults for this task, checked before anything is read or written.

    Raises:
        InputError: if one is invalid; names it.
    """
    settings = {**({} if task.labels else {"prompt_init": "vocabulary"}), **settings}
    c = validate_flags(PromptTuneConfig, {**settings, "task": task}, "tune", named)
    locate_one("model", c.model, named("model"))
    command(TUNE, launch, [], named("launch"))
    return settings


@dataclass(frozen=True)
class TuneRun:
    """A run that learns a task as a soft prompt, in processes of its own.

    Attributes:
        settings: settings of prompt_tune, including `model`; the default of `prompt_init` is `vocabulary` for a task
            without labels, and that of `select` is `last` for a task without validation rows.
        output: the run directory.
        launch: an accelerate configuration file; None for one process.
        seeds: number of prompts, with the seeds from `seed` on; they train in one batch.
        vote: publish all of them, instead of the best.
        tested: split to score on; None for no scores.
    """

    task: TaskConfig
    settings: Mapping[str, Any]
    output: Path
    launch: str | None = None
    seeds: int = 1
    vote: bool = False
    tested: str | None = None
    named: Named = flag

    def run(self) -> int:
        """Train, score and publish.

        Returns:
            The exit code of the stage that ended the run.

        Raises:
            InputError: if a setting is invalid, or the directory contains something else; nothing is written.
        """
        recipe = self.recipe
        self._refuse_other_runs()
        code = run(recipe, self.run_dir)
        if code == 0:
            self._publish()
        return code

    @cached_property
    def recipe(self) -> Recipe:
        """The stages prompt_tune, with a cell for each seed, and evaluate.

        Raises:
            InputError: if a setting is invalid.
        """
        settings = dict(self.settings) if "validation" in self.task.splits else {"select": "last", **self.settings}
        settings = checked(self.task, settings, self.launch, self.named)
        first = int(settings.get("seed", 0))
        own = {name: value for name, value in settings.items() if name != "seed"}
        matrix = {"seed": list(range(first, first + self.seeds))}
        stages: dict[str, Any] = {TUNE: {"task": self.task.name, **own, "matrix": matrix}}
        if self.tested is not None:
            also = {name: value for name, value in settings.items() if name in _ALSO_OF_EVALUATE}
            stages[EVALUATE] = {"prompts": TUNE, "split": self.tested, **also}
        data = {
            "name": self.output.absolute().name,
            "tasks": {self.task.name: self.task.model_dump(mode="json", exclude_defaults=True, exclude={"name"})},
            "stages": stages,
            **({} if self.launch is None else {"launch": self.launch}),
        }
        return parse_recipe(_Given(self.output / "recipe.yaml", data, {}, task=self.task, named=self.named))

    @cached_property
    def run_dir(self) -> RunDir:
        return RunDir(self.output)

    @property
    def published(self) -> Path:
        """Where the package of the best prompt is, or the folder with all packages."""
        return self._place(self.vote)

    def best_cell(self) -> str:
        """The seed with the best average of the task's metrics on validation rows; of equal ones the first."""

        def average(path: Path) -> float:
            scores = read_published(path / "prompt.json")["scores"]
            return statistics.fmean(scores.values()) if scores else 0.0

        prompts = self._prompts()
        return max(prompts, key=lambda cell: average(prompts[cell]))

    def _refuse_other_runs(self) -> None:
        """Protect a run directory of another recipe."""
        if not (self.output / "recipe.yaml").is_file():
            return
        stages = read_recipe(self.output / "recipe.yaml").data.get("stages")
        if not isinstance(stages, dict) or TUNE not in stages or set(stages) - {TUNE, EVALUATE}:
            raise InputError(
                f"{self.named('output_dir')}: {self.output} contains another run; choose another directory"
            )

    def _publish(self) -> None:
        """Write packages of the prompts, and move what was there before to superseded/."""
        results = collect(self.output)
        prompts = self._prompts()
        if self.vote:
            kept = {self.published / f"{self.recipe.name}-{cell.removeprefix('seed=')}": cell for cell in prompts}
        else:
            kept = {self.published: self.best_cell()}
        other = self._place(not self.vote)
        # Of earlier seeds, or named after an earlier directory: they would vote, too.
        others = [path for path in self.published.glob("[!.]*") if path not in kept] if self.vote else []
        for path in [*others, *([other] if os.path.lexists(other) else [])]:
            self.run_dir.archive(path, "earlier")
        for place, cell in kept.items():
            _write_package(self.run_dir, prompts[cell], place, score_on_test(results, cell))

    def _place(self, vote: bool) -> Path:
        return self.output / ("prompts" if vote else "prompt")

    def _prompts(self) -> dict[str, Path]:
        """The directory of each cell's prompt."""
        found = {}
        for cell in self.recipe.stages[TUNE]:
            manifest = self.run_dir.manifest(cell)
            assert manifest is not None
            found[cell.id] = self.run_dir.cell(cell) / manifest.outputs["prompt"].path
        return found


@dataclass(frozen=True, kw_only=True)
class _Given(Located):
    """The recipe of a run, in whose errors keys are the flags that gave them."""

    task: TaskConfig
    named: Named

    def where(self, key: Key) -> str:
        if key[:1] == ("tasks",):
            return self.task.where(*key[2:])
        if key[:1] == ("stages",) and len(key) > 2:
            return self.named(setting_at(PromptTuneConfig, tuple(part for part in key[2:] if part != "matrix")))
        return self.named("launch" if key == ("launch",) else "output_dir")


def _write_package(run_dir: RunDir, prompt: Path, place: Path, tested: str | None) -> None:
    from t5_pipeline.serving.package import write_package

    with tempfile.TemporaryDirectory(dir=run_dir.state, prefix=".", suffix=".tmp") as scratch:
        made = Path(scratch) / place.name
        made.mkdir()
        write_package(prompt, made, tested)
        if os.path.lexists(place):
            if place.is_dir() and _content(place) == _content(made):
                return
            run_dir.archive(place, "earlier")
        place.parent.mkdir(exist_ok=True)
        move_directory(made, place)


def _content(package: Path) -> list[bytes | None]:
    """The files of which the rest of a package is made; safetensors writes metadata in an arbitrary order."""
    paths = [package / name for name in ("prompt.safetensors", "prompt.json", "README.md")]
    return [path.read_bytes() if path.is_file() else None for path in paths]
