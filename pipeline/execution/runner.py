"""The runner: launches stale stages in the recipe's order and stops at the first failure."""

from __future__ import annotations

import os
import signal
import time

from t5_pipeline.artifacts.manifest import renew_times
from t5_pipeline.artifacts.run_dir import Rollback, RunDir, lock
from t5_pipeline.config.recipe import Recipe
from t5_pipeline.config.recipe_file import ORIGIN, origin_of
from t5_pipeline.core.atomic_files import sweep_shared, write_bytes, write_text
from t5_pipeline.core.bounded import has_content
from t5_pipeline.core.counts import plural
from t5_pipeline.core.errors import BAD_INPUT, InputError
from t5_pipeline.core.printable import say
from t5_pipeline.core.suggestions import nearest
from t5_pipeline.execution.launcher import command, launch
from t5_pipeline.execution.packages import check_installed, check_packages
from t5_pipeline.execution.recipe_checks import check_first_rows, check_outside, check_places
from t5_pipeline.execution.staleness import CellStatus, cell_statuses


def run(recipe: Recipe, run_dir: RunDir, first: str | None = None, last: str | None = None) -> int:
    """Bring a run directory up to date with its recipe.

    Args:
        first: start with this stage; earlier ones must be up to date.
        last: stop after this stage.

    Returns:
        The exit code: 0, or that of the stage that failed.

    Raises:
        InputError: if a stage name is not in the recipe, or the directory is in use.
    """
    names = _chosen(recipe, first, last)
    _check(recipe, run_dir, names)
    created = Rollback(run_dir.path)
    with lock(run_dir.state / "lock", run_dir.path), created:
        began = time.monotonic()
        for directory in (run_dir.path, run_dir.state):  # stages sweep their own
            sweep_shared(directory)
        replaced = _write_recipe(recipe, run_dir)
        ran = 0
        for name in names:
            todo = [s for s in cell_statuses(recipe, run_dir) if s.cell.stage == name and not s.up_to_date]
            if not todo:
                continue
            ran += 1
            say(f"▶ {name}" + (f": {plural(len(todo), 'cell')}" if todo[0].cell.axes else ""))
            code, message = _launch(recipe, run_dir, name)
            if code == BAD_INPUT:
                created.undo()
                if ran == 1 and replaced is not None and not _has_begun(recipe, run_dir, todo):
                    write_bytes(run_dir.path / "recipe.yaml", replaced)
            if code != 0:
                return _failed(name, code, message)
        left = [status for status in cell_statuses(recipe, run_dir) if status.cell.stage in names]
        for status in left:
            manifest = run_dir.manifest(status.cell)
            if status.up_to_date and manifest is not None:
                renew_times(run_dir.cell(status.cell), manifest)
        if stale := next((status for status in left if not status.up_to_date), None):  # its data or recipe.yaml changed
            say(f"warning: {stale.cell.label} is stale since it ran ({stale.reason}); run the same command again")
        if not ran and all(status.up_to_date for status in left):
            say(f"nothing to do: all {len(names)} stages in {run_dir.path} are up to date")
        else:
            say(f"✓ {ran} of {len(names)} stages ran in {time.monotonic() - began:.0f} s; results in {run_dir.path}")
    return 0


def _check(recipe: Recipe, run_dir: RunDir, names: list[str]) -> None:
    """Check all stages before the first is launched."""
    for name in names:
        check_outside(recipe, name)
        check_places(recipe.stages[name], run_dir)
        command(recipe.kind(name), recipe.launch[name], [], recipe.where_launch(name))
        recipe.launch_config(name)
    cells = [s.cell for s in cell_statuses(recipe, run_dir) if s.cell.stage in names and not s.up_to_date]
    check_first_rows(recipe, cells)
    for cell in cells:
        check_packages(cell.settings)
    for name in dict.fromkeys(cell.stage for cell in cells):
        launch = recipe.launch_config(name)
        if launch is not None and launch.engine.startswith("zero"):
            check_installed("deepspeed", "deepspeed", recipe.where_launch(name))
    file = run_dir.path / "recipe.yaml"
    same = has_content(file, recipe.text().encode())
    if os.path.lexists(file) and not same and not run_dir.state.is_dir():
        raise InputError(
            f"{file}: already exists and was not written by a run; choose another run directory, or move it away"
        )


def _write_recipe(recipe: Recipe, run_dir: RunDir) -> bytes | None:
    """Write the recipe to the run directory, with the places of its keys; returns another one that it replaced."""
    assert recipe.located is not None
    file, text = run_dir.path / "recipe.yaml", recipe.text()
    origin = origin_of(recipe.located, text)
    if not has_content(run_dir.state / ORIGIN, origin.encode()):
        write_text(run_dir.state / ORIGIN, origin)
    if has_content(file, text.encode()):
        return None
    replaced = file.read_bytes() if file.exists() else None
    write_text(file, text)
    return replaced


def _launch(recipe: Recipe, run_dir: RunDir, name: str) -> tuple[int, str]:
    """Run a stage in processes of its own; returns its exit code and its message."""
    # With =, so that a path that begins with - is not read as a flag.
    arguments = [f"--recipe={run_dir.path / 'recipe.yaml'}", f"--stage={name}", f"--run-dir={run_dir.path}"]
    return launch(recipe.kind(name), recipe.launch[name], arguments, run_dir.state / f"{name}.exit")


def _has_begun(recipe: Recipe, run_dir: RunDir, tried: list[CellStatus]) -> bool:
    """Whether one of these cells, which were to run, has results of this recipe by now: another job made them."""
    cells = {(status.cell.stage, status.cell.id) for status in tried}
    now = [s for s in cell_statuses(recipe, run_dir) if (s.cell.stage, s.cell.id) in cells]
    return any(status.action != "run" for status in now)


def _chosen(recipe: Recipe, first: str | None, last: str | None) -> list[str]:
    names = list(recipe.stages)
    for flag, name in (("--from", first), ("--until", last)):
        if name is not None and name not in names:
            raise InputError(f"{flag} {name}: is not a stage of the recipe; {nearest(name, names)}")
    begin = names.index(first) if first else 0
    end = names.index(last) + 1 if last else len(names)
    if begin >= end:
        raise InputError(f"--from {first} --until {last}: {last} precedes {first} in the recipe; swap them")
    return names[begin:end]


def _failed(name: str, code: int, message: str) -> int:
    """Report how a launched stage ended, if it has not done so itself, and return its exit code."""
    if code == BAD_INPUT:
        return code  # the stage has printed the error
    if code in (128 + signal.SIGTERM, 128 + signal.SIGINT):
        say(f"■ {name}: {message or 'interrupted'}")
        return code
    if code > 128:
        say(f"✗ {name} was killed by signal {code - 128}; run the same command to resume from its last checkpoint")
        return code
    say(f"✗ {name} failed with exit code {code}; see the traceback above")
    return code
