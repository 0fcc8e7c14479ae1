"""`t5-pipeline tune`: from a file of examples to a tested prompt."""

from __future__ import annotations

import argparse
import json
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

from t5_pipeline.config.command_line import add_command, add_settings, positive
from t5_pipeline.config.soft_prompt import PromptTuneConfig
from t5_pipeline.core.counts import plural
from t5_pipeline.core.errors import InputError
from t5_pipeline.core.printable import say, show

if TYPE_CHECKING:
    from t5_pipeline.tune.run import TuneRun

_OWN = ("task",)


def add_tune(commands: Any) -> None:
    """Add the command to the subparsers of `t5-pipeline`."""
    tune = add_command(
        commands,
        "tune",
        "turn a file of examples into a tested prompt, without a recipe",
        "Freeze a T5, learn one task as a soft prompt, and score it on held-out rows. By default, a tenth of the rows"
        " selects the checkpoint, and another tenth is used for the test. Run the same command to resume.",
    )
    _add_task(tune.add_argument_group("task"))
    seeds = tune.add_argument_group("seeds")
    seeds.add_argument(
        "--seeds",
        type=positive,
        default=1,
        metavar="N",
        help="prompts to train in one batch, with seeds from --seed upwards (default: 1)",
    )
    seeds.add_argument("--vote", action="store_true", help="keep all seeds for a majority vote (default: the best)")
    run = tune.add_argument_group("execution")
    run.add_argument(
        "--output-dir", required=True, type=Path, metavar="DIR", help="run directory, with the prompt in DIR/prompt"
    )
    run.add_argument("--launch", metavar="FILE", help="accelerate configuration (default: one process)")
    add_settings(tune, PromptTuneConfig, but=_OWN)
    tune.set_defaults(command=_tune)


def _add_task(task: argparse._ArgumentGroup) -> None:
    task.add_argument(
        "--train", required=True, type=Path, metavar="FILE",
        help="examples: a file, or a slice of it as in rows.tsv[:90%%, stratified]",
    )  # fmt: skip
    task.add_argument(
        "--inputs", required=True, metavar="TEMPLATE", help="input text, with {field} for fields of a row"
    )
    task.add_argument(
        "--targets", required=True, metavar="TEMPLATE", help="target text, with {field} for fields of a row"
    )
    task.add_argument("--labels", nargs="+", metavar="A,B", help="all possible targets (default: free text)")
    task.add_argument(
        "--validation", type=Path, metavar="FILE", help="rows that select the checkpoint (default: part of --train)"
    )
    task.add_argument(
        "--test", type=Path, metavar="FILE", help="rows to score on (default: part of --train, or --validation)"
    )
    task.add_argument(
        "--split-seed", type=int, default=0, metavar="N", help="seed of the rows held out of --train (default: 0)"
    )
    task.add_argument(
        "--metrics", nargs="+", metavar="A,B", help="metrics (default: accuracy, or exact_match,token_f1 for free text)"
    )
    task.add_argument("--name", help="name of the task (default: the name of --output-dir)")


def _tune(given: argparse.Namespace) -> int:
    from t5_pipeline.data_prep.tasks.task import Task
    from t5_pipeline.tune.run import TuneRun, checked
    from t5_pipeline.tune.task import hold_out, one_task

    _check_seeds(given)
    task = one_task(
        given.name or given.output_dir.absolute().name,
        {"train": given.train, "validation": given.validation, "test": given.test},
        inputs=given.inputs,
        targets=given.targets,
        labels=_listed(given.labels),
        metrics=_listed(given.metrics),
    )
    names = set(PromptTuneConfig.model_fields) - set(_OWN)
    settings = {name: value for name, value in vars(given).items() if name in names and value is not None}
    checked(task, settings, given.launch)
    task = hold_out(task, given.split_seed, settings.get("select", "best"))
    loaded = Task.load(task)
    for split, place in task.splits.items():
        rows = loaded.rows(split, training=split == "train")
        for row in rows:  # its errors name flags, those of a stage the keys of the recipe that is written here
            loaded.inputs(row)
            loaded.targets(row)
        say(f"{split}: {plural(len(rows), 'row')}, {place}")
    tested = next((split for split in ("test", "validation") if split in task.splits), None)
    if "validation" not in task.splits and given.select != "last":
        few = "the rows are too few to hold some out"
        if given.select == "best":
            raise InputError(f"--select: {few} and choose a step by; give --validation, or leave --select out")
        if given.seeds > 1 and not given.vote:
            raise InputError(f"--seeds: {few} and choose a seed by; give --validation, or add --vote")
        say(f"{few[0].upper()}{few[1:]}: the prompt of the last step is published.")
    run = TuneRun(task, settings, given.output_dir, given.launch, given.seeds, given.vote, tested)
    code = run.run()
    if code == 0:
        _show_results(run)
    return code


def _check_seeds(given: argparse.Namespace) -> None:
    if given.vote and given.seeds < 2:
        raise InputError("--vote: a single prompt cannot vote; give --seeds 3, for example")
    if given.seeds > 1 and not given.vote and given.select == "last":
        raise InputError("--seeds: --select last gives no validation scores to choose a seed by; add --vote")
    if isinstance(given.sweep, dict) and "seed" in given.sweep:
        raise InputError("--sweep: each prompt of `tune` has one seed; remove `seed`, and give --seeds to try several")


def _show_results(run: TuneRun) -> None:
    from t5_pipeline.report.collect import collect
    from t5_pipeline.report.tuned import tuned_text

    for line in tuned_text(collect(run.output), None if run.vote else run.best_cell()):
        show(line)
    place = run.published
    asked = ["--model", run.settings["model"], "--prompts", str(place if run.vote else run.output)]
    show("")
    show(f"{place}: " + ("prompts that vote if a row names them all:" if run.vote else "the prompt. Next:"))
    if run.vote:
        show("    " + json.dumps({"prompt": sorted(path.name for path in place.iterdir())}))
    commands = [["predict", *asked, "--input", "new.jsonl", "--output", "out.jsonl"], ["serve", *asked]]
    for words in [*commands, ["report", str(run.output)]]:
        show(f"    {shlex.join(['t5-pipeline', *words])}")


def _listed(words: list[str] | None) -> list[str] | None:
    """Names between commas or in several arguments as a list; a name may contain spaces.

    >>> _listed(["not entailment, entailment"]), _listed(["negative,", "positive"]), _listed(["negative", "positive"])
    (['not entailment', 'entailment'], ['negative', 'positive'], ['negative', 'positive'])
    """
    return None if words is None else [part.strip() for part in ",".join(words).split(",") if part.strip()]
