"""`t5-pipeline tune`: describe one task and run the prompt_tune stage on it, without a recipe."""

from __future__ import annotations

import os
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from t5_pipeline.artifacts.run_dir import OutputDir, Rollback
from t5_pipeline.config.command_line import flag
from t5_pipeline.config.tuning import PromptTuneConfig
from t5_pipeline.core.atomic_files import write_text
from t5_pipeline.core.errors import BAD_INPUT, InputError
from t5_pipeline.core.printable import say
from t5_pipeline.core.schema import validate
from t5_pipeline.data_prep.tasks.config import TaskConfig
from t5_pipeline.data_prep.tasks.splits import split_slice
from t5_pipeline.execution.launcher import command, launch, stage_script
from t5_pipeline.execution.runner import failed


def one_task(
    name: str,
    train: Path,
    inputs: str,
    targets: str,
    labels: Sequence[str] | None,
    metrics: Sequence[str] | None,
    validation: Path | None,
) -> TaskConfig:
    """A task with its rows in one or two files, or in slices of them.

    Raises:
        InputError: if a file does not exist or a setting is invalid.
    """
    data, part = _file_and_slice("--train", train)
    splits = {"train": data.name + part}
    if validation is not None:
        file, part = _file_and_slice("--validation", validation)
        splits["validation"] = os.path.relpath(file, data.parent) + part
    values: dict[str, Any] = {
        "name": name, "data": str(data), "splits": splits, "inputs": inputs, "targets": targets, "labels": labels,
        "metrics": metrics or (["accuracy"] if labels else ["exact_match", "token_f1"]),
    }  # fmt: skip
    return validate(TaskConfig, values, lambda loc: flag(".".join(map(str, loc))) if loc else "--train")


def _file_and_slice(where: str, given: Path) -> tuple[Path, str]:
    """The file and the slice of a flag such as `--train "rows.tsv[:90%, shuffled]"`."""
    try:
        name = str(given) if given.is_file() else split_slice(str(given))[0]
    except ValueError as error:
        raise InputError(f"{where}: {error}") from None
    if not Path(name).is_file():
        raise InputError(f"{where}: {name} does not exist; give a .jsonl, .json, .csv, .tsv or .parquet file")
    return Path(name), str(given)[len(name) :]


def tune(
    task: TaskConfig, settings: Mapping[str, Any], output: Path, configuration: str | None = None, *more: str
) -> int:
    """Learn a task as a soft prompt in a separate process.

    Args:
        settings: settings of prompt_tune, including `model`; the default of `prompt_init` is `vocabulary` for a task
            without labels.
        output: the stage's `--output-dir`.
        configuration: an accelerate configuration file; None for one process.
        more: further flags of the stage script: --overwrite, --resume-from.

    Returns:
        The stage's exit code.

    Raises:
        InputError: if a setting is invalid; nothing is written.
    """
    if "validation" not in task.splits and "select" not in settings:
        say("no --validation rows: the prompt of the last step is published")
        settings = {"select": "last", **settings}
    settings = {**({} if task.labels else {"prompt_init": "vocabulary"}), **settings}
    c = validate(PromptTuneConfig, {**settings, "task": task}, lambda loc: flag(".".join(map(str, loc))))
    command(c.kind, configuration, [])
    place, created = OutputDir(output), Rollback(output)
    try:
        place.state.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"--output-dir: cannot write {output} ({error.strerror}); choose another directory") from None
    task_file = place.state / "task.yaml"
    write_text(task_file, yaml.safe_dump(task.model_dump(mode="json"), sort_keys=False, allow_unicode=True))
    arguments = [*_as_flags(settings), "--task", str(task_file), "--output-dir", str(output), *more]
    code, message = launch(c.kind, configuration, arguments, place.state / f"{c.kind}.exit")
    if code == BAD_INPUT:
        created.undo()
    if code != 0:
        return failed("tune", code, message)
    say(f"✓ wrote the prompt of {task.name} to {output / 'prompt'}. To predict with it, one JSON line per input:")
    predict = ["t5-pipeline", "predict", "--model", c.model, "--prompts", str(output)]
    say(f"    {shlex.join([*predict, '--input', 'new.jsonl', '--output', 'out.jsonl'])}")
    if "validation" in task.splits:
        scores = output.with_name(f"{output.name}-scores")
        evaluate = ["--prompts", str(output), "--split", "validation", "--output-dir", str(scores)]
        if "scoring" in settings:
            evaluate += ["--scoring", c.scoring]
        script = stage_script("evaluate")
        script = script.relative_to(Path.cwd()) if script.is_relative_to(Path.cwd()) else script
        say("To score it on its validation rows:")
        say(f"    {shlex.join(['python', str(script), *evaluate])}")
    return 0


def _as_flags(settings: Mapping[str, Any]) -> list[str]:
    """Settings as command-line flags."""
    found: list[str] = []
    for name, value in settings.items():
        if isinstance(value, bool):
            found.append(flag(name) if value else flag(f"no_{name}"))
        else:
            found += [flag(name), *map(str, value if isinstance(value, list) else [value])]
    return found
