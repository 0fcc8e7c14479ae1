"""One job of a stage: runs the stage's body on cells that train together, and writes each cell's manifest last."""

from __future__ import annotations

import contextlib
import datetime
import json
import logging
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic

from t5_pipeline.artifacts import manifest as manifests
from t5_pipeline.artifacts.fingerprint import differences
from t5_pipeline.artifacts.kinds import artifact_digest
from t5_pipeline.artifacts.manifest import Manifest, OutputRecord, Started
from t5_pipeline.artifacts.run_dir import Rollback, RunDir
from t5_pipeline.config.command_line import Flags
from t5_pipeline.config.launch import LaunchContext
from t5_pipeline.config.stage import StageConfig
from t5_pipeline.core.atomic_files import sweep, write_text
from t5_pipeline.core.errors import InputError
from t5_pipeline.core.printable import LogFile, LogFormatter, WarnOnce
from t5_pipeline.execution.context import C, CellRun, Stage, log
from t5_pipeline.execution.devices import peak_memory, reset_peak_memory, slow_precision
from t5_pipeline.execution.environment import environment, versions
from t5_pipeline.execution.staleness import CellStatus, reasons

if TYPE_CHECKING:
    from accelerate import Accelerator


@dataclass(frozen=True)
class JobRunner(Generic[C]):
    """Runs the jobs of a stage, one after another.

    Attributes:
        body: the stage's own code, which publishes the results.
        lock_again: restores the lock of the stage after its directory was moved.
    """

    body: Callable[[Stage[C]], None]
    flags: Flags
    run_dir: RunDir
    launch: LaunchContext
    accelerator: Accelerator
    lock_again: Callable[[], None]

    def run(self, group: list[CellStatus]) -> int:
        """Run the cells of one job; returns the signal received while the last one was published, or 0."""
        began, now = time.monotonic(), _now()
        run_dir, accelerator, main_process = self.run_dir, self.accelerator, self.accelerator.is_main_process
        cells: list[CellRun[C]] = [CellRun(s, s.cell.settings, run_dir.cell(s.cell), run_dir, now) for s in group]  # type: ignore[arg-type]
        prints = {cell.id: cell.status.fingerprint or "" for cell in cells}
        directory = run_dir.job(prints, group[0].cell)
        places = [directory.parent, directory, run_dir.path / "superseded", *(cell.directory for cell in cells)]
        with Rollback(*(places if main_process else [])) as created:
            if main_process:
                for cell in cells:
                    self._begin(cell, created)
                directory.mkdir(parents=True, exist_ok=True)
                if group[0].cell.axes:
                    sweep(directory)
                    write_text(directory / "job.json", json.dumps({"cells": prints}, indent=1))
            accelerator.wait_for_everyone()
            stage = Stage(cells, directory, run_dir, self.flags.resume_from, self.launch, accelerator)
            with _logging(directory, main_process):
                why = reasons([status for status in group if not status.up_to_date])
                log.info("%s: %s (%s)", stage.name, why, accelerator.device)
                if slow := slow_precision(group[0].cell.settings, accelerator.device.type):
                    log.warning("%s: %s", stage.name, slow)
                _warn_of_other_versions(cells)
                reset_peak_memory(accelerator.device)
                with _located(group[0].cell.settings):
                    self.body(stage)
                costs = peak_memory(accelerator.device) | ({"cells_together": len(cells)} if len(cells) > 1 else {})
                for cell in cells:
                    if main_process:
                        self._finish(cell, time.monotonic() - began, stage.seconds_before, costs)
                log.info("%s: done in %.0f s", stage.name, time.monotonic() - began)
        accelerator.wait_for_everyone()
        return stage.stopped_by

    def _begin(self, cell: CellRun[C], created: Rollback) -> None:
        """Prepare the directory of a cell, and record there that it was started."""
        if cell.status.replaces is None:
            _remove_damaged_outputs(cell)
        else:
            self._archive_other_results(cell, created)
        self.lock_again()  # results with other settings were moved, with the locked directory
        cell.directory.mkdir(parents=True, exist_ok=True)
        if manifests.read_started(cell.directory) is not None:
            sweep(cell.directory)
        else:
            for left in cell.directory.glob(f".{manifests.STARTED}.*.tmp"):
                left.unlink()
            Started(**self._described(cell)).save(cell.directory)

    def _archive_other_results(self, cell: CellRun[C], created: Rollback) -> None:
        """Move results with other settings to superseded/.

        Raises:
            InputError: if they are in an --output-dir and --overwrite is not given.
        """
        existing = manifests.read(cell.directory) or manifests.read_started(cell.directory)
        assert existing is not None
        if self.flags.recipe is None and not self.flags.overwrite:
            changed = "; ".join(differences(existing.parts, cell.status.parts))
            raise InputError(
                f"{cell.directory}: contains results with other settings ({changed});"
                " choose another --output-dir, or pass --overwrite to move them"
            )
        to = created.archive(self.run_dir, cell.directory, existing.fingerprint)
        log.warning("%s: results with other settings were moved to %s", cell.status.cell.label, to)

    def _described(self, cell: CellRun[C]) -> dict[str, Any]:
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
            "environment": environment(self.launch),
            "started": cell.started,
        }

    def _finish(self, cell: CellRun[C], seconds: float, seconds_before: float, costs: dict[str, int]) -> None:
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
        described = self._described(cell)
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
            seconds=round(seconds + max(seconds_before, before.seconds if before else 0.0), 3),
        )
        manifest.save(cell.directory)


def _remove_damaged_outputs(cell: CellRun[C]) -> None:
    before = manifests.read(cell.directory)
    if before is None or cell.config.repairs_output:
        return
    for name in manifests.changed_files(cell.directory, before):
        place = next((o.path for o in before.all_outputs() if name.startswith(o.path + "/")), None)
        if place is not None:
            cell.claim(place)
            shutil.rmtree(cell.directory / place, ignore_errors=True)


def _warn_of_other_versions(cells: list[CellRun[C]]) -> None:
    """Log changed library versions: the result may then not be bit-identical to an uninterrupted run."""
    now = versions()
    for cell in cells:
        existing = manifests.read_started(cell.directory)
        then = existing.versions if existing else now
        if changed := [f"{name} {then.get(name)} → {now.get(name)}" for name in now if then.get(name) != now[name]]:
            log.warning("%s: was started with other versions: %s", cell.status.cell.label, ", ".join(changed))


@contextlib.contextmanager
def _located(settings: StageConfig) -> Iterator[None]:
    """Let errors that begin with the name of a setting say where it was written."""
    try:
        yield
    except InputError as error:
        name, _, problem = str(error).partition(": ")
        if type(error) is not InputError or not problem or name not in type(settings).model_fields:
            raise
        raise InputError(f"{settings.where(name)}: {problem}") from error


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
