"""Formats as settings: what they fill, what they refuse, and that they read back as themselves."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from t5_pipeline.config.recipe import load_recipe
from t5_pipeline.core.errors import InputError
from t5_pipeline.data_prep.tasks.config import TaskConfig
from t5_pipeline.data_prep.tasks.formats import FORMATS, GLUE, SUPERGLUE, task_name
from t5_pipeline.data_prep.tasks.task import Task

# The metrics of GLUE and SuperGLUE (Wang et al. 2019) and of T5's summaries and translations, by our names.
OFFICIAL = {
    "superglue/boolq": ["accuracy"],
    "superglue/cb": ["macro_f1", "accuracy"],
    "superglue/copa": ["accuracy"],
    "superglue/multirc": ["f1", "group_accuracy"],
    "superglue/record": ["token_f1", "exact_match"],
    "superglue/rte": ["accuracy"],
    "superglue/wic": ["accuracy"],
    "superglue/wsc": ["referent"],
    "glue/cola": ["mcc"],
    "glue/sst2": ["accuracy"],
    "glue/mrpc": ["f1", "accuracy"],
    "glue/qqp": ["f1", "accuracy"],
    "glue/stsb": ["pearson", "spearman"],
    "glue/mnli": ["accuracy"],
    "glue/qnli": ["accuracy"],
    "glue/rte": ["accuracy"],
    "glue/wnli": ["accuracy"],
    "squad": ["token_f1", "exact_match"],
    "xsum": ["rouge1", "rouge2", "rougeL"],
    "cnn_dailymail": ["rouge1", "rouge2", "rougeLsum"],
    **{f"wmt/en-{other}": ["bleu", "chrf"] for other in ("de", "fr", "ro")},
}


def settings(**given: Any) -> TaskConfig:
    return TaskConfig(**{"name": "t", "data": "x", **given})


def test_suites() -> None:
    assert set(OFFICIAL) == set(FORMATS)
    assert len(FORMATS) - len(SUPERGLUE) - len(GLUE) == 6
    assert (len(SUPERGLUE), len(GLUE)) == (8, 9)


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("more", [{}, {"task_prefix": True}, {"config": "c"}, {"config": "c", "task_prefix": "true"}])
def test_format_is_a_complete_task_and_round_trips(name: str, more: dict[str, Any]) -> None:
    task = settings(format=name, **more)
    Task.load(task)
    assert task.metrics == OFFICIAL[name]
    assert task.inputs.startswith(task_name(name) or "question") == (task.task_prefix or name == "squad")
    assert {"train", "validation"} <= set(task.splits)
    dump = task.model_dump(mode="json")
    assert TaskConfig.model_validate(dump) == task
    # A dumped task no longer depends on the format.
    bare = {key: value for key, value in dump.items() if key not in ("format", "task_prefix")}
    assert TaskConfig.model_validate(bare) == task.model_copy(update={"format": None, "task_prefix": False})


def test_given_settings_win() -> None:
    task = settings(format="superglue/rte", targets="{answer}", labels=["a", "b"], metrics=["f1"], splits={"test": "v"})
    assert (task.inputs, task.labels, task.values) == ("hypothesis: {hypothesis} premise: {premise}", ["a", "b"], {})
    assert (task.metrics, task.splits) == (["f1"], {"test": "v"})
    assert settings(format="glue/stsb", targets="{similarity}").round_to == {}
    words = settings(format="superglue/boolq", labels=["no", "yes"], values={"label": {"False": "no", "True": "yes"}})
    assert words.values == {"label": {"False": "no", "True": "yes"}}


def test_formats_are_not_shared_between_tasks() -> None:
    one = settings(format="superglue/rte")
    one.splits["train"] = "changed"
    one.values["label"]["0"] = "changed"
    assert settings(format="superglue/rte").splits["train"] == "train"
    assert settings(format="superglue/rte").values["label"]["0"] == "entailment"


def test_own_inputs_may_begin_with_the_task_name() -> None:
    for inputs in ("rte {premise}", "rte: {premise}"):
        assert settings(format="superglue/rte", task_prefix=True, inputs=inputs).inputs == inputs


OWN = {"inputs": "{a}", "targets": "{b}"}


@pytest.mark.parametrize(("given", "message"), [
    ({"format": "superglue/ret"}, "did you mean `superglue/rte`"),
    ({"format": "bleu"}, "choose one of cnn_dailymail, glue/cola"),
    ({"format": "superglue/rte", "task_prefix": True, "inputs": "{premise}"}, "does not change your own `inputs`; begin them with `rte`"),
    ({"format": "superglue/rte", "task_prefix": True, "inputs": "rtemis {premise}"}, "does not change your own `inputs`"),
    ({**OWN, "task_prefix": True}, "needs a `format`"),
    ({**OWN, "metrics": ["referent"]}, "`referent` needs the task's `holds`"),
    ({**OWN, "metrics": ["group_accuracy"]}, "`group_accuracy` needs the task's `group`"),
    ({**OWN, "metrics": ["mcc"]}, "`mcc` needs the task's `labels`"),
    ({"format": "superglue/record", "metrics": ["f1"]}, "`f1` needs the task's `labels`"),
    ({"format": "superglue/wsc", "holds": None}, "`referent` needs the task's `holds`"),
    ({**OWN, "metrics": ["acuracy"]}, "did you mean `accuracy`"),
    ({**OWN, "round_to": {"b": 0}}, "multiples of a positive number, not 0"),
    ({**OWN, "splits": {"train": "x[a:]"}}, "'a' is not a whole number"),
    ({**OWN, "reader": "multrc"}, "should be 'rows', 'parallel'"),
])  # fmt: skip
def test_invalid_settings(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        settings(**given)


def test_unknown_format_is_reported_with_its_line(tmp_path: Path) -> None:
    recipe = tmp_path / "r.yaml"
    task = "tasks:\n  rte:\n    format: {}\n    data: RTE\n"
    stages = "stages:\n  tune: {uses: prompt_tune, model: t5, task: rte}\n"
    recipe.write_text(f"name: r\n{task.format('superglue/rte')}{stages}")
    load_recipe(recipe)
    recipe.write_text(f"name: r\n{task.format('superglue/rtee')}{stages}")
    with pytest.raises(InputError, match=r"r\.yaml:3: tasks\.rte: unknown format .* did you mean `superglue/rte`"):
        load_recipe(recipe)


def test_braces_in_a_text_name_no_field() -> None:
    """The format's rounding of a field that no template contains would be refused."""
    found = settings(format="glue/stsb", inputs="{{score}} {sentence1}", targets="{sentence2}")
    assert found.round_to == {}
    Task.load(found)
