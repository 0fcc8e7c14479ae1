"""`main` of a stage script, run by hand or by the runner.

Reads the command line, finds the stale cells of the stage, runs them in jobs, and exits with the exit code.
"""

from __future__ import annotations

import contextlib
import json
import platform
import signal
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

from t5_pipeline.artifacts.run_dir import OutputDir, Rollback, RunDir, lock
from t5_pipeline.config.command_line import Flags, parse, validate_flags
from t5_pipeline.config.launch import LaunchContext
from t5_pipeline.config.overrides import apply_overrides
from t5_pipeline.config.recipe import Cell, Recipe, parse_recipe
from t5_pipeline.config.recipe_file import ORIGIN, read_recipe, stages_of_kind, with_origin
from t5_pipeline.config.references import InputRef
from t5_pipeline.config.registry import STAGES
from t5_pipeline.config.stage import StageConfig
from t5_pipeline.core.atomic_files import write_text
from t5_pipeline.core.boundary import boundary
from t5_pipeline.core.errors import BAD_INPUT, InputError, Interrupted, OutOfMemory, ProcessLost
from t5_pipeline.core.printable import say, show
from t5_pipeline.core.quick_exit import exit_quickly
from t5_pipeline.core.suggestions import nearest
from t5_pipeline.execution.context import C, Stage
from t5_pipeline.execution.devices import free_memory, make_accelerator, set_threads
from t5_pipeline.execution.job import JobRunner
from t5_pipeline.execution.packages import check_packages
from t5_pipeline.execution.recipe_checks import check_outside, check_places
from t5_pipeline.execution.staleness import CellStatus, cell_statuses, jobs

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
            recipe, run_dir, name = _recipe(cls, flags, program, kinds)
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


def _recipe(
    cls: type[C], flags: Flags, program: str, kinds: Mapping[str, type[StageConfig]]
) -> tuple[Recipe, RunDir, str]:
    """The recipe of a command line, its run directory, and the name of the stage in it."""
    if flags.recipe is None:
        assert flags.output_dir is not None
        settings = validate_flags(cls, flags.nested(), program)
        inputs = {n: InputRef(path=getattr(settings, n)) for n in cls.inputs() if getattr(settings, n) is not None}
        cell = Cell(cls.kind, {}, settings, inputs)
        return (
            Recipe(cls.kind, settings.seed, flags.output_dir, {cls.kind: [cell]}),
            OutputDir(flags.output_dir),
            cls.kind,
        )
    located = read_recipe(flags.recipe)
    if flags.run_dir is not None and flags.recipe == flags.run_dir / "recipe.yaml":  # as the runner starts stages
        located = with_origin(located, RunDir(flags.run_dir).state / ORIGIN)
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
    for status in open_cells:
        check_packages(status.cell.settings)
    set_threads(recipe.stages[name][0].settings.threads, launch)
    accelerator = make_accelerator([status.cell.settings for status in open_cells], launch, run_dir.path)
    main_process = accelerator.is_main_process
    created = Rollback(*([run_dir.path, run_dir.path / name] if main_process else []))
    guard = lock(run_dir.state / f"{name}.lock", run_dir.path / name if flags.recipe else run_dir.path)
    with guard if main_process else contextlib.nullcontext(lambda: None) as lock_again, created:
        groups = [group for group in jobs(statuses, run_dir) if any(not status.up_to_date for status in group)]
        accelerator.wait_for_everyone()
        runner = JobRunner(body, flags, run_dir, launch, accelerator, lock_again)
        for number, group in enumerate(groups, 1):
            stopped_by = runner.run(group)
            if stopped_by and number < len(groups):
                raise Interrupted(stopped_by)
            if number < len(groups):
                free_memory(accelerator)


def _refuse_missing_inputs(statuses: list[CellStatus], run_dir: RunDir) -> None:
    for status in statuses:
        if status.fingerprint is None:
            makers = sorted({ref.stage for ref in status.cell.inputs.values() if ref.stage})
            raise InputError(
                f"{run_dir.path}: {status.cell.stage} needs the output of {', '.join(makers)}, which is missing or"
                " stale; run those stages first, or the whole recipe with `t5-pipeline run`"
            )
