"""Recipes: a whole pipeline as one YAML file that states the science.

    name: demo
    seed: 1
    tasks:                        # task name → TaskConfig
      modules: {data: …, inputs: "{text}", targets: "{label}", labels: [a, b]}
    stages:                       # stage name → kind, inputs by stage name, settings
      prepare: {uses: prepare, corpus: stdlib-docs}
      lm_adapt: {uses: lm_adapt, model: span_corrupt, tokens: prepare, steps: 800}
      prompt_tune: {uses: prompt_tune, task: modules, matrix: {model: [lm_adapt@400, lm_adapt], seed: [0, 1, 2]}}

`uses:` may be left out where the stage is named like its kind. `matrix:` makes one cell for each combination of its
values, and each cell is an artifact of its own. `launch:` names an accelerate configuration file for the stage.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import yaml

from t5_pipeline.config.registry import STAGES
from t5_pipeline.config.stage import StageConfig
from t5_pipeline.core.errors import InputError
from t5_pipeline.core.located_yaml import Key, Located, read_yaml
from t5_pipeline.core.packaged import or_packaged
from t5_pipeline.core.schema import nearest, validate
from t5_pipeline.data_prep.tasks.config import TaskConfig

_STAGE_KEYS = ("uses", "matrix", "launch")
_RECIPE_KEYS = ("name", "seed", "tasks", "stages", "launch")


@dataclass(frozen=True)
class InputRef:
    """What an input field points at: a stage of the recipe (a cell of it, a kept step of it), or something on disk."""

    stage: str | None = None
    cell: str | None = None
    step: int | None = None
    path: str | None = None

    def __str__(self) -> str:
        if self.stage is None:
            return str(self.path)
        return self.stage + (f"/{self.cell}" if self.cell else "") + (f"@{self.step}" if self.step is not None else "")


@dataclass(frozen=True)
class Cell:
    """One artifact to make: a stage with all its settings resolved."""

    stage: str
    axes: dict[str, Any]
    settings: StageConfig
    inputs: dict[str, InputRef]

    @property
    def id(self) -> str:
        """`model=lm_adapt,seed=0`; empty for a stage without a matrix. Safe as the name of a directory."""
        return ",".join(f"{axis}={_short(value)}" for axis, value in self.axes.items())

    @property
    def label(self) -> str:
        return f"{self.stage} [{self.id}]" if self.axes else self.stage


@dataclass(frozen=True)
class Recipe:
    """A parsed recipe. `stages` maps each stage's name to its cells, in the recipe's order."""

    name: str
    seed: int
    path: Path
    stages: dict[str, list[Cell]]
    launch: dict[str, str | None] = field(default_factory=dict)
    resolved: dict[str, Any] = field(default_factory=dict)

    def cells(self) -> Iterator[Cell]:
        for cells in self.stages.values():
            yield from cells

    def kind(self, stage: str) -> str:
        return self.stages[stage][0].settings.kind

    def kept_steps(self, stage: str) -> list[int]:
        """Steps of a stage that some other stage asks for by `STAGE@STEP`."""
        return sorted(
            {ref.step for c in self.cells() for ref in c.inputs.values() if ref.stage == stage and ref.step is not None}
        )

    @property
    def default_run_dir(self) -> Path:
        """Where results go unless the user says otherwise."""
        return Path("runs") / self.name

    def text(self) -> str:
        """The recipe with all overrides applied, as YAML."""
        return yaml.safe_dump(self.resolved, sort_keys=False, allow_unicode=True, width=120)


def load_recipe(
    path: str | Path, overrides: list[str] | None = None, kinds: Mapping[str, type[StageConfig]] = STAGES
) -> Recipe:
    """Read a recipe and apply `stage.key=value` overrides.

    Args:
        kinds: the kinds of stages that a recipe can use.

    Raises:
        InputError: anything that is wrong, with file, line and key, and the nearest valid name.
    """
    path = or_packaged(Path(path))
    located = read_yaml(path)
    data = located.data
    if not isinstance(data, dict):
        raise InputError(f"{path}:1: the file: is not a recipe; a recipe has the keys {', '.join(_RECIPE_KEYS)}")
    for override in overrides or []:
        located.overridden[_override(data, override)] = "--set"
    for key in data:
        if key not in _RECIPE_KEYS:
            raise InputError(f"{located.where((str(key),))}: unknown key; {nearest(str(key), _RECIPE_KEYS)}")
    for key, kind in (("name", str), ("stages", dict)):
        if not isinstance(data.get(key), kind) or not data[key]:
            raise InputError(f"{located.where((key,))}: a recipe needs `{key}:` ({_KIND_WORDS[kind]})")
    seed = data.get("seed", 0)
    if not isinstance(seed, int) or isinstance(seed, bool) or seed < 0:
        raise InputError(f"{located.where(('seed',))}: must be a whole number from 0 on, not {seed!r}")
    _check_launch(located, ("launch",), data.get("launch"))
    tasks = _tasks(located, {} if data.get("tasks") is None else data["tasks"])
    stages: dict[str, list[Cell]] = {}
    launch: dict[str, str | None] = {}
    for name, entry in data["stages"].items():
        if not isinstance(name, str):
            raise InputError(f"{located.where(('stages', str(name)))}: a stage's name must be text; put it in quotes")
        stages[name] = _cells(located, name, entry, seed, tasks, stages, set(data["stages"]), kinds)
        launch[name] = entry.get("launch", data.get("launch"))
    return Recipe(data["name"], seed, path, stages, launch, data)


_KIND_WORDS = {str: "text", dict: "keys below it"}


def _tasks(located: Located, entries: Any) -> dict[str, TaskConfig]:
    if not isinstance(entries, dict):
        raise InputError(f"{located.where(('tasks',))}: must map a task's name to its settings")
    found = {}
    for name, values in entries.items():
        key: Key = ("tasks", str(name))
        if not isinstance(name, str):
            raise InputError(f"{located.where(key)}: a task's name must be text; put it in quotes")
        if not isinstance(values, dict):
            raise InputError(f"{located.where(key)}: must hold the task's settings: data, inputs, targets, …")
        found[name] = validate(TaskConfig, {"name": name, **values}, partial(_where, located, key))
    return found


def _check_launch(located: Located, key: Key, value: Any) -> None:
    if value is not None and not isinstance(value, str):
        raise InputError(f"{located.where(key)}: must be the path of an accelerate configuration, not {value!r}")


def _where(located: Located, key: Key, loc: Key) -> str:
    return located.where((*key, *loc))


def load_task(path: Path) -> TaskConfig:
    """A task from a YAML file of its own, as `--task` takes it.

    Raises:
        InputError: with file, line and key.
    """
    located = read_yaml(path)
    if not isinstance(located.data, dict):
        raise InputError(f"{path}:1: the file: is not a task; it needs name, data, inputs, targets")
    return validate(TaskConfig, {"name": path.stem, **located.data}, located.where)


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
            f"{located.where(at)}: must hold the stage's settings, with `uses:` and one of {', '.join(kinds)}"
        )
    if "/" in name or "@" in name or "." in name or name.startswith("-"):
        raise InputError(f"{located.where(at)}: a stage's name may not hold / @ . or begin with -; choose another")
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
            raise InputError(f"{located.where((*at, axis))}: stands in `matrix:` too; keep one of the two")
    cells = []
    for combination in itertools.product(*matrix.values()):
        axes = dict(zip(matrix, combination, strict=True))

        def where(loc: tuple[str | int, ...], axes: Mapping[str, Any] = axes) -> str:
            return located.where((*at, "matrix", *loc) if loc and loc[0] in axes else (*at, *loc))

        resolved = {"seed": seed, **values, **axes}
        for key, value in resolved.items():
            resolved[key] = _task_value(cls, key, value, tasks, lambda key=key: where((key,)))
        settings = validate(cls, resolved, where)
        inputs = {
            key: parse_ref(
                getattr(settings, key),
                earlier,
                all_stages,
                artifact,
                cls.takes_many(key),
                lambda key=key: where((key,)),
            )
            for key, artifact in cls.inputs().items()
            if getattr(settings, key) is not None
        }
        makers = [cell.settings for ref in inputs.values() for cell in earlier.get(ref.stage or "", [])]
        cells.append(Cell(name, axes, settings.resolved(makers, where), inputs))
    ids = [cell.id for cell in cells]
    for cell_id in ids:
        if ids.count(cell_id) > 1:
            raise InputError(
                f"{located.where((*at, 'matrix'))}: makes the cell {cell_id} twice; remove the repeated value"
            )
    return cells


def _task_value(cls: type[StageConfig], key: str, value: Any, tasks: Mapping[str, TaskConfig], where: Any) -> Any:
    """Replace task names by the settings they stand for, in fields that hold tasks."""
    field_info = cls.model_fields.get(key)
    if field_info is None or TaskConfig not in (
        field_info.annotation,
        *getattr(field_info.annotation, "__args__", ()),
    ):
        return value
    many = getattr(field_info.annotation, "__origin__", None) is list
    if many and isinstance(value, str):
        value = [value]
    if isinstance(value, list) != many:
        return value  # not what the field holds, as its validation will say

    def one(item: Any) -> Any:
        if not isinstance(item, str):
            return item
        if item in tasks:
            return tasks[item]
        if item.endswith((".yaml", ".yml")):
            return load_task(Path(item))
        raise InputError(f"{where()}: there is no task `{item}` under `tasks:`; {nearest(item, tasks)}")

    return [one(item) for item in value] if isinstance(value, list) else one(value)


def parse_ref(
    value: str, earlier: Mapping[str, list[Cell]], all_stages: set[str], artifact: str, many: bool, where: Any
) -> InputRef:
    """Read an input: `stage`, `stage/cell`, `stage@step`, or a path where no stage has that name.

    Args:
        many: whether a stage may be named that has several cells.
    """
    head, at, step_text = value.rpartition("@")
    target, step = (head, step_text) if at and step_text.isdigit() else (value, None)
    stage, _, cell = target.partition("/")
    if stage not in all_stages:
        return InputRef(path=value)
    if stage not in earlier:
        raise InputError(f"{where()}: stage `{stage}` comes later in the recipe; a stage can only use earlier ones")
    outputs = earlier[stage][0].settings.outputs
    if artifact not in outputs:
        raise InputError(f"{where()}: needs a {artifact}, but stage `{stage}` makes {', '.join(outputs)}")
    ids = [c.id for c in earlier[stage]]
    if cell and cell not in ids:
        raise InputError(f"{where()}: stage `{stage}` has no cell `{cell}`; {nearest(cell, ids)}")
    if not cell and len(ids) > 1 and not many:
        raise InputError(f"{where()}: stage `{stage}` has {len(ids)} cells; name one, as in {stage}/{ids[0]}")
    if step is not None and artifact != "model":
        raise InputError(f"{where()}: only models have steps; write `{target}` without @{step}")
    return InputRef(stage=stage, cell=cell or None, step=int(step) if step is not None else None)


def _override(data: dict[str, Any], text: str) -> Key:
    """Apply one `stage.key=value`, `tasks.name.key=value` or `seed=value` (the value is YAML); returns its place."""
    path, equals, value_text = text.partition("=")
    keys = path.strip().split(".")
    if not equals or not all(keys):
        raise InputError(f"--set {text}: must look like stage.key=value")
    try:
        value = yaml.safe_load(value_text)
    except yaml.YAMLError:
        value = value_text
    stages: dict[str, Any] = data["stages"] if isinstance(data.get("stages"), dict) else {}
    target: dict[str, Any]
    if keys[0] in _RECIPE_KEYS:
        target = data
    elif keys[0] in stages:
        target = stages
    else:
        raise InputError(f"--set {text}: there is no stage `{keys[0]}`; {nearest(keys[0], [*stages, *_RECIPE_KEYS])}")
    for key in keys[:-1]:
        inner = target.setdefault(key, {})
        if not isinstance(inner, dict):
            raise InputError(f"--set {text}: `{key}` holds a value, not keys; set it as a whole")
        target = inner
    target[keys[-1]] = value
    # A value that is set takes the place of a matrix axis of the same name.
    if keys[0] in stages and len(keys) == 2 and isinstance(target.get("matrix"), dict):
        target["matrix"].pop(keys[1], None)
    return tuple(keys) if keys[0] in _RECIPE_KEYS else ("stages", *keys)


def _short(value: Any) -> str:
    if isinstance(value, list):
        return "+".join(map(_short, value))
    text = str(value.get("name", value)) if isinstance(value, dict) else str(value)
    return "".join(c if c.isalnum() or c in "._-@" else "-" for c in text)[:60]
