"""Checks of a recipe before a stage is launched: inputs that are missing, and places that are taken."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from t5_pipeline.artifacts.kinds import check_data, locate, locate_one
from t5_pipeline.artifacts.run_dir import RunDir
from t5_pipeline.config.recipe import Cell, Recipe
from t5_pipeline.config.stage import SplitRead
from t5_pipeline.core.errors import InputError
from t5_pipeline.core.schema import data_fields
from t5_pipeline.data_prep.tasks.config import TaskConfig
from t5_pipeline.data_prep.tasks.task import Task
from t5_pipeline.execution.staleness import solved_by_inputs


def check_outside(recipe: Recipe, stage: str) -> None:
    """Check that everything that a stage reads from outside the run exists, before anything is launched.

    Raises:
        InputError: if something is missing; names the setting.
    """
    for cell in recipe.stages[stage]:
        where = cell.settings.where
        for name, owner, location in data_fields(cell.settings):
            check_data(location, owner.where("data") if isinstance(owner, TaskConfig) else where(*name.split(".")))
        for name, ref in cell.inputs.items():
            if ref.path is not None:
                find = locate if cell.settings.takes_many(name) else locate_one
                find(cell.settings.inputs()[name], ref.path, where(name))
        solved = solved_by_inputs(recipe, cell)
        cell.settings.check_solved(solved)
        for read in cell.settings.splits_read(solved):
            task = Task.load(read.task)
            if read.split not in task.settings.splits and getattr(cell.settings, "split", None) == read.split:
                raise InputError(
                    f"{where('split')}: task `{task.name}` has no split {read.split!r}; choose one of"
                    f" {', '.join(task.settings.splits)}, or add it to the `splits` of the task"
                )
            with _reason(cell, read):
                task.check_split(read.split, read.inputs_only)


def check_first_rows(recipe: Recipe, cells: Iterable[Cell]) -> None:
    """Check that the first rows of the tasks that cells read fit their settings, before anything is launched.

    Raises:
        InputError: if they do not; names the row and the setting.
    """
    checked: list[tuple[TaskConfig, str, bool]] = []
    for cell in cells:
        for read in cell.settings.splits_read(solved_by_inputs(recipe, cell)):
            key = (read.task, read.split, read.inputs_only)
            if key in checked:
                continue
            checked.append(key)
            with _reason(cell, read):
                Task.load(read.task).check_first_rows(read.split, read.inputs_only)


@contextlib.contextmanager
def _reason(cell: Cell, read: SplitRead) -> Iterator[None]:
    """Say in errors why a split is read."""
    try:
        yield
    except InputError as error:
        raise InputError(f"{error} ({read.reason or f'{cell.stage} reads it'})") from None


def check_places(cells: Sequence[Cell], run_dir: RunDir) -> None:
    """Check that cells replace neither their inputs nor anything that is not theirs, before anything is launched.

    Raises:
        InputError: if they would.
    """
    for cell in cells:
        place = run_dir.cell(cell)
        paths = {name: ref.path for name, ref in cell.inputs.items() if ref.path is not None}
        for name, location in {**cell.settings.data(), **paths}.items():
            path = Path(location)
            if path.exists() and path.resolve().is_relative_to(place.resolve()):
                raise InputError(
                    f"{cell.settings.where(name)}: {location} is inside {place}, which this stage writes;"
                    " choose another directory for the results"
                )
        if (corpus := cell.settings.data().get("corpus")) is not None and _would_read(Path(corpus), place):
            raise InputError(
                f"{cell.settings.where('corpus')}: {place}, which this stage writes, is inside {corpus} and would"
                " become part of the corpus; choose another directory for the results"
            )
        run_dir.refuse_foreign(cell)
    for stage, outputs in dict.fromkeys((cell.stage, tuple(cell.settings.outputs)) for cell in cells):
        run_dir.refuse_links_out(stage, outputs)


def _would_read(corpus: Path, place: Path) -> bool:
    """Whether files at a place belong to a corpus; hidden ones in its folder do not."""
    inner, folder = place.resolve(), corpus.resolve()
    if not folder.is_dir() or not inner.is_relative_to(folder):
        return False
    return not any(part.startswith(".") for part in inner.relative_to(folder).parts)
