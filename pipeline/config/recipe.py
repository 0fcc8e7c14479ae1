"""Recipes: a whole pipeline as one YAML file.

    name: demo
    seed: 1
    tasks:                        # task name → TaskConfig
      modules: {data: …, inputs: "{text}", targets: "{label}", labels: [a, b]}
    stages:                       # stage name → kind, inputs by stage name, settings
      prepare: {uses: prepare, corpus: stdlib-docs}
      lm_adapt: {uses: lm_adapt, model: span_corrupt, tokens: prepare, steps: 800}
      prompt_tune: {uses: prompt_tune, task: modules, matrix: {model: [lm_adapt@400, lm_adapt], seed: [0, 1, 2]}}

`uses:` defaults to the stage's name. `matrix:` makes one cell for each combination of its values, each with its own
artifact. `launch:` is the path of an accelerate configuration for the stage. `vars:` are variables (variables.py).
"""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import yaml

from t5_pipeline.config.launch import LaunchConfig, read_launch_config
from t5_pipeline.config.overrides import Override, apply_overrides
from t5_pipeline.config.recipe_file import RECIPE_KEYS, read_recipe
from t5_pipeline.config.references import InputRef, parse_ref, resolve_tasks
from t5_pipeline.config.registry import STAGES
from t5_pipeline.config.stage import StageConfig, check_effects
from t5_pipeline.config.sweep import combination_name
from t5_pipeline.config.training import TrainingConfig
from t5_pipeline.config.variables import substitute
from t5_pipeline.core.errors import InputError
from t5_pipeline.core.located_yaml import Key, Located
from t5_pipeline.core.paths import check_file_name
from t5_pipeline.core.schema import validate
from t5_pipeline.core.suggestions import nearest
from t5_pipeline.data_prep.tasks.config import TaskConfig

RESERVED = ("superseded",)  # used in run directories
MAX_CELLS = 1_000  # of a stage
MAX_CELL_NAME = 200  # bytes; file systems allow 255, and temporary files get longer names
_STAGE_KEYS = ("uses", "matrix", "launch")


@dataclass(frozen=True)
class Cell:
    """One artifact of the recipe: a stage with all its settings resolved."""

    stage: str
    axes: dict[str, Any]
    settings: StageConfig
    inputs: dict[str, InputRef]

    @property
    def id(self) -> str:
        """`model=lm_adapt,seed=0`, a valid directory name; empty for a stage without a matrix."""
        return combination_name(self.axes)

    @property
    def label(self) -> str:
        return f"{self.stage} [{self.id}]" if self.axes else self.stage


@dataclass(frozen=True)
class Recipe:
    """A parsed recipe.

    Attributes:
        stages: cells of each stage, in the recipe's order.
        launch: accelerate configuration of each stage that trains; None for the others, which run in one process.
        located: the YAML with all overrides applied; None for a stage without a recipe.
    """

    name: str
    seed: int
    path: Path
    stages: dict[str, list[Cell]]
    launch: dict[str, str | None] = field(default_factory=dict)
    located: Located | None = None

    def cells(self) -> Iterator[Cell]:
        for cells in self.stages.values():
            yield from cells

    def makers(self, cell: Cell) -> list[StageConfig]:
        """The settings of the stages that make the inputs of a cell."""
        return _makers(cell.inputs, self.stages)

    def kind(self, stage: str) -> str:
        return self.stages[stage][0].settings.kind

    def maker(self, ref: InputRef) -> Cell | None:
        """The cell that a reference names, or the first one of its stage; None for a path."""
        return next((c for c in self.stages.get(ref.stage or "", []) if ref.cell in (None, c.id)), None)

    def kept_steps(self, cell: Cell) -> list[int]:
        """Steps of a cell that other stages use as `STAGE@STEP` or `STAGE/CELL@STEP`."""
        refs = [ref for other in self.cells() for ref in other.inputs.values() if ref.stage == cell.stage]
        return sorted({ref.step for ref in refs if ref.step is not None and ref.cell in (None, cell.id)})

    @property
    def default_run_dir(self) -> Path:
        """The run directory if the user gives none."""
        return Path("runs") / self.name

    def where_launch(self, stage: str) -> str:
        """Where the accelerate configuration of a stage was written, for errors."""
        assert self.located is not None
        own = "launch" in self.located.data["stages"][stage]
        return self.located.where(("stages", stage, "launch") if own else ("launch",))

    def launch_config(self, stage: str) -> LaunchConfig | None:
        """Engine and devices that the accelerate configuration of a stage asks for; None without one.

        Raises:
            InputError: if it cannot be read, or a cell of the stage does not run on its engine.
        """
        path = self.launch[stage]
        if path is None:
            return None
        asked = read_launch_config(path, self.where_launch(stage))
        for cell in self.stages[stage]:
            cell.settings.check_engine(asked.engine)
        return asked

    def text(self) -> str:
        """The recipe with all overrides applied, as YAML."""
        assert self.located is not None
        return yaml.safe_dump(self.located.data, sort_keys=False, allow_unicode=True, width=120)


def load_recipe(
    path: str | Path, overrides: Iterable[Override] = (), kinds: Mapping[str, type[StageConfig]] = STAGES
) -> Recipe:
    """Read a recipe and apply overrides.

    Args:
        kinds: the kinds of stages that a recipe can use.

    Raises:
        InputError: if anything is wrong; names the file, line and key, and the nearest valid name.
    """
    located = read_recipe(path)
    apply_overrides(located, overrides)
    return parse_recipe(located, kinds)


def parse_recipe(located: Located, kinds: Mapping[str, type[StageConfig]] = STAGES) -> Recipe:
    """Parse and check a recipe that has been read.

    Raises:
        InputError: if anything is wrong; names the file, line and key, and the nearest valid name.
    """
    data = located.data
    for key in data:
        if key not in RECIPE_KEYS:
            raise InputError(f"{located.where((str(key),))}: unknown key; {nearest(str(key), RECIPE_KEYS)}")
    if not isinstance(data.get("stages"), dict) or not data["stages"]:
        raise InputError(f"{located.where(('stages',))}: is required in a recipe (a mapping)")
    substitute(located, (*RECIPE_KEYS, *map(str, data["stages"])))
    _check_name(located, data.get("name"))
    seed = data.get("seed", 0)
    if type(seed) is not int or not 0 <= seed < 2**63:
        raise InputError(f"{located.where(('seed',))}: must be a whole number from 0 to 2^63 − 1; change it")
    _check_launch(located, ("launch",), data.get("launch"))
    tasks = _tasks(located, {} if data.get("tasks") is None else data["tasks"])
    stages = _StageParser(located, kinds, seed, tasks)
    launch: dict[str, str | None] = {}
    for name, entry in data["stages"].items():
        if not isinstance(name, str):
            raise InputError(f"{located.where(('stages', str(name)))}: a stage's name must be text; put it in quotes")
        stages.parse(name, entry)
        trains = isinstance(stages.parsed[name][0].settings, TrainingConfig)
        launch[name] = entry.get("launch", data.get("launch")) if trains else None
    return Recipe(data["name"], seed, located.path, stages.parsed, launch, located)


def _check_name(located: Located, name: Any) -> None:
    where = located.where(("name",))
    if name is None or name == "":
        raise InputError(f"{where}: is required in a recipe (text)")
    if not isinstance(name, str):
        raise InputError(f"{where}: must be text; put it in quotes")
    check_file_name(name, where)


def _tasks(located: Located, entries: Any) -> dict[str, TaskConfig]:
    if not isinstance(entries, dict):
        raise InputError(f"{located.where(('tasks',))}: must map names of tasks to their settings")
    found = {}
    for name, values in entries.items():
        key: Key = ("tasks", str(name))
        if not isinstance(name, str):
            raise InputError(f"{located.where(key)}: a task's name must be text; put it in quotes")
        if not isinstance(values, dict):
            raise InputError(f"{located.where(key)}: must contain the task's settings: data, inputs, targets, …")
        found[name] = validate(TaskConfig, {"name": name, **values}, partial(_where, located, key))
    return found


def _check_launch(located: Located, key: Key, value: Any) -> None:
    if value is not None and not isinstance(value, str):
        raise InputError(f"{located.where(key)}: must be the path of an accelerate configuration, not {value!r}")


def _where(located: Located, key: Key, loc: Key) -> str:
    return located.where((*key, *loc))


@dataclass
class _StageParser:
    """Parses the stages of a recipe in their order.

    Attributes:
        parsed: the stages so far; the next one may refer to them.
    """

    located: Located
    kinds: Mapping[str, type[StageConfig]]
    seed: int
    tasks: Mapping[str, TaskConfig]
    parsed: dict[str, list[Cell]] = field(default_factory=dict)

    def parse(self, name: str, entry: Any) -> None:
        """Add the cells of a stage to `parsed`."""
        cls = self._kind(name, entry)
        _check_launch(self.located, ("stages", name, "launch"), entry.get("launch"))
        values = {str(key): value for key, value in entry.items() if key not in _STAGE_KEYS}
        matrix = self._matrix(name, entry.get("matrix"), cls, values)
        cells = [
            self._cell(name, cls, values, dict(zip(matrix, combination, strict=True)))
            for combination in itertools.product(*matrix.values())
        ]
        self._check_ids(name, cells)
        check_effects([cell.settings for cell in cells])
        self.parsed[name] = cells

    def _where(self, *key: str | int) -> str:
        return self.located.where(("stages", *key))

    def _kind(self, name: str, entry: Any) -> type[StageConfig]:
        if not isinstance(entry, dict):
            raise InputError(
                f"{self._where(name)}: must contain the stage's settings, with `uses:` and one of"
                f" {', '.join(self.kinds)}"
            )
        check_file_name(name, self._where(name), RESERVED)
        if not name or "@" in name or "." in name or name.startswith("-"):
            raise InputError(
                f"{self._where(name)}: a stage's name must not contain @ . or begin with -; choose another"
            )
        kind = entry.get("uses", name)
        if not isinstance(kind, str) or kind not in self.kinds:
            raise InputError(
                f"{self._where(name, 'uses')}: there is no stage kind `{kind}`; {nearest(str(kind), self.kinds)}"
            )
        return self.kinds[kind]

    def _matrix(self, name: str, given: Any, cls: type[StageConfig], values: Mapping[str, Any]) -> dict[str, list[Any]]:
        """The values of each axis.

        Args:
            values: the stage's settings outside the matrix.
        """
        where = self._where(name, "matrix")
        matrix = {} if given is None else given
        if not isinstance(matrix, dict):
            raise InputError(f"{where}: must map settings to lists of values, as in seed: [0, 1, 2]")
        for axis, listed in matrix.items():
            if not isinstance(listed, list) or not listed:
                found = "an empty list" if listed == [] else repr(listed)
                raise InputError(
                    f"{self._where(name, 'matrix', axis)}: must be a list of values, not {found}; write it as in"
                    " seed: [0, 1, 2]"
                )
        for axis in map(str, matrix):
            if axis not in cls.model_fields:
                raise InputError(f"{self._where(name, 'matrix', axis)}: unknown key; {nearest(axis, cls.model_fields)}")
            if axis in values:
                raise InputError(f"{self._where(name, axis)}: is also in `matrix:`; keep one of the two")
        if (count := math.prod(map(len, matrix.values()))) > MAX_CELLS:
            raise InputError(f"{where}: makes {count:,} cells; a stage may have {MAX_CELLS:,}, so split it")
        return matrix

    def _cell(self, name: str, cls: type[StageConfig], values: Mapping[str, Any], axes: dict[str, Any]) -> Cell:
        def where(loc: Key) -> str:
            return self._where(name, *(("matrix", *loc) if loc and loc[0] in axes else loc))

        resolved = {**values, **axes}
        swept = resolved.get("sweep")
        if not isinstance(swept, dict) or "seed" not in swept:
            resolved = {"seed": self.seed, **resolved}
        for key, value in resolved.items():
            resolved[key] = resolve_tasks(cls, key, value, self.tasks, where)
        for key in resolved:
            if key not in cls.model_fields:
                raise InputError(f"{where((key,))}: unknown key; {nearest(key, [*_STAGE_KEYS, *cls.model_fields])}")
        settings = validate(cls, resolved, where, "give one value, or write several under the stage's `matrix:`")
        every_stage = self.located.data["stages"]
        inputs = {
            key: parse_ref(given, self.parsed, every_stage, artifact, cls.takes_many(key), partial(where, (key,)))
            for key, artifact in cls.inputs().items()
            if (given := getattr(settings, key)) is not None
        }
        others = any(ref.path is not None for ref in inputs.values())
        return Cell(name, axes, settings.resolved(_makers(inputs, self.parsed), others, where), inputs)

    def _check_ids(self, name: str, cells: Sequence[Cell]) -> None:
        where = self._where(name, "matrix")
        for cell_id, times in Counter(cell.id for cell in cells).items():
            if times > 1:
                raise InputError(f"{where}: contains the cell {cell_id} twice; remove the repeated value")
            if len(cell_id.encode()) > MAX_CELL_NAME:
                raise InputError(
                    f"{where}: the name of the cell {cell_id[:60]}… is longer than {MAX_CELL_NAME} bytes;"
                    " use fewer axes or shorter values"
                )


def _makers(inputs: Mapping[str, InputRef], stages: Mapping[str, list[Cell]]) -> list[StageConfig]:
    """The settings of the cells that inputs refer to."""
    return [
        cell.settings
        for ref in inputs.values()
        for cell in stages.get(ref.stage or "", [])
        if ref.cell in (None, cell.id)
    ]
