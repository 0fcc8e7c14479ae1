"""`main` of a stage script, run by hand or by the runner.

Finds the stale cells of the stage, runs the stage's body on them, writes each cell's manifest last, and exits with the
exit code.
"""

from __future__ import annotations

import contextlib
import datetime
import json
import logging
import platform
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from t5_pipeline.artifacts import manifest as manifests
from t5_pipeline.artifacts.fingerprint import differences
from t5_pipeline.artifacts.kinds import artifact_digest
from t5_pipeline.artifacts.manifest import Manifest, OutputRecord, Started
from t5_pipeline.artifacts.run_dir import OutputDir, Rollback, RunDir, lock
from t5_pipeline.config.command_line import Flags, flag, parse
from t5_pipeline.config.launch import LaunchContext
from t5_pipeline.config.overrides import apply_overrides
from t5_pipeline.config.recipe import Cell, Recipe, parse_recipe
from t5_pipeline.config.recipe_file import read_recipe, stages_of_kind
from t5_pipeline.config.references import InputRef
from t5_pipeline.config.registry import STAGES
from t5_pipeline.config.stage import StageConfig
from t5_pipeline.core.atomic_files import sweep, write_text
from t5_pipeline.core.boundary import boundary
from t5_pipeline.core.errors import BAD_INPUT, InputError, Interrupted, OutOfMemory, ProcessLost
from t5_pipeline.core.printable import LogFile, LogFormatter, WarnOnce, say, show
from t5_pipeline.core.quick_exit import exit_quickly
from t5_pipeline.core.schema import validate
from t5_pipeline.core.suggestions import nearest
from t5_pipeline.execution.context import C, CellRun, Stage, log
from t5_pipeline.execution.devices import (
    free_memory,
    make_accelerator,
    peak_memory,
    reset_peak_memory,
    set_threads,
    slow_precision,
)
from t5_pipeline.execution.environment import environment, versions
from t5_pipeline.execution.staleness import CellStatus, cell_statuses, check_outside, check_places, jobs

if TYPE_CHECKING:
    from accelerate import Accelerator


_MAIN_PROCESS_S = 5.0  # it may fail later than the others, or not at all


def main(body: Callable[[Stage[C]], None], cls: type[C]) -> None:
    """Run a stage script: read the command line, call `body` for each job, and exit."""
    exit_quickly()
    sys.exit(run(body, cls, sys.argv[1:], Path(sys.argv[0]).name))


def run(
    body: Callable[[Stage[C]], None],
    cls: type[C],
    arguments: list[str],
    program: str,
    kinds: Mapping[str, type[StageConfig]] = STAGES,
) -> int:
    """Run a stage and return its exit code: 0 success, 2 bad input, 128 + signal if interrupted."""
    launch, began = LaunchContext.from_environment(), time.time()
    report: Path | None = None

    def leave(code: int, message: str, error: Exception | None = None) -> int:
        """Print the message on one process, and leave code and message for the runner; a launcher hides the code."""
        # Another machine may lack a file that the first one has, so one process of each prints its errors.
        first_here = launch.rank % launch.local_processes == 0
        own = isinstance(error, (OutOfMemory, ProcessLost))
        if launch.rank and (isinstance(error, OutOfMemory) or (error is not None and first_here)):
            machine = "" if own else f"{platform.node()}: "
            say(f"error: {machine}{message}")
        if launch.rank == 0:
            if message:
                say(f"error: {message}" if code == BAD_INPUT else message)
            if report is not None and report.parent.is_dir():
                with contextlib.suppress(OSError):
                    write_text(report, json.dumps({"code": code, "message": message}))
        elif code and not own and report is not None and report.parent.is_dir():
            _wait_for(report, began)
        return code

    try:
        with boundary():
            flags = parse(cls, program, arguments)
            recipe, run_dir, name = _recipe(cls, flags, kinds)
            report = run_dir.state / f"{name}.exit"
            _run(body, flags, recipe, run_dir, name, launch)
        return leave(0, "")
    except InputError as error:
        return leave(BAD_INPUT, str(error), error)
    except Interrupted as error:
        return leave(error.exit_code, str(error))
    except KeyboardInterrupt:
        return leave(128 + signal.SIGINT, "stopped by SIGINT; run the same command to resume")


def _wait_for(report: Path, began: float) -> None:
    """Let the main process leave its message first: a launcher kills it as soon as another process has failed.

    Args:
        began: time.time() at the start of this process; an older message is that of an earlier run.
    """
    deadline = time.monotonic() + _MAIN_PROCESS_S
    while time.monotonic() < deadline:
        with contextlib.suppress(OSError):
            if report.stat().st_mtime >= began:
                return
        time.sleep(0.05)


def _recipe(cls: type[C], flags: Flags, kinds: Mapping[str, type[StageConfig]]) -> tuple[Recipe, RunDir, str]:
    """The recipe of a command line, its run directory, and the name of the stage in it."""
    if flags.recipe is None:
        assert flags.output_dir is not None
        settings = validate(cls, flags.nested(), lambda loc: flag(".".join(map(str, loc))) if loc else "flags")
        inputs = {n: InputRef(path=getattr(settings, n)) for n in cls.inputs() if getattr(settings, n) is not None}
        cell = Cell(cls.kind, {}, settings, inputs)
        return (
            Recipe(cls.kind, settings.seed, flags.output_dir, {cls.kind: [cell]}),
            OutputDir(flags.output_dir),
            cls.kind,
        )
    located = read_recipe(flags.recipe)
    apply_overrides(located, flags.overrides)
    of_kind = stages_of_kind(located, cls.kind)
    name = flags.stage or (of_kind[0] if len(of_kind) == 1 else "")
    if name in of_kind:
        apply_overrides(located, flags.overrides_of(name))
    recipe = parse_recipe(located, kinds)
    if not name:
        raise InputError(
            f"{flags.recipe}: has {len(of_kind)} stages of kind {cls.kind}; choose one with"
            f" --stage: {', '.join(of_kind)}"
        )
    if name not in of_kind:
        raise InputError(
            f"--stage {name}: is not a stage of kind {cls.kind} in {flags.recipe}; {nearest(name, of_kind)}"
        )
    return recipe, RunDir(flags.run_dir or recipe.default_run_dir), name


def _run(
    body: Callable[[Stage[C]], None],
    flags: Flags,
    recipe: Recipe,
    run_dir: RunDir,
    name: str,
    launch: LaunchContext,
) -> None:
    check_outside(recipe, name)
    check_places(recipe.stages[name], run_dir)
    statuses = [s for s in cell_statuses(recipe, run_dir) if s.cell.stage == name]
    _refuse_missing_inputs(statuses, run_dir)
    if flags.resume_from is not None:
        reason = f"back to step {flags.resume_from:,}"
        statuses = [replace(s, action="continue", reason=reason) if s.up_to_date else s for s in statuses]
    open_cells = [status for status in statuses if not status.up_to_date]
    if not open_cells:
        show(f"{name}: nothing to do, {statuses[0].reason}")
        return
    set_threads(recipe.stages[name][0].settings.threads, launch)
    accelerator = make_accelerator(open_cells[0].cell.settings, launch, run_dir.path)
    main_process = accelerator.is_main_process
    created = Rollback(*([run_dir.path, run_dir.path / name] if main_process else []))
    guard = lock(run_dir.state / f"{name}.lock", run_dir.path / name if flags.recipe else run_dir.path)
    with guard if main_process else contextlib.nullcontext(lambda: None) as lock_again, created:
        groups = [group for group in jobs(statuses, run_dir) if any(not status.up_to_date for status in group)]
        accelerator.wait_for_everyone()
        for number, group in enumerate(groups, 1):
            stopped_by = _run_job(body, group, flags, run_dir, launch, accelerator, lock_again)
            if stopped_by and number < len(groups):
                raise Interrupted(stopped_by)
            if number < len(groups):
                free_memory(accelerator)


def _run_job(
    body: Callable[[Stage[C]], None],
    group: list[CellStatus],
    flags: Flags,
    run_dir: RunDir,
    launch: LaunchContext,
    accelerator: Accelerator,
    lock_again: Callable[[], None],
) -> int:
    """Run the cells of one job; returns the signal received while the last one was published, or 0."""
    began, now = time.monotonic(), _now()
    cells: list[CellRun[C]] = [CellRun(s, s.cell.settings, run_dir.cell(s.cell), run_dir, now) for s in group]  # type: ignore[arg-type]
    prints = {cell.id: cell.status.fingerprint or "" for cell in cells}
    directory = run_dir.job(prints, group[0].cell)
    main_process = accelerator.is_main_process
    places = [directory.parent, directory, run_dir.path / "superseded", *(cell.directory for cell in cells)]
    with Rollback(*(places if main_process else [])) as created:
        if main_process:
            for cell in cells:
                _clear_stale_outputs(cell, flags, run_dir, created)
                lock_again()  # results with other settings were moved, with the locked directory
                cell.directory.mkdir(parents=True, exist_ok=True)
                if manifests.read_started(cell.directory) is not None:
                    sweep(cell.directory)
                else:
                    for left in cell.directory.glob(f".{manifests.STARTED}.*.tmp"):
                        left.unlink()
                    Started(**_described(cell, launch)).save(cell.directory)
            directory.mkdir(parents=True, exist_ok=True)
            if group[0].cell.axes:
                sweep(directory)
                write_text(directory / "job.json", json.dumps({"cells": prints}, indent=1))
        accelerator.wait_for_everyone()
        stage = Stage(cells, directory, run_dir, flags.resume_from, launch, accelerator)
        with _logging(directory, main_process):
            log.info("%s: %s (%s)", stage.name, group[0].reason, accelerator.device)
            if slow := slow_precision(group[0].cell.settings, accelerator.device.type):
                log.warning("%s: %s", stage.name, slow)
            _warn_of_other_versions(cells)
            reset_peak_memory(accelerator.device)
            body(stage)
            costs = peak_memory(accelerator.device) | ({"cells_together": len(cells)} if len(cells) > 1 else {})
            for cell in cells:
                if main_process:
                    _finish(cell, launch, time.monotonic() - began, stage.seconds_before, costs)
            log.info("%s: done in %.0f s", stage.name, time.monotonic() - began)
    accelerator.wait_for_everyone()
    return stage.stopped_by


def _warn_of_other_versions(cells: list[CellRun[C]]) -> None:
    """Log changed library versions: the result may then not be bit-identical to an uninterrupted run."""
    now = versions()
    for cell in cells:
        existing = manifests.read_started(cell.directory)
        then = existing.versions if existing else now
        if changed := [f"{name} {then.get(name)} → {now.get(name)}" for name in now if then.get(name) != now[name]]:
            log.warning("%s: was started with other versions: %s", cell.status.cell.label, ", ".join(changed))


def _clear_stale_outputs(cell: CellRun[C], flags: Flags, run_dir: RunDir, created: Rollback) -> None:
    """Remove damaged outputs, and archive results with other settings.

    Raises:
        InputError: if results with other settings are in an --output-dir and --overwrite is not given.
    """
    if cell.status.replaces is None:
        before = manifests.read(cell.directory)
        if before is not None and not cell.config.repairs_output:
            for name in manifests.changed_files(cell.directory, before):
                place = next((o.path for o in before.all_outputs() if name.startswith(o.path + "/")), None)
                if place is not None:
                    cell.claim(place)
                    shutil.rmtree(cell.directory / place, ignore_errors=True)
        return
    existing = manifests.read(cell.directory) or manifests.read_started(cell.directory)
    assert existing is not None
    if flags.recipe is None and not flags.overwrite:
        changed = "; ".join(differences(existing.parts, cell.status.parts))
        raise InputError(
            f"{cell.directory}: contains results with other settings ({changed});"
            " choose another --output-dir, or pass --overwrite to move them"
        )
    to = created.archive(run_dir, cell.directory, existing.fingerprint)
    log.warning("%s: results with other settings were moved to %s", cell.status.cell.label, to)


def _described(cell: CellRun[C], launch: LaunchContext) -> dict[str, Any]:
    status = cell.status
    assert status.fingerprint is not None
    return {
        "stage": status.cell.stage,
        "kind": cell.config.kind,
        "cell": status.cell.axes,
        "fingerprint": status.fingerprint,
        "parts": status.parts,
        "settings": cell.config.model_dump(mode="json"),
        "inputs": status.inputs,
        "versions": versions(),
        "environment": environment(launch),
        "started": cell.started,
    }


def _finish(
    cell: CellRun[C], launch: LaunchContext, seconds: float, seconds_before: float, costs: dict[str, int]
) -> None:
    """Write the manifest, which marks the cell as finished.

    Args:
        seconds: duration of the job in this process.
        seconds_before: seconds that earlier processes trained.
        costs: further facts of the job.
    """
    before = manifests.read(cell.directory)
    existing = manifests.read_started(cell.directory)
    steps = {**(before.steps_published if before else {}), **cell.steps}
    for step, place in cell.steps_on_disk().items():
        if step not in steps:
            digest = artifact_digest(cell.config.outputs[0], cell.directory / place)
            steps[step] = OutputRecord(path=place, digest=digest)
    steps = {step: record for step, record in steps.items() if (cell.directory / record.path).is_dir()}
    outputs = {**(before.outputs if before else {}), **cell.outputs}
    places = [record.path for record in (*outputs.values(), *steps.values())]
    described = _described(cell, launch)
    described["started"] = existing.started if existing else cell.started
    manifest = Manifest(
        **described,
        step=cell.step if cell.step is not None else (before.step if before else None),
        steps_published=steps,
        outputs=outputs,
        files=manifests.record_files(cell.directory, places),
        facts={**(before.facts if before else {}), **cell.facts, **costs},
        rows=cell.rows or (before.rows if before else []),
        finished=_now(),
        seconds=round(seconds + max(seconds_before, before.seconds if before else 0.0), 1),
    )
    manifest.save(cell.directory)


def _refuse_missing_inputs(statuses: list[CellStatus], run_dir: RunDir) -> None:
    for status in statuses:
        if status.fingerprint is None:
            makers = sorted({ref.stage for ref in status.cell.inputs.values() if ref.stage})
            raise InputError(
                f"{run_dir.path}: {status.cell.stage} needs the output of {', '.join(makers)}, which is missing or"
                " stale; run those stages first, or the whole recipe with `t5-pipeline run`"
            )


@contextlib.contextmanager
def _logging(directory: Path, main_process: bool) -> Iterator[None]:
    """Log to stderr and to the job's log.txt, from the main process only."""
    handlers: list[logging.Handler] = []
    log.setLevel(logging.INFO if main_process else logging.ERROR)
    log.propagate = False
    if main_process:
        handlers = [logging.StreamHandler(), LogFile(directory / "log.txt", encoding="utf-8")]
        handlers[0].setFormatter(LogFormatter("%(message)s"))
        handlers[1].setFormatter(LogFormatter("%(asctime)s %(message)s"))
    for handler in handlers:
        handler.addFilter(WarnOnce())
        log.addHandler(handler)
    try:
        yield
    finally:
        for handler in handlers:
            log.removeHandler(handler)
            handler.close()


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
