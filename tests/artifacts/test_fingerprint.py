"""Tasks in fingerprints: the files of their splits count, their metrics only where they are used."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from t5_pipeline.artifacts.digest_cache import DigestCache
from t5_pipeline.artifacts.fingerprint import differences, fingerprint, only_moved, parts
from t5_pipeline.config.prepare import PrepareConfig
from t5_pipeline.config.registry import STAGES
from t5_pipeline.config.soft_prompt import PromptTuneConfig
from t5_pipeline.config.stage import StageConfig
from t5_pipeline.data_prep.tasks.config import TaskConfig


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    for name in ("train", "validation", "test"):
        (tmp_path / f"{name}.jsonl").write_text(f'{{"text": "{name}", "label": "a"}}\n')
    return tmp_path


def task(data: Path, **more: Any) -> TaskConfig:
    values = {"name": "t", "data": str(data), "inputs": "{text}", "targets": "{label}", "labels": ["a", "b"]}
    return TaskConfig(**{**values, **more})


def tuned(data: Path, **more: Any) -> PromptTuneConfig:
    return PromptTuneConfig(model="m", task=task(data, **more))


def printed(settings: StageConfig) -> str:
    return fingerprint(parts(settings, {}, DigestCache(None)))


@pytest.mark.parametrize("data", [".", "train.jsonl"], ids=["a folder", "a file"])
@pytest.mark.parametrize("split", ["train", "validation", "test"])
def test_files_of_splits_change_the_fingerprint(rows: Path, data: str, split: str) -> None:
    before = printed(tuned(rows / data))
    file = rows / f"{split}.jsonl"
    file.write_text(file.read_text() * 2)
    assert printed(tuned(rows / data)) != before


@pytest.mark.parametrize("data", [".", "train.jsonl"], ids=["a folder", "a file"])
def test_other_files_do_not_change_the_fingerprint(rows: Path, data: str) -> None:
    before = printed(tuned(rows / data))
    (rows / "README.md").write_text("about these rows")
    (rows / "dev.jsonl").write_text("{}")
    assert printed(tuned(rows / data)) == before
    assert printed(tuned(rows / data, splits={"train": "train", "validation": "dev"})) != before


def test_splits_of_evaluated_tasks_change_the_fingerprint(rows: Path) -> None:
    def scored() -> str:
        return fingerprint(parts(STAGES["evaluate"](prompts="p"), {}, DigestCache(None), {"task t": task(rows)}))

    before = scored()
    (rows / "README.md").write_text("about these rows")
    assert scored() == before
    (rows / "test.jsonl").write_text("{}")
    assert scored() != before


def test_metrics_change_only_the_fingerprints_that_use_them(rows: Path) -> None:
    # The average of the metrics selects the checkpoint.
    assert printed(tuned(rows)) != printed(tuned(rows, metrics=["accuracy", "mcc"]))
    assert printed(tuned(rows, metrics=["mcc", "accuracy"])) == printed(tuned(rows, metrics=["accuracy", "mcc"]))
    lasts = [tuned(rows, metrics=m).model_copy(update={"select": "last"}) for m in (["accuracy"], ["mcc"])]
    assert printed(lasts[0]) == printed(lasts[1])
    kept_out = [PrepareConfig(corpus="c", decontaminate=[task(rows, metrics=[m])]) for m in ("accuracy", "f1")]
    assert printed(kept_out[0]) == printed(kept_out[1])
    old, new = (
        parts(STAGES["evaluate"](prompts="p", metrics={"t": [m]}), {}, DigestCache(None)) for m in ("accuracy", "f1")
    )
    assert differences(old, new) == ["metrics.t: ['accuracy'] → ['f1']"]
    assert printed(tuned(rows)) != printed(tuned(rows, labels=["b", "a"]))


def test_data_that_only_moved(rows: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Those of nested settings too, but not the rows of the task that a prompt solves, whose place it records."""
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    shutil.copytree(rows, elsewhere, dirs_exist_ok=True)

    def moved(*both: StageConfig) -> bool:
        old, new = (parts(settings, {}, DigestCache(None)) for settings in both)
        return only_moved(old, new, both[1])

    def prepared(place: Path, **more: Any) -> PrepareConfig:
        return PrepareConfig(corpus=str(place), decontaminate=[task(place, **more)])

    assert moved(prepared(rows), prepared(elsewhere))
    assert not moved(prepared(rows), prepared(elsewhere, inputs="{text}!"))
    assert not moved(prepared(rows), PrepareConfig(corpus=str(elsewhere)))
    assert not moved(tuned(rows), tuned(elsewhere))
    (elsewhere / "test.jsonl").write_text("{}")
    assert not moved(prepared(rows), prepared(elsewhere))
