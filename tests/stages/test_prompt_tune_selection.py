"""The checkpoint with the best validation score is published, also if the run was stopped in between."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from t5_pipeline.artifacts import manifest as manifests
from t5_pipeline.artifacts.kinds import artifact_digest
from t5_pipeline.core.scores import scores_text
from t5_pipeline.evaluation.metrics import task_average
from t5_pipeline.execution.progress import validation_text
from t5_pipeline.methods.soft_prompt import Prompt
from tests.tiny_run import Outcome, Tiny, refused, stage

COMMON = (
    "--batch-size", 4, "--max-input-length", 32, "--precision", "fp32", "--threads", 1, "--validate-every", 2,
    "--validation-limit", 12, "--checkpoint-every", 3, "--scoring", "likelihood",
)  # fmt: skip


@pytest.fixture
def task(finished: Tiny, tmp_path: Path) -> Path:
    path = tmp_path / "about.yaml"
    info = Prompt.load(next((finished.run / "prompt_tune").glob("*/prompt"))).info
    path.write_text(info.task.model_dump_json())
    return path


def tune(finished: Tiny, task: Path, output: Path, *more: object) -> Outcome:
    model = finished.run / "lm_adapt"
    prompt = ("--prompt-length", 3, "--learning-rate", 3, "--task", task)
    return stage("prompt_tune", "--model", model, *prompt, *COMMON, *more, "--output-dir", output)


def validations(directory: Path) -> dict[int, tuple[dict[str, float], float]]:
    """Metrics and loss of each validated step."""
    rows = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    measured = [row for row in rows if row.get("split") == "validation"]
    return {row["step"]: (row["scores"][""], row["losses"][""]) for row in measured}


def test_the_best_step_is_published_and_recorded(finished: Tiny, task: Path, tmp_path: Path) -> None:
    said = tune(finished, task, tmp_path / "best", "--steps", 10)
    assert said.code == 0
    measured = validations(tmp_path / "best")
    assert list(measured) == [2, 4, 6, 8, 10]
    best = Prompt.load(tmp_path / "best" / "prompt")
    order = {step: (task_average(scores), -loss, step) for step, (scores, loss) in measured.items()}
    assert best.info.step == max(order, key=order.__getitem__)
    assert set(best.info.scores) == {"accuracy", "macro_f1"}
    assert best.info.scores == measured[best.info.step][0]
    manifest = manifests.read(tmp_path / "best")
    assert manifest is not None
    assert [(rows.split, rows.read > 12, rows.used <= 12) for rows in manifest.rows] == [
        ("train", True, False), ("validation", True, True)
    ]  # fmt: skip
    log = (tmp_path / "best" / "log.txt").read_text()
    chosen = f"step {best.info.step}, {scores_text(best.info.scores)}, best of 5 validations"
    assert f" prompt_tune: published prompt of {chosen}\n" in log
    assert f"prompt_tune  step 4/10  {validation_text({'scores': {'': measured[4][0]}})}\n" in said.err
    assert f": {manifest.rows[1]}\n" in log

    # Its rows equal those of a run that ends there.
    assert tune(finished, task, tmp_path / "short", "--steps", best.info.step, "--select", "last").code == 0
    short = Prompt.load(tmp_path / "short" / "prompt")
    assert short.rows_PD.equal(best.rows_PD)
    assert (short.info.step, short.info.scores) == (best.info.step, {})

    # A run that was ended and extended publishes the same prompt.
    for steps in (5, 10):
        assert tune(finished, task, tmp_path / "parts", "--steps", steps).code == 0
    digests = [artifact_digest("prompt", tmp_path / name / "prompt") for name in ("best", "parts")]
    assert digests[0] == digests[1]


def test_scoring_chooses_the_answers_that_are_validated(finished: Tiny, task: Path, tmp_path: Path) -> None:
    """The tiny T5 generates no labels: 0 by decoded text, on the same trajectory."""
    found = {}
    for scoring in ("decode", "likelihood"):
        assert tune(finished, task, tmp_path / scoring, "--steps", 2, "--scoring", scoring).code == 0
        ((scores, loss),) = validations(tmp_path / scoring).values()
        assert Prompt.load(tmp_path / scoring / "prompt").info.scores == scores
        found[scoring] = scores["accuracy"], loss
    assert found["decode"][0] == 0 < found["likelihood"][0]
    assert found["decode"][1] == found["likelihood"][1]


def test_early_stopping_ends_the_run_and_leaves_it_up_to_date(finished: Tiny, task: Path, tmp_path: Path) -> None:
    ended = tune(finished, task, tmp_path / "early", "--steps", 40, "--patience", 2)
    assert ended.code == 0, ended.err
    measured = [task_average(scores) for scores, _ in validations(tmp_path / "early").values()]
    assert len(measured) < 20
    assert max(measured[:-2]) >= max(measured[-2:])
    again = tune(finished, task, tmp_path / "early", "--steps", 40, "--patience", 2)
    assert "nothing to do" in again.out


def test_a_task_without_validation_rows(finished: Tiny, task: Path, tmp_path: Path) -> None:
    settings = json.loads(task.read_text())
    settings["splits"] = {"train": "train"}
    task.write_text(json.dumps(settings))
    said = tune(finished, task, tmp_path / "none", "--steps", 2)
    refused(said, r"\S+: splits: has no 'validation'; .* set `select: last`\)")
    assert not (tmp_path / "none").exists()
    assert tune(finished, task, tmp_path / "last", "--steps", 2, "--select", "last").code == 0
    refused(
        tune(finished, task, tmp_path / "x", "--select", "last", "--patience", 1),
        ".*--patience: has no effect without `--select best`.*",
    )
