"""How a stage script is run, by hand or under the runner.

It works out which cells of the stage are still to be made, makes them, writes each one's manifest last, and leaves with
the right exit code.
"""

from __future__ import annotations

import contextlib
import datetime
import errno
import importlib.metadata
import json
import logging
import os
import platform
import resource
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from t5_pipeline.artifacts import manifest as manifests
from t5_pipeline.artifacts.fingerprint import differences
from t5_pipeline.artifacts.manifest import Manifest, Started
from t5_pipeline.artifacts.run_dir import OutputDir, RunDir, absent, lock, remove_vain
from t5_pipeline.config.command_line import Flags, as_overrides, flag, parse
from t5_pipeline.config.recipe import Cell, InputRef, Recipe, load_recipe
from t5_pipeline.config.registry import STAGES
from t5_pipeline.config.stage import StageConfig
from t5_pipeline.core.atomic_files import sweep, write_text
from t5_pipeline.core.errors import BAD_INPUT, InputError, Interrupted, cannot_be_written
from t5_pipeline.core.schema import nearest, validate
from t5_pipeline.execution.context import C, CellRun, Stage, log
from t5_pipeline.execution.devices import launched, set_threads
from t5_pipeline.execution.staleness import CellStatus, check_outside, decide, jobs

if TYPE_CHECKING:
    from accelerate import Accelerator

_PACKAGES = ("t5-pipeline", "torch", "numpy", "accelerate", "transformers", "sentencepiece", "safetensors")


def main(body: Callable[[Stage[C]], None], cls: type[C]) -> None:
    """Entry of a stage script: reads the command line, runs `body` for each job, leaves with the right exit code."""
    sys.exit(run(body, cls, sys.argv[1:], Path(sys.argv[0]).name))


def run(
    body: Callable[[Stage[C]], None],
    cls: type[C],
    arguments: list[str],
    program: str,
    kinds: Mapping[str, type[StageConfig]] = STAGES,
) -> int:
    """Run a stage and return its exit code: 0 done, 2 bad input, 128 + signal when interrupted."""
    report: Path | None = None
    try:
        flags = parse(cls, program, arguments)
        recipe, run_dir, name = _recipe(cls, flags, kinds)
        report = run_dir.state / f"{name}.exit"
        _run(body, cls, flags, recipe, run_dir, name)
        return _leave(report, 0, "")
    except InputError as error:
        return _leave(report, BAD_INPUT, str(error))
    except Interrupted as error:
        return _leave(report, error.exit_code, str(error))
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EROFS):
            raise
        where = error.filename or (report.parent.parent if report else "the disk")
        return _leave(report, BAD_INPUT, str(cannot_be_written(where, error)))
    except KeyboardInterrupt:
        return _leave(report, 128 + signal.SIGINT, "stopped by SIGINT; run the same command to go on")


def _leave(report: Path | None, code: int, message: str) -> int:
    """Say why, once for all processes, and leave the code where the runner finds it: a launcher may swallow it."""
    if int(os.environ.get("RANK", "0")) == 0:
        if message:
            print(f"error: {message}" if code == BAD_INPUT else message, file=sys.stderr, flush=True)
        if report is not None and report.parent.is_dir():
            with contextlib.suppress(OSError):
                write_text(report, json.dumps({"code": code, "message": message}))
    return code


def _recipe(cls: type[C], flags: Flags, kinds: Mapping[str, type[StageConfig]]) -> tuple[Recipe, RunDir, str]:
    """The recipe that a command line means, its run directory, and the stage's name in it."""
    if flags.recipe is None:
        assert flags.output_dir is not None
        settings = validate(cls, flags.values, lambda loc: flag(".".join(map(str, loc))) if loc else "flags")
        inputs = {n: InputRef(path=getattr(settings, n)) for n in cls.inputs() if getattr(settings, n) is not None}
        cell = Cell(cls.kind, {}, settings, inputs)
        return (
            Recipe(cls.kind, settings.seed, flags.output_dir, {cls.kind: [cell]}),
            OutputDir(flags.output_dir),
            cls.kind,
        )
    plain = load_recipe(flags.recipe, flags.overrides, kinds)
    of_kind = [name for name in plain.stages if plain.kind(name) == cls.kind]
    name = flags.stage or (of_kind[0] if len(of_kind) == 1 else None)
    if name is None:
        raise InputError(
            f"{flags.recipe}: has {len(of_kind)} stages of kind {cls.kind}; name one with --stage: {', '.join(of_kind)}"
        )
    if name not in of_kind:
        raise InputError(
            f"--stage {name}: {flags.recipe} has no {cls.kind} stage of that name; {nearest(name, of_kind)}"
        )
    recipe = load_recipe(flags.recipe, [*flags.overrides, *as_overrides(name, flags.values)], kinds)
    return recipe, RunDir(flags.run_dir or recipe.default_run_dir), name


def _run(
    body: Callable[[Stage[C]], None], cls: type[C], flags: Flags, recipe: Recipe, run_dir: RunDir, name: str
) -> None:
    check_outside(recipe.stages[name])
    decisions = [d for d in decide(recipe, run_dir) if d.cell.stage == name]
    _refuse_missing_inputs(decisions, run_dir)
    if flags.resume_from is not None:
        for decision in decisions:
            if decision.action == "done":
                decision.action, decision.reason = "continue", f"goes back to step {flags.resume_from:,}"
    open_cells = [d for d in decisions if d.action != "done"]
    if not open_cells:
        print(f"{name}: nothing to do, {decisions[0].reason}")
        return
    set_threads(recipe.stages[name][0].settings.threads)
    accelerator = launched(open_cells[0].cell.settings, run_dir.path)
    main_process = accelerator.is_main_process
    fresh = absent(run_dir.path, run_dir.path / name) if main_process else {}
    guard = lock(run_dir.state / f"{name}.lock", run_dir.path / name if flags.recipe else run_dir.path)
    with guard if main_process else contextlib.nullcontext():
        groups = [group for group in jobs(decisions, run_dir) if any(d.action != "done" for d in group)]
        accelerator.wait_for_everyone()
        try:
            for number, group in enumerate(groups, 1):
                stopped_by = _run_job(body, group, flags, run_dir, accelerator)
                if stopped_by and number < len(groups):
                    raise Interrupted(stopped_by)
        except InputError:
            remove_vain(fresh)
            raise


def _run_job(
    body: Callable[[Stage[C]], None], group: list[CellStatus], flags: Flags, run_dir: RunDir, accelerator: Accelerator
) -> int:
    """Make the cells of one job; returns a signal that came while the last of them was being published."""
    began, now = time.monotonic(), _now()
    cells: list[CellRun[C]] = [CellRun(d, d.cell.settings, run_dir.cell(d.cell), run_dir, now) for d in group]  # type: ignore[arg-type]
    prints = {cell.id: cell.decision.fingerprint or "" for cell in cells}
    directory = run_dir.job(prints, group[0].cell)
    main_process = accelerator.is_main_process
    aside: dict[Path, Path] = {}
    places = [directory.parent, directory, run_dir.path / "superseded", *(cell.directory for cell in cells)]
    fresh = absent(*places) if main_process else {}
    try:
        if main_process:
            for cell in cells:
                if to := _make_way(cell, flags, run_dir):
                    aside[cell.directory] = to
                cell.directory.mkdir(parents=True, exist_ok=True)
                sweep(cell.directory)
                if manifests.read_started(cell.directory) is None:
                    Started(**_described(cell)).save(cell.directory)
            directory.mkdir(parents=True, exist_ok=True)
            sweep(directory)
            if group[0].cell.axes:
                write_text(directory / "job.json", json.dumps({"cells": prints}, indent=1))
        accelerator.wait_for_everyone()
        stage = Stage(cells, directory, run_dir, flags.resume_from, accelerator)
        with _logging(directory, main_process):
            log.info("%s: %s (%s)", stage.name, group[0].reason, accelerator.device)
            _warn_of_other_versions(cells)
            body(stage)
            for cell in cells:
                if main_process:
                    _finish(cell, time.monotonic() - began)
            log.info("%s: done in %.0f s", stage.name, time.monotonic() - began)
    except InputError:
        for place, to in aside.items():
            run_dir.restore(place, to)
        remove_vain(fresh)
        raise
    accelerator.wait_for_everyone()
    return stage.stopped_by


def _warn_of_other_versions(cells: list[CellRun[C]]) -> None:
    """What was begun with other library versions goes on, but need not end with the same bits."""
    now = versions()
    for cell in cells:
        begun = manifests.read_started(cell.directory)
        then = begun.versions if begun else now
        if changed := [f"{name} {then.get(name)} → {now.get(name)}" for name in now if then.get(name) != now[name]]:
            log.warning("%s: was begun with other versions: %s", cell.decision.cell.label, ", ".join(changed))


def _make_way(cell: CellRun[C], flags: Flags, run_dir: RunDir) -> Path | None:
    """Clear what stands in the way of a cell; where results of other settings went, if there were some.

    Outputs that are not as they were published are removed, to be made again. Results of other settings are moved aside
    under a recipe, and refused in a directory that was named by hand.
    """
    if cell.decision.replaces is None:
        before = manifests.read(cell.directory)
        if before is not None and not cell.config.repairs_output:
            for name in manifests.changed_files(cell.directory, before):
                place = next(o.path for o in before.all_outputs() if name.startswith(o.path + "/"))
                shutil.rmtree(cell.directory / place, ignore_errors=True)
        return None
    begun = manifests.read(cell.directory) or manifests.read_started(cell.directory)
    assert begun is not None
    if flags.recipe is None and not flags.overwrite:
        changed = "; ".join(differences(begun.parts, cell.decision.parts))
        raise InputError(
            f"{cell.directory}: holds results of other settings ({changed});"
            " choose another --output-dir, or move them aside with --overwrite"
        )
    to = run_dir.archive(cell.directory, begun.fingerprint)
    log.warning("%s: results of other settings now lie in %s", cell.decision.cell.label, to)
    return to


def _described(cell: CellRun[C]) -> dict[str, Any]:
    decision = cell.decision
    assert decision.fingerprint is not None
    return {
        "stage": decision.cell.stage,
        "kind": cell.config.kind,
        "cell": decision.cell.axes,
        "fingerprint": decision.fingerprint,
        "parts": decision.parts,
        "settings": cell.config.model_dump(mode="json"),
        "inputs": decision.inputs,
        "versions": versions(),
        "started": cell.started,
    }


def _finish(cell: CellRun[C], seconds: float) -> None:
    """Write the manifest: from here on the cell is done."""
    before = manifests.read(cell.directory)
    begun = manifests.read_started(cell.directory)
    steps = {**(before.steps_published if before else {}), **cell.steps}
    steps = {step: record for step, record in steps.items() if (cell.directory / record.path).is_dir()}
    outputs = {**(before.outputs if before else {}), **cell.outputs}
    places = [record.path for record in (*outputs.values(), *steps.values())]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    described = _described(cell)
    described["started"] = begun.started if begun else cell.started
    manifest = Manifest(
        **described,
        step=cell.step if cell.step is not None else (before.step if before else None),
        steps_published=steps,
        outputs=outputs,
        files=manifests.record_files(cell.directory, places),
        facts={**(before.facts if before else {}), **cell.facts, "peak_rss_bytes": peak},
        finished=_now(),
        seconds=round(seconds + (before.seconds if before else 0.0), 1),
    )
    manifest.save(cell.directory)


def _refuse_missing_inputs(decisions: list[CellStatus], run_dir: RunDir) -> None:
    for decision in decisions:
        if decision.fingerprint is None:
            makers = sorted({ref.stage for ref in decision.cell.inputs.values() if ref.stage})
            raise InputError(
                f"{run_dir.path}: {decision.cell.stage} needs the output of {', '.join(makers)}, which is not there"
                " yet or out of date; run those stages first, or the whole recipe by `t5-pipeline run`"
            )


@contextlib.contextmanager
def _logging(directory: Path, main_process: bool) -> Iterator[None]:
    """Plain lines to stderr and to the job's log.txt, from the main process."""
    handlers: list[logging.Handler] = []
    log.setLevel(logging.INFO if main_process else logging.ERROR)
    log.propagate = False
    if main_process:
        handlers = [logging.StreamHandler(), logging.FileHandler(directory / "log.txt", encoding="utf-8")]
        handlers[0].setFormatter(logging.Formatter("%(message)s"))
        handlers[1].setFormatter(logging.Formatter("%(asctime)s %(message)s"))
    for handler in handlers:
        log.addHandler(handler)
    try:
        yield
    finally:
        for handler in handlers:
            log.removeHandler(handler)
            handler.close()


def versions() -> dict[str, str]:
    """What computed a result. A change is warned about, not refused."""
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[package] = importlib.metadata.version(package)
    return found


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
