"""Stale and up-to-date cells of a run directory, compared with its recipe. Only reads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from t5_pipeline.artifacts.fingerprint import differences, fingerprint, only_moved, parts
from t5_pipeline.artifacts.kinds import locate, solved_tasks
from t5_pipeline.artifacts.manifest import InputRecord, Manifest, changed_files
from t5_pipeline.artifacts.run_dir import RunDir, read_job
from t5_pipeline.config.recipe import Cell, Recipe
from t5_pipeline.config.references import InputRef
from t5_pipeline.config.training import TrainingConfig
from t5_pipeline.data_prep.tasks.config import TaskConfig

Action = Literal["up to date", "run", "continue"]


@dataclass(frozen=True)
class CellStatus:
    """Whether a cell is stale, and why.

    Attributes:
        fingerprint: None while an input is still missing or stale.
        steps_wanted: steps that a training stage must publish, ascending.
        replaces: fingerprint of existing results with other settings.
    """

    cell: Cell
    action: Action
    reason: str
    fingerprint: str | None = None
    parts: dict[str, Any] = field(default_factory=dict)
    inputs: dict[str, list[InputRecord]] = field(default_factory=dict)
    steps_wanted: list[int] = field(default_factory=list)
    replaces: str | None = None

    @property
    def up_to_date(self) -> bool:
        return self.action == "up to date"


_ByStage = dict[str, dict[str, CellStatus]]  # stage → id of the cell → status


def cell_statuses(recipe: Recipe, run_dir: RunDir) -> list[CellStatus]:
    """The status of each cell, in the recipe's order."""
    found, earlier = list[CellStatus](), _ByStage()
    for cell in recipe.cells():
        status = _status_of(recipe, run_dir, cell, earlier)
        earlier.setdefault(cell.stage, {})[cell.id] = status
        found.append(status)
    return found


def solved_by_inputs(recipe: Recipe, cell: Cell) -> list[TaskConfig]:
    """The tasks that the inputs of a cell solve: those of the stages that make them, and of artifacts at paths."""
    tasks = [task for maker in recipe.makers(cell) for task in maker.made_for()]
    for name, ref in cell.inputs.items():
        if ref.path is not None and cell.settings.takes_many(name):
            kind = cell.settings.inputs()[name]
            paths = locate(kind, ref.path, cell.settings.where(name))
            tasks += [task for path in paths for task in solved_tasks(kind, path)]
    return tasks


def _status_of(recipe: Recipe, run_dir: RunDir, cell: Cell, earlier: _ByStage) -> CellStatus:
    makers = [maker for ref in cell.inputs.values() for maker in _makers(ref, earlier)]
    waiting = sorted({maker.cell.stage for maker in makers if not maker.up_to_date})
    manifest, started = run_dir.manifest(cell), run_dir.started(cell)
    if waiting:
        reason = f"depends on {' and '.join(waiting)}" if manifest else "not run yet"
        return CellStatus(cell, "run", reason)

    inputs = {name: _records(ref, run_dir, cell, name, earlier) for name, ref in cell.inputs.items()}
    described = parts(
        cell.settings,
        {n: _digests(r) for n, r in inputs.items()},
        run_dir.digests,
        cell.settings.extra_data(solved_by_inputs(recipe, cell)),
    )
    found = fingerprint(described)
    if (
        manifest is not None
        and manifest.fingerprint != found
        and only_moved(manifest.parts, described, cell.settings)
        and not changed_files(run_dir.cell(cell), manifest)  # rebuilt token shards would name another corpus
    ):
        described, found = manifest.parts, manifest.fingerprint
    wanted = wanted_steps(recipe, cell)
    status = CellStatus(cell, "run", "not run yet", found, described, inputs, steps_wanted=wanted)
    existing = manifest or started
    if existing is not None and existing.fingerprint != found:
        reason = "; ".join(differences(existing.parts, described)) or "its settings changed"
        return replace(status, reason=reason, replaces=existing.fingerprint)

    if manifest is not None:
        missing = [step for step in wanted if not _published(manifest, step, wanted[-1])]
        changed = changed_files(run_dir.cell(cell), manifest)
        if not missing and not changed:
            return replace(status, action="up to date", reason="up to date")
        if not changed:
            return replace(status, action="continue", reason=_more_steps(manifest, missing), steps_wanted=missing)
        reason = "; ".join(f"{name} {problem}" for name, problem in list(changed.items())[:3])
        return replace(status, action="continue", reason=reason)

    if started is not None:
        return replace(status, action="continue", reason="was started but did not finish")
    return status


def wanted_steps(recipe: Recipe, cell: Cell) -> list[int]:
    """Steps that a training stage must publish: its last one, its `keep_steps`, and those that other stages use."""
    settings = cell.settings
    if not isinstance(settings, TrainingConfig):
        return []
    kept = set(recipe.kept_steps(cell)) | set(getattr(settings, "keep_steps", []))
    return sorted({step for step in kept if step < settings.steps} | {settings.steps})


def step_of(ref: InputRef, maker: Cell) -> int | None:
    """The step of training that a reference to a cell means; None if the cell does not train."""
    return ref.step if ref.step is not None else getattr(maker.settings, "steps", None)


def _published(manifest: Manifest, step: int, last: int) -> bool:
    """Whether a step is published and stays so: the stage's own output is replaced by that of its `last` step."""
    return step in manifest.steps_published or manifest.step == step == last


def _more_steps(manifest: Manifest, missing: list[int]) -> str:
    if manifest.step is not None and max(missing) > manifest.step:
        return f"has {manifest.step:,} of {max(missing):,} steps"
    return f"step {', '.join(f'{s:,}' for s in missing)} was not kept"


def _makers(ref: InputRef, earlier: _ByStage) -> list[CellStatus]:
    """The cells whose artifacts an input refers to; none for a path."""
    of_stage = {} if ref.stage is None else earlier.get(ref.stage, {})
    if ref.cell is None:
        return list(of_stage.values())
    return [of_stage[ref.cell]] if ref.cell in of_stage else []


def _records(ref: InputRef, run_dir: RunDir, cell: Cell, name: str, earlier: _ByStage) -> list[InputRecord]:
    """The current artifacts of an input: one record, or one for each cell of a stage of prompts."""
    artifact = cell.settings.inputs()[name]
    if ref.stage is None:
        assert ref.path is not None
        paths = locate(artifact, ref.path, cell.settings.where(name))
        return [InputRecord(path=str(path), digest=run_dir.digests.of_artifact(artifact, path)) for path in paths]
    records = []
    for status in _makers(ref, earlier):
        directory = run_dir.cell(status.cell)
        manifest = run_dir.manifest(status.cell)
        assert manifest is not None
        output = manifest.output_after(step_of(ref, status.cell), artifact)
        assert output is not None
        path = (directory / output.path).relative_to(run_dir.path)
        records.append(
            InputRecord(
                stage=ref.stage, cell=status.cell.id or None, step=ref.step, path=str(path), digest=output.digest
            )
        )
    return records


def _digests(records: list[InputRecord]) -> Any:
    if len(records) == 1 and records[0].cell is None:
        return records[0].digest
    return {record.cell or record.path: record.digest for record in records}


def jobs(cells: list[CellStatus], run_dir: RunDir) -> list[list[CellStatus]]:
    """Group the cells of one stage into jobs; a job trains its cells together, as prompts on one frozen T5.

    A job that was started keeps its cells, including those that it finished, so that it resumes from its checkpoints.
    The other cells form new jobs, which never mix finished and unfinished cells.
    """
    left = {status.cell.id: status for status in cells}
    found: list[list[CellStatus]] = []
    for directory in reversed(run_dir.jobs(cells[0].cell.stage)):  # the last job of a cell is the one that finished it
        job = read_job(directory)
        if job and all(cell_id in left and left[cell_id].fingerprint == print_ for cell_id, print_ in job.items()):
            group = [left.pop(cell_id) for cell_id in job]
            if all(_together(group[0], other) for other in group):
                found.append(group)
            else:
                left.update({status.cell.id: status for status in group})
    for status in cells:
        if status.cell.id not in left:
            continue
        done = status.up_to_date
        group = [s for s in left.values() if s is status or (s.up_to_date == done and _together(status, s))]
        for member in group:
            del left[member.cell.id]
        found.append(group)
    return found


def reasons(cells: Sequence[CellStatus]) -> str:
    """The first three different reasons of cells."""
    return "; ".join(list(dict.fromkeys(status.reason for status in cells))[:3])


def _together(a: CellStatus, b: CellStatus) -> bool:
    same_model = a.inputs.get("model") == b.inputs.get("model")
    return a is b or (
        same_model and a.steps_wanted == b.steps_wanted and a.cell.settings.together_with(b.cell.settings)
    )
