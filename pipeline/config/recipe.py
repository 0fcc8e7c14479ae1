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
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import yaml

from t5_pipeline.config.references import InputRef, parse_ref, resolve_tasks
from t5_pipeline.config.registry import STAGES
from t5_pipeline.config.stage import StageConfig
from t5_pipeline.config.sweep import combination_name
from t5_pipeline.config.variables import substitute, variables_of
from t5_pipeline.core.errors import InputError
from t5_pipeline.core.located_yaml import Key, Located, NotYAML, parse_value, read_yaml
from t5_pipeline.core.packaged import or_packaged
from t5_pipeline.core.paths import check_file_name
from t5_pipeline.core.schema import validate
from t5_pipeline.core.suggestions import nearest
from t5_pipeline.data_prep.tasks.config import TaskConfig

RESERVED = ("superseded",)  # used in run directories
MAX_CELLS = 1_000  # of a stage
MAX_CELL_NAME = 200  # bytes; file systems allow 255, and temporary files get longer names
_STAGE_KEYS = ("uses", "matrix", "launch")
_RECIPE_KEYS = ("name", "vars", "seed", "tasks", "stages", "launch")


@dataclass(frozen=True)
class Override:
    """A value that replaces a setting of the recipe.

    Attributes:
        path: (stage, key), ("tasks", name, key), or a key or variable of the recipe, such as ("seed",).
        flag: the command-line flag that gave it, for errors.
    """

    path: tuple[str, ...]
    value: Any
    flag: str = "--set"


def parse_override(text: str) -> Override:
    """Parse `stage.key=value`, `tasks.name.key=value`, `seed=value` or a variable, as `--set` takes them, in YAML.

    A value that YAML cannot read is text, and so is a number like 010 that is not in a list.

    Raises:
        InputError: if it has no key, or a list or mapping contains a key twice or a number like 010.

    >>> parse_override("lm_adapt.keep_steps=[100, 200]")
    Override(path=('lm_adapt', 'keep_steps'), value=[100, 200], flag='--set')
    """
    path, equals, value = text.partition("=")
    keys = tuple(path.strip().split("."))
    if not equals or not all(keys):
        raise InputError(f"--set {text}: is not an override; write it as stage.key=value")
    try:
        return Override(keys, parse_value(value, f"--set {path.strip()}"))
    except NotYAML:  # such as the template {premise} {hypothesis}
        return Override(keys, value)
    except InputError:
        if value.lstrip().startswith(("[", "{")):
            raise
        return Override(keys, value)


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
    """A parsed recipe; `stages` maps names to cells, in the recipe's order."""

    name: str
    seed: int
    path: Path
    stages: dict[str, list[Cell]]
    launch: dict[str, str | None] = field(default_factory=dict)
    resolved: dict[str, Any] = field(default_factory=dict)

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

    def kept_steps(self, stage: str) -> list[int]:
        """Steps of a stage that other stages use as `STAGE@STEP`."""
        return sorted(
            {ref.step for c in self.cells() for ref in c.inputs.values() if ref.stage == stage and ref.step is not None}
        )

    @property
    def default_run_dir(self) -> Path:
        """The run directory if the user gives none."""
        return Path("runs") / self.name

    def text(self) -> str:
        """The recipe with all overrides applied, as YAML."""
        return yaml.safe_dump(self.resolved, sort_keys=False, allow_unicode=True, width=120)


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


def read_recipe(path: str | Path) -> Located:
    """Read the YAML of a recipe without parsing its settings.

    Raises:
        InputError: if the file is not a YAML mapping.
    """
    path = or_packaged(Path(path))
    located = read_yaml(path)
    if not isinstance(located.data, dict):
        raise InputError(f"{path}:1: the file: is not a recipe; give the keys {', '.join(_RECIPE_KEYS)}")
    return located


def stages_of_kind(located: Located, kind: str) -> list[str]:
    """Names of the stages of one kind, before the recipe is parsed."""
    entries = located.data.get("stages")
    entries = entries if isinstance(entries, dict) else {}
    return [name for name, entry in entries.items() if isinstance(entry, dict) and entry.get("uses", name) == kind]


def parse_recipe(located: Located, kinds: Mapping[str, type[StageConfig]] = STAGES) -> Recipe:
    """Parse and check a recipe that has been read.

    Raises:
        InputError: if anything is wrong; names the file, line and key, and the nearest valid name.
    """
    data = located.data
    for key in data:
        if key not in _RECIPE_KEYS:
            raise InputError(f"{located.where((str(key),))}: unknown key; {nearest(str(key), _RECIPE_KEYS)}")
    if not isinstance(data.get("stages"), dict) or not data["stages"]:
        raise InputError(f"{located.where(('stages',))}: is required in a recipe (a mapping)")
    substitute(located, (*_RECIPE_KEYS, *map(str, data["stages"])))
    _check_name(located, data.get("name"))
    seed = data.get("seed", 0)
    if type(seed) is not int or not 0 <= seed < 2**63:
        raise InputError(f"{located.where(('seed',))}: must be a whole number from 0 to 2^63 − 1; change it")
    _check_launch(located, ("launch",), data.get("launch"))
    tasks = _tasks(located, {} if data.get("tasks") is None else data["tasks"])
    stages: dict[str, list[Cell]] = {}
    launch: dict[str, str | None] = {}
    for name, entry in data["stages"].items():
        if not isinstance(name, str):
            raise InputError(f"{located.where(('stages', str(name)))}: a stage's name must be text; put it in quotes")
        stages[name] = _cells(located, name, entry, seed, tasks, stages, set(data["stages"]), kinds)
        launch[name] = entry.get("launch", data.get("launch"))
    return Recipe(data["name"], seed, located.path, stages, launch, data)


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


def _cells(
    located: Located,
    name: str,
    entry: Any,
    seed: int,
    tasks: Mapping[str, TaskConfig],
    earlier: Mapping[str, list[Cell]],
    all_stages: set[str],
    kinds: Mapping[str, type[StageConfig]],
) -> list[Cell]:
    at: Key = ("stages", name)
    if not isinstance(entry, dict):
        raise InputError(
            f"{located.where(at)}: must contain the stage's settings, with `uses:` and one of {', '.join(kinds)}"
        )
    check_file_name(name, located.where(at), RESERVED)
    if not name or "@" in name or "." in name or name.startswith("-"):
        raise InputError(f"{located.where(at)}: a stage's name must not contain @ . or begin with -; choose another")
    kind = entry.get("uses", name)
    if not isinstance(kind, str) or kind not in kinds:
        raise InputError(
            f"{located.where((*at, 'uses'))}: there is no stage kind `{kind}`; {nearest(str(kind), kinds)}"
        )
    cls = kinds[kind]
    _check_launch(located, (*at, "launch"), entry.get("launch"))
    values = {str(key): value for key, value in entry.items() if key not in _STAGE_KEYS}
    matrix = {} if entry.get("matrix") is None else entry["matrix"]
    if not isinstance(matrix, dict) or not all(isinstance(v, list) and v for v in matrix.values()):
        raise InputError(
            f"{located.where((*at, 'matrix'))}: must map settings to lists of values, as in seed: [0, 1, 2]"
        )
    for axis in map(str, matrix):
        if axis not in cls.model_fields:
            raise InputError(f"{located.where((*at, 'matrix', axis))}: unknown key; {nearest(axis, cls.model_fields)}")
        if axis in values:
            raise InputError(f"{located.where((*at, axis))}: is also in `matrix:`; keep one of the two")
    if (count := math.prod(map(len, matrix.values()))) > MAX_CELLS:
        raise InputError(
            f"{located.where((*at, 'matrix'))}: makes {count:,} cells; a stage may have {MAX_CELLS:,}, so split it"
        )
    cells = []
    for combination in itertools.product(*matrix.values()):
        axes = dict(zip(matrix, combination, strict=True))

        def where(loc: tuple[str | int, ...], axes: Mapping[str, Any] = axes) -> str:
            return located.where((*at, "matrix", *loc) if loc and loc[0] in axes else (*at, *loc))

        resolved = {"seed": seed, **values, **axes}
        for key, value in resolved.items():
            resolved[key] = resolve_tasks(cls, key, value, tasks, partial(where, (key,)))
        settings = validate(cls, resolved, where, "give one value, or write several under the stage's `matrix:`")
        inputs = {
            key: parse_ref(
                getattr(settings, key),
                earlier,
                all_stages,
                artifact,
                cls.takes_many(key),
                partial(where, (key,)),
            )
            for key, artifact in cls.inputs().items()
            if getattr(settings, key) is not None
        }
        others = any(ref.path is not None for ref in inputs.values())
        cells.append(Cell(name, axes, settings.resolved(_makers(inputs, earlier), others, where), inputs))
    for cell_id, times in Counter(cell.id for cell in cells).items():
        if times > 1:
            raise InputError(
                f"{located.where((*at, 'matrix'))}: contains the cell {cell_id} twice; remove the repeated value"
            )
        if len(cell_id.encode()) > MAX_CELL_NAME:
            raise InputError(
                f"{located.where((*at, 'matrix'))}: the name of the cell {cell_id[:60]}… is longer than"
                f" {MAX_CELL_NAME} bytes; use fewer axes or shorter values"
            )
    return cells


def _makers(inputs: Mapping[str, InputRef], stages: Mapping[str, list[Cell]]) -> list[StageConfig]:
    """The settings of the cells that inputs refer to."""
    return [
        cell.settings
        for ref in inputs.values()
        for cell in stages.get(ref.stage or "", [])
        if ref.cell in (None, cell.id)
    ]


def apply_overrides(located: Located, overrides: Iterable[Override]) -> None:
    """Replace values in a recipe that has been read.

    Raises:
        InputError: if there is no such stage, or a path leads through a value.
    """
    data: dict[str, Any] = located.data
    stages, tasks = (data[key] if isinstance(data.get(key), dict) else {} for key in ("stages", "tasks"))
    variables = variables_of(located)
    for override in overrides:
        path, where = override.path, f"{override.flag} {'.'.join(override.path)}"
        if len(path) == 1 and path[0] in variables:
            path = ("vars", *path)
        if path[0] not in (*_RECIPE_KEYS, *stages):
            raise InputError(f"{where}: {_unknown_path(path, stages, variables)}")
        if path[0] == "tasks" and len(path) > 2 and path[1] not in tasks:
            raise InputError(f"{where}: there is no task `{path[1]}`; {nearest(path[1], tasks)}")
        is_stage = path[0] not in _RECIPE_KEYS
        target = stages if is_stage else data
        for key in path[:-1]:
            inner = target.setdefault(key, {})
            if not isinstance(inner, dict):
                raise InputError(f"{where}: `{key}` is a value without keys; set it as a whole")
            target = inner
        target[path[-1]] = override.value
        # A value replaces the matrix axis of the same name.
        if is_stage and len(path) == 2 and isinstance(target.get("matrix"), dict):
            target["matrix"].pop(path[1], None)
        located.overridden[("stages", *path) if is_stage else path] = override.flag


def _unknown_path(path: tuple[str, ...], stages: Mapping[str, Any], variables: Iterable[str]) -> str:
    """The problem of an override that begins with neither a stage nor a key of the recipe."""
    kinds = {name: entry.get("uses", name) for name, entry in stages.items() if isinstance(entry, dict)}
    having = [name for name, kind in kinds.items() if kind in STAGES and path[0] in STAGES[kind].model_fields]
    if len(path) == 1 and having:
        return f"is a setting of {', '.join(having)}; name the stage, as in {having[-1]}.{path[0]}=VALUE"
    return f"there is no stage `{path[0]}`; {nearest(path[0], [*variables, *stages, *_RECIPE_KEYS])}"
