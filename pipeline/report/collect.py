"""The contents of a run directory as plain data, independent of their presentation.

Unfinished runs are read as far as they go.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, ValidationError

from t5_pipeline.artifacts.fingerprint import only_moved, parts, settings_parts
from t5_pipeline.artifacts.manifest import Manifest
from t5_pipeline.artifacts.run_dir import RunDir
from t5_pipeline.config.recipe import Cell, Recipe, load_recipe
from t5_pipeline.config.references import InputRef
from t5_pipeline.config.registry import STAGES
from t5_pipeline.config.stage import StageConfig
from t5_pipeline.config.training import TrainingConfig
from t5_pipeline.core.bounded import read_file
from t5_pipeline.core.errors import InputError
from t5_pipeline.core.located_yaml import MAX_BYTES
from t5_pipeline.data_prep.tasks.config import TaskConfig
from t5_pipeline.execution.staleness import step_of
from t5_pipeline.modeling.config import T5Config
from t5_pipeline.modeling.presets import shape_at
from t5_pipeline.report.curves import Curve, Curves, JobLog, read_log
from t5_pipeline.report.scores import Answers, Count, Score, answers_of, read_scores
from t5_pipeline.report.similarity import PromptMeans

State = Literal["up to date", "stale", "unfinished", "not started"]


class SweptPrompt(BaseModel):
    """One prompt of a sweep: its best validation, and the rung at which it was dropped."""

    model_config = ConfigDict(frozen=True)

    step: Count
    score: FiniteFloat
    loss: FiniteFloat
    dropped: Count | None = None


class Sweep(BaseModel):
    """A sweep: the prompts by their name in the logs, and the settings of the published one, the winner.

    Attributes:
        slots: prompts that trained at a time, if they took turns.
    """

    model_config = ConfigDict(frozen=True)

    winner: str
    settings: dict[str, Any]
    prompts: dict[str, SweptPrompt]
    slots: int | None = Field(None, gt=0)

    def rungs(self) -> list[tuple[int | None, int]]:
        """Each rung, and the prompts that reached it; at last None, the end of training."""
        found: list[int | None] = [*sorted({at for p in self.prompts.values() if (at := p.dropped) is not None}), None]
        dropped = [math.inf if prompt.dropped is None else prompt.dropped for prompt in self.prompts.values()]
        return [(rung, sum(at >= (math.inf if rung is None else rung) for at in dropped)) for rung in found]


@dataclass(frozen=True)
class CellResult:
    """A cell of the recipe, its manifest and its progress.

    Attributes:
        step: step that was published, or the last logged step of an unfinished run.
    """

    cell: Cell
    state: State
    manifest: Manifest | None
    step: int | None

    @property
    def settings(self) -> StageConfig:
        return self.cell.settings

    @property
    def steps(self) -> int | None:
        """Steps of a run; None for stages that do not train."""
        return self.settings.run_steps(self.settings.steps) if isinstance(self.settings, TrainingConfig) else None

    @property
    def chosen(self) -> int | None:
        """Step that validation scores chose for publication; None if none did."""
        found = self.manifest.facts.get("best_step") if self.manifest else None
        return found if type(found) is int else None

    @property
    def sweep(self) -> Sweep | None:
        """The prompts of a sweep; None without one, or before it has finished."""
        found = self.manifest.facts.get("sweep") if self.manifest else None
        try:
            return None if found is None else Sweep.model_validate(found)
        except ValidationError:
            return None

    def curve(self, curves: Curves) -> Curve | None:
        """This cell's curve; in a sweep that of the published prompt."""
        name = self.sweep.winner if self.sweep else self.cell.id
        return curves.get(name, curves.get(""))

    @property
    def frozen(self) -> str | None:
        """Base T5 of a stage that solves a task, named as in the scores; None for other stages."""
        ref = self.cell.inputs.get("model")
        if ref is None or not self.settings.made_for():
            return None
        return str(ref)


@dataclass(frozen=True)
class Job:
    """Cells that one process made together, with what it logged."""

    stage: str
    kind: str
    cells: list[CellResult]
    log: JobLog

    @property
    def manifests(self) -> list[Manifest]:
        return [result.manifest for result in self.cells if result.manifest is not None]

    @property
    def seconds(self) -> float | None:
        """Duration of the job over all restarts, which every one of its cells records in full."""
        return max((m.seconds for m in self.manifests), default=None)


@dataclass(frozen=True)
class ModelSize:
    """Size of a frozen T5; `bytes` of its weights on disk is None if they are not on this machine."""

    model: str
    parameters: int
    bytes: int | None
    shape: T5Config


@dataclass(frozen=True)
class PromptSize:
    """Size of a prompt; `bytes` counts its weights on disk, `of_t5` the parameters of its frozen T5."""

    prompt_length: int
    width: int
    bytes: int
    of_t5: int

    @property
    def parameters(self) -> int:
        return self.prompt_length * self.width


@dataclass(frozen=True)
class LearnedPrompt:
    """A published prompt that did not start from a trained one: its task, its frozen T5, and the means of its rows."""

    task: str
    model: str
    means: PromptMeans


@dataclass(frozen=True)
class Run:
    """Everything that the report shows.

    Attributes:
        answers: of scores, by their identity, where they are known and were asked for.
        stale: identities of scores of earlier results, which have to be computed again.
        scored_by: the stage or cell that evaluated, by the identity of its scores.
    """

    recipe: Recipe
    recipe_text: str
    jobs: list[Job]
    scores: list[Score] = field(default_factory=list)
    models: dict[str, ModelSize] = field(default_factory=dict)
    prompts: list[PromptSize] = field(default_factory=list)
    learned: list[LearnedPrompt] = field(default_factory=list)
    answers: dict[str, Answers] = field(default_factory=dict)
    stale: list[str] = field(default_factory=list)
    scored_by: dict[str, str] = field(default_factory=dict)

    def cells(self) -> Iterator[CellResult]:
        for job in self.jobs:
            yield from job.cells

    def manifests(self) -> Iterator[Manifest]:
        for job in self.jobs:
            yield from job.manifests

    def last_step(self, ref: InputRef) -> int | None:
        """Step of the final model of a stage or cell; None if it has not finished."""
        maker = self.recipe.maker(ref)
        return next((result.manifest.step for result in self.cells() if result.cell is maker and result.manifest), None)

    def task(self, name: str) -> TaskConfig | None:
        """The task of that name, with the settings it was trained or scored with."""
        tasks = [task for result in self.cells() for task in result.settings.made_for()]
        tasks += [task for result in self.cells() for task in getattr(result.settings, "also_on", ())]
        return next((task for task in tasks if task.name == name), None)


def collect(path: Path, kinds: Mapping[str, type[StageConfig]] = STAGES, *, answers: bool = False) -> Run:
    """Read a run directory.

    Args:
        kinds: the kinds of stages that its recipe can use.
        answers: also read the answers behind the scores, row by row.

    Raises:
        InputError: if it is not a run directory, or a manifest or scores file in it is damaged.
    """
    run_dir = RunDir(path)
    recipe = load_recipe(path / "recipe.yaml", kinds=kinds)
    manifests = {(cell.stage, cell.id): run_dir.manifest(cell) for cell in recipe.cells()}
    jobs = [job for stage in recipe.stages for job in _jobs(recipe, run_dir, stage, manifests)]
    scored: list[tuple[Path, list[Score]]] = []
    stale: list[tuple[Path, list[Score]]] = []
    run = Run(recipe, read_file(path / "recipe.yaml", MAX_BYTES).decode("utf-8"), jobs)
    for result in run.cells():
        if result.manifest is not None:
            if "scores" in result.manifest.outputs:
                directory = run_dir.cell(result.cell) / result.manifest.outputs["scores"].path
                scores = read_scores(directory)
                (stale if result.state == "stale" else scored).append((directory, scores))
                for row in scores:
                    run.scored_by.setdefault(row.identity, result.cell.label)
            if result.cell.settings.kind == "prompt_tune":
                _sizes(run, path, result, result.manifest)
                run.learned.extend(_learned(run_dir, result, result.manifest))
    known: dict[str, Score] = {}
    for _, scores in scored:
        for row in scores:
            known.setdefault(row.identity, row)  # what two stages scored in the same way counts once
    run.stale.extend(row.identity for _, scores in stale for row in scores if row.identity not in known)
    for _, scores in stale:
        for row in scores:
            known.setdefault(row.identity, row)
    run.scores.extend(known.values())
    if answers:
        run.answers.update(answers_of([*scored, *stale]))
    return run


def _jobs(
    recipe: Recipe, run_dir: RunDir, stage: str, manifests: dict[tuple[str, str], Manifest | None]
) -> Iterator[Job]:
    """Cells of a stage grouped by the process that made them; cells without one form a group of their own."""
    cells, made = recipe.stages[stage], run_dir.job_directories(stage)
    logs = {cell.id: run_dir.log_directory(cell, made) for cell in cells}
    for directory in dict.fromkeys(logs.values()):
        together = [cell for cell in cells if logs[cell.id] == directory]
        settings = together[0].settings
        steps = settings.run_steps(settings.steps) if isinstance(settings, TrainingConfig) else None
        log = read_log(directory / "metrics.jsonl", steps) if directory else JobLog()
        results = []
        for cell in together:
            manifest = manifests[cell.stage, cell.id]
            started = manifest is not None or run_dir.started(cell) is not None
            state: State = "unfinished" if started else "not started"
            if manifest is not None:
                state = _state(recipe, run_dir, cell, manifest, manifests)
            results.append(CellResult(cell, state, manifest, manifest.step if manifest else log.step))
        yield Job(stage, cells[0].settings.kind, results, log)


def _state(
    recipe: Recipe,
    run_dir: RunDir,
    cell: Cell,
    manifest: Manifest,
    manifests: dict[tuple[str, str], Manifest | None],
) -> State:
    """Whether a finished cell is up to date with the present recipe and inputs."""
    settings, inputs = cell.settings, cell.settings.inputs()
    if not _has_settings(run_dir, manifest, settings):
        return "stale"
    if isinstance(settings, TrainingConfig) and manifest.output_after(settings.steps, settings.outputs[0]) is None:
        return "stale"
    for name, artifact in inputs.items():
        for record in manifest.inputs.get(name, []):
            if record.stage is None:
                continue
            made, maker = recipe.maker(record.ref), manifests.get((record.stage, record.cell or ""))
            if made is None or maker is None:
                return "stale"
            published = maker.output_after(step_of(record.ref, made), artifact) or maker.outputs[artifact]
            if published.digest != record.digest:
                return "stale"
    return "up to date"


def _has_settings(run_dir: RunDir, manifest: Manifest, settings: StageConfig) -> bool:
    """Whether a cell was made with these settings. Only if a location differs, the data there are compared."""
    made, version = manifest.parts, {"kind": settings.kind, "code version": settings.code_version}
    now = {**version, "selected by": None, **settings_parts(settings)}
    if {name: made.get(name) for name in now} == now:
        return True
    if not settings.data():
        return False
    try:
        whole = parts(settings, made.get("inputs", {}), run_dir.digests)
    except (InputError, OSError):  # the data cannot be read here
        return False
    return only_moved(made, {**whole, "data": {**made.get("data", {}), **whole["data"]}}, settings)


def _sizes(run: Run, path: Path, result: CellResult, manifest: Manifest) -> None:
    """Record the sizes of a prompt and of its base T5 in `run`."""
    for record in manifest.inputs.get("model", []):
        name = str(record.ref)
        model = run.models.get(name) or _model_size(name, path / record.path if record.stage else Path(record.path))
        if model is None:
            continue
        run.models[name] = model
        swept = result.sweep.settings if result.sweep else {}
        length = int(swept.get("prompt_length", manifest.settings["prompt_length"]))
        size = PromptSize(length, model.shape.d_model, manifest.stored_bytes, model.parameters)
        if size not in run.prompts:
            run.prompts.append(size)


def _learned(run_dir: RunDir, result: CellResult, manifest: Manifest) -> Iterator[LearnedPrompt]:
    """The prompt of a cell, if it can be read and did not start from a trained prompt, which it would resemble."""
    swept = result.sweep.settings if result.sweep else {}
    if swept.get("prompt_init", manifest.settings.get("prompt_init")) in ("prompt", "shared"):
        return
    means = PromptMeans.read(run_dir.cell(result.cell) / manifest.outputs["prompt"].path)
    if means is not None and result.frozen is not None:
        yield from (LearnedPrompt(task.name, result.frozen, means) for task in result.settings.made_for())


def _model_size(name: str, directory: Path) -> ModelSize | None:
    try:
        shape = shape_at(directory)
    except (OSError, InputError):  # the T5 may have been damaged or removed since
        shape = None
    if shape is None:
        return None
    on_disk = sum(file.stat().st_size for file in directory.glob("*.safetensors"))
    return ModelSize(name, shape.parameters, on_disk or None, shape)
