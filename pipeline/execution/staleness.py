"""What has to run, and why: recipe and run directory compared, with nothing launched and nothing changed."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Literal

from t5_pipeline.artifacts.fingerprint import differences, fingerprint, parts
from t5_pipeline.artifacts.kinds import check_data, locate
from t5_pipeline.artifacts.manifest import InputRecord, Manifest, changed_files
from t5_pipeline.artifacts.run_dir import RunDir, read_job
from t5_pipeline.config.recipe import Cell, InputRef, Recipe
from t5_pipeline.config.stage import TrainingConfig
from t5_pipeline.core.errors import InputError

Action = Literal["done", "run", "continue"]


@dataclass
class CellStatus:
    """What to do with one cell. `fingerprint` is None while an input is still to be made."""

    cell: Cell
    action: Action
    reason: str
    fingerprint: str | None = None
    parts: dict[str, Any] = field(default_factory=dict)
    inputs: dict[str, list[InputRecord]] = field(default_factory=dict)
    steps_wanted: list[int] = field(default_factory=list)
    replaces: str | None = None  # fingerprint of results of other settings that stand in the way


def decide(recipe: Recipe, run_dir: RunDir) -> list[CellStatus]:
    """One decision for each cell, in the recipe's order."""
    decisions: dict[tuple[str, str], CellStatus] = {}
    for cell in recipe.cells():
        decisions[cell.stage, cell.id] = _decide(recipe, run_dir, cell, decisions)
    return list(decisions.values())


def check_outside(cells: Iterable[Cell]) -> None:
    """What cells read from outside the run must be there before anything is launched, however late they read it.

    Raises:
        InputError: something is not, and which setting asked for it.
    """
    for cell in cells:
        for name, location in cell.settings.data().items():
            check_data(location, f"{cell.stage}.{name}")
        for name, ref in cell.inputs.items():
            if ref.path is not None:
                where = f"{cell.stage}.{name}"
                found = locate(cell.settings.inputs()[name], ref.path, where)
                if len(found) > 1 and not cell.settings.takes_many(name):
                    kind = cell.settings.inputs()[name].replace("_", " ")
                    raise InputError(f"{where}: {ref.path} holds {len(found)} {kind}s; name one, as in {found[0]}")


def _decide(recipe: Recipe, run_dir: RunDir, cell: Cell, earlier: dict[tuple[str, str], CellStatus]) -> CellStatus:
    waiting = sorted(
        {ref.stage for ref in cell.inputs.values() for d in _makers(ref, earlier) if d.action != "done" and ref.stage}
    )
    manifest, started = run_dir.manifest(cell), run_dir.started(cell)
    if waiting:
        reason = f"{' and '.join(waiting)} will have run" if manifest else "not run yet"
        return CellStatus(cell, "run", reason)

    inputs = {name: _records(ref, run_dir, cell, name, earlier) for name, ref in cell.inputs.items()}
    described = parts(
        cell.settings,
        {n: _digests(r) for n, r in inputs.items()},
        run_dir.digests,
        cell.settings.extra_data([d.cell.settings for ref in cell.inputs.values() for d in _makers(ref, earlier)]),
    )
    found = fingerprint(described)
    wanted = wanted_steps(recipe, cell)
    decision = CellStatus(cell, "run", "not run yet", found, described, inputs, steps_wanted=wanted)
    begun = manifest or started
    if begun is not None and begun.fingerprint != found:
        decision.reason = "; ".join(differences(begun.parts, described)) or "its settings changed"
        decision.replaces = begun.fingerprint
        return decision

    if manifest is not None:
        missing = [step for step in wanted if not _published(manifest, step)]
        changed = changed_files(run_dir.cell(cell), manifest)
        if not missing and not changed:
            decision.action, decision.reason = "done", "its settings and inputs are as they were"
            return decision
        decision.steps_wanted = wanted if changed else missing
        decision.action = "continue"
        decision.reason = "; ".join(f"{name} {what}" for name, what in list(changed.items())[:3])
        decision.reason = decision.reason or _say_steps(manifest, missing)
        return decision

    if started is not None:
        decision.action, decision.reason = "continue", "was begun and did not finish"
    return decision


def wanted_steps(recipe: Recipe, cell: Cell) -> list[int]:
    """Steps that a training stage must publish: its last one, those it keeps, and those that others ask for."""
    settings = cell.settings
    if not isinstance(settings, TrainingConfig):
        return []
    kept = set(recipe.kept_steps(cell.stage)) | set(getattr(settings, "keep_steps", []))
    return sorted({step for step in kept if step < settings.steps} | {settings.steps})


def _published(manifest: Manifest, step: int) -> bool:
    return manifest.step == step or step in manifest.steps_published


def _say_steps(manifest: Manifest, missing: list[int]) -> str:
    if manifest.step is not None and max(missing) > manifest.step:
        return f"has {manifest.step:,} steps, {max(missing):,} are wanted"
    return f"step {', '.join(f'{s:,}' for s in missing)} was not kept"


def _makers(ref: InputRef, earlier: dict[tuple[str, str], CellStatus]) -> list[CellStatus]:
    return [d for (stage, cell_id), d in earlier.items() if stage == ref.stage and ref.cell in (None, cell_id)]


def _records(
    ref: InputRef, run_dir: RunDir, cell: Cell, name: str, earlier: dict[tuple[str, str], CellStatus]
) -> list[InputRecord]:
    """What an input is now: one record, or one for each cell of a stage of prompts."""
    artifact = cell.settings.inputs()[name]
    if ref.stage is None:
        assert ref.path is not None
        paths = locate(artifact, ref.path, f"{cell.stage}.{name}")
        return [InputRecord(path=str(path), digest=run_dir.digests.of_artifact(artifact, path)) for path in paths]
    records = []
    for decision in _makers(ref, earlier):
        directory = run_dir.cell(decision.cell)
        manifest = run_dir.manifest(decision.cell)
        assert manifest is not None
        output = manifest.outputs[artifact]
        step = ref.step if ref.step is not None else getattr(decision.cell.settings, "steps", None)
        if step is not None and step != manifest.step:
            output = manifest.steps_published[step]
        path = (directory / output.path).relative_to(run_dir.path)
        records.append(
            InputRecord(
                stage=ref.stage, cell=decision.cell.id or None, step=ref.step, path=str(path), digest=output.digest
            )
        )
    return records


def _digests(records: list[InputRecord]) -> Any:
    if len(records) == 1 and records[0].cell is None:
        return records[0].digest
    return {record.cell or record.path: record.digest for record in records}


def jobs(cells: list[CellStatus], run_dir: RunDir) -> list[list[CellStatus]]:
    """All cells of one stage, by jobs: one process makes those of a job together, prompts on one frozen T5.

    A job that was begun stays as it was, so that it goes on from its checkpoints, with those of its cells that were
    finished before it was stopped. Other cells form new ones, in which nothing is done that is done already.
    """
    left = {d.cell.id: d for d in cells}
    found: list[list[CellStatus]] = []
    stage_dir = run_dir.path / cells[0].cell.stage
    for job_file in sorted(stage_dir.glob("jobs/*/job.json")):
        begun = read_job(job_file.parent)
        if begun and all(cell_id in left and left[cell_id].fingerprint == print_ for cell_id, print_ in begun.items()):
            group = [left.pop(cell_id) for cell_id in begun]
            if all(_together(group[0], other) for other in group):
                found.append(group)
            else:
                left.update({d.cell.id: d for d in group})
    for decision in cells:
        if decision.cell.id not in left:
            continue
        done = decision.action == "done"
        group = [d for d in left.values() if d is decision or ((d.action == "done") == done and _together(decision, d))]
        for member in group:
            del left[member.cell.id]
        found.append(group)
    return found


def _together(a: CellStatus, b: CellStatus) -> bool:
    same_inputs = all(a.inputs.get(n) == b.inputs.get(n) for n in ("model",))
    return a is b or (
        same_inputs and a.steps_wanted == b.steps_wanted and a.cell.settings.together_with(b.cell.settings)
    )
