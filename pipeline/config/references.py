"""References in recipes: names of tasks, and inputs as `stage`, `stage/cell`, `stage@step` or a path."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from t5_pipeline.config.stage import StageConfig
from t5_pipeline.core.errors import InputError
from t5_pipeline.core.located_yaml import Key, read_yaml
from t5_pipeline.core.schema import types_in, validate
from t5_pipeline.core.suggestions import close_to, nearest
from t5_pipeline.data_prep.tasks.config import TaskConfig
from t5_pipeline.modeling.presets import PRESETS


@dataclass(frozen=True)
class InputRef:
    """The source of an input: a stage of the recipe (or one cell or step of it), or a path.

    As text, `STAGE/CELL@STEP`, it names a T5 in prompts, scores and reports. `named` reads such names.
    """

    stage: str | None = None
    cell: str | None = None
    step: int | None = None
    path: str | None = None

    def __str__(self) -> str:
        if self.stage is None:
            return str(self.path)
        return self.stage + (f"/{self.cell}" if self.cell else "") + (f"@{self.step}" if self.step is not None else "")


class EarlierCell(Protocol):
    """A cell of an earlier stage, which inputs can refer to."""

    @property
    def id(self) -> str: ...
    @property
    def settings(self) -> StageConfig: ...


def parse_ref(
    value: str,
    earlier: Mapping[str, Sequence[EarlierCell]],
    all_stages: Collection[str],
    artifact: str,
    many: bool,
    where: Callable[[], str],
) -> InputRef:
    """Parse an input: `stage`, `stage/cell` or `stage@step`; a path if there is no stage of that name.

    Args:
        earlier: cells of the stages before this one.
        artifact: kind that the input must have.
        many: whether it may be a stage with several cells.
        where: location of the setting, for errors.

    Raises:
        InputError: if the stage or cell cannot be the input.
    """
    stage, cell, step = _parts_of(value, earlier)
    if stage not in all_stages:
        meant = None if Path(value).exists() or value in PRESETS else close_to(stage, all_stages, cutoff=0.8)
        if meant is not None and not (cell and artifact == "model"):  # ORGANIZATION/NAME on the hub
            raise InputError(f"{where()}: {value} is neither a stage nor a path; did you mean `{meant}`?")
        return InputRef(path=value)
    if stage not in earlier:
        itself = stage == list(all_stages)[len(earlier)]
        problem = "cannot be its own input" if itself else "comes later in the recipe"
        raise InputError(f"{where()}: stage `{stage}` {problem}; use an earlier stage")
    outputs = earlier[stage][0].settings.outputs
    if artifact not in outputs:
        raise InputError(f"{where()}: needs a {artifact}, but stage `{stage}` publishes {', '.join(outputs)}")
    ids = [c.id for c in earlier[stage]]
    if cell and cell not in ids:
        raise InputError(f"{where()}: stage `{stage}` has no cell `{cell}`; {nearest(cell, ids)}")
    if not cell and len(ids) > 1 and not many:
        raise InputError(f"{where()}: stage `{stage}` has {len(ids)} cells; choose one, as in {stage}/{ids[0]}")
    if step is not None and artifact != "model":
        raise InputError(f"{where()}: only models have steps; use `{InputRef(stage, cell)}` without @{step}")
    if step is not None:
        last = min(getattr(c.settings, "steps", -1) for c in earlier[stage] if cell is None or c.id == cell)
        if last < 0:
            raise InputError(f"{where()}: stage `{stage}` has no steps; use `{InputRef(stage, cell)}` without @{step}")
        if step > last:
            raise InputError(
                f"{where()}: `{stage}` has {last:,} steps; use an earlier one than {step}, or more `steps`"
            )
    return InputRef(stage, cell or (None if many else ids[0]) or None, step)


def named(name: str, stages: Mapping[str, Sequence[EarlierCell]]) -> InputRef:
    """The reference that is written as `name`; a path unless it names one of `stages`, or a cell of one."""
    stage, cell, step = _parts_of(name, stages)
    known = cell is None or cell in [one.id for one in stages.get(stage, ())]
    return InputRef(stage, cell, step) if stage in stages and known else InputRef(path=name)


def _parts_of(value: str, earlier: Mapping[str, Sequence[EarlierCell]]) -> tuple[str, str | None, int | None]:
    """Stage, cell and step of a reference. An @ may also be in the name of a cell, such as `model=lm_adapt@400`."""
    stage, _, cell = value.partition("/")
    stepped = re.fullmatch(r"(.+)@([0-9]{1,18})", value, re.DOTALL)
    if stepped and cell not in [one.id for one in earlier.get(stage, ())]:
        stage, _, cell = stepped[1].partition("/")
        return stage, cell or None, int(stepped[2])
    return stage, cell or None, None


def load_task(path: Path) -> TaskConfig:
    """Load a task from its own YAML file.

    Raises:
        InputError: if a setting is wrong; names the file, line and key.
    """
    located = read_yaml(path)
    if not isinstance(located.data, dict):
        raise InputError(f"{path}: is not a task; give a YAML file with the keys name, data, inputs, targets")
    if "stages" in located.data:
        raise InputError(
            f"{path}: is a recipe; write the task in a file of its own, with the keys name, data, inputs, targets"
        )
    return validate(TaskConfig, {"name": path.stem, **located.data}, located.where)


def resolve_tasks(
    cls: type[StageConfig], key: str, value: Any, tasks: Mapping[str, TaskConfig], where: Callable[[Key], str]
) -> Any:
    """Replace names, files and mappings of tasks by their settings, if field `key` contains tasks.

    Other values are returned as given.

    Raises:
        InputError: if there is no such task, or one of its settings is wrong.
    """
    field_info = cls.model_fields.get(key)
    if field_info is None or TaskConfig not in types_in(field_info.annotation):
        return value
    many = getattr(field_info.annotation, "__origin__", None) is list
    if many and isinstance(value, str):
        value = [value]
    if isinstance(value, list) != many:
        return value  # validation of the field will report it

    def one(item: Any, *index: int) -> Any:
        if isinstance(item, dict):
            return validate(TaskConfig, item, lambda inner: where((key, *index, *inner)))
        if not isinstance(item, str):
            return item
        if item in tasks:
            return tasks[item]
        if item.endswith((".yaml", ".yml")):
            if not Path(item).is_file():
                raise InputError(f"{where((key,))}: {item} does not exist; give the YAML file of a task")
            return load_task(Path(item))
        raise InputError(f"{where((key,))}: there is no task `{item}` under `tasks:`; {nearest(item, tasks)}")

    return [one(item, index) for index, item in enumerate(value)] if isinstance(value, list) else one(value)
