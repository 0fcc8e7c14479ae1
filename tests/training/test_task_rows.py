"""Training rows: each task is encoded once, however many prompts train on it."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest

from t5_pipeline.config.soft_prompt import PromptTuneConfig
from t5_pipeline.data_prep.tasks.config import TaskConfig
from t5_pipeline.data_prep.tasks.encode import Reading
from t5_pipeline.modeling.loaded import ModelSource
from t5_pipeline.modeling.model_metadata import ModelMetadata
from t5_pipeline.training import task_rows


def test_a_task_of_several_prompts_is_encoded_once(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[Any, ...]] = []

    def encode(task: Any, split: str, *more: Any, **named: Any) -> object:
        calls.append((task.name, split, *more, named))
        return SimpleNamespace(name=task.name, labels=task.labels, counts=f"counts of {task.name}")

    monkeypatch.setattr(task_rows, "encode_task", encode)
    first, second = (
        TaskConfig(name=name, data="x", inputs="{a}", targets="{b}", labels=["c", "d"], metrics=["accuracy"])
        for name in ("first", "second")
    )
    source = ModelSource("m", "0", cast(Any, None), ModelMetadata(sentinel="targets"))
    c = PromptTuneConfig(model="m", task=first, max_input_length=32, max_target_length=8)
    recorded: list[Any] = []
    stage = cast(Any, SimpleNamespace(config=c, record_rows=recorded.extend))
    rows = task_rows.training_rows(stage, source, [first, second, first.model_copy()])
    assert [task.name for task in rows] == ["first", "second", "first"]
    assert rows[0] is rows[2]
    assert recorded == [f"counts of {name}" for name in ("first", "second", "first")]
    reading = Reading(source.vocabulary, 32, 8, "targets")
    assert calls == [(name, "train", reading, {"training": True}) for name in ("first", "second")]


@pytest.mark.parametrize(
    ("targets", "metrics", "hint"),
    [
        (["bad", "so so"], ["exact_match"], True),
        ([str(i) for i in range(20)], ["exact_match"], False),
        (["1.0", "2.0"], ["pearson", "spearman"], False),
    ],
)
def test_few_targets_without_labels_are_probably_classes(
    targets: list[str],
    metrics: list[str],
    hint: bool,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    found = SimpleNamespace(
        name="tone", labels=None, answers=None, counts=None, target_texts=targets * (100 // len(targets))
    )
    monkeypatch.setattr(task_rows, "encode_task", lambda *_, **__: found)
    task = TaskConfig(name="tone", data="x", inputs="{a}", targets="{b}", metrics=metrics)
    c = PromptTuneConfig(model="m", task=task, prompt_init="vocabulary")
    stage = cast(Any, SimpleNamespace(config=c, record_rows=lambda counts: None))
    task_rows.training_rows(stage, ModelSource("m", "0", cast(Any, None), ModelMetadata()), [task])
    said = (
        "tasks.tone: the 100 training rows have only 2 different targets; if these are classes, set `labels`"
        " (flag: --labels 'bad,so so')"
    )
    assert [record.getMessage() for record in caplog.records] == [said] * hint
