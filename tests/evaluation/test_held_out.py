"""Validation of prompts and models: every metric, their average, and the loss of the targets."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from t5_pipeline.data_prep.tasks.config import TaskConfig
from t5_pipeline.data_prep.tasks.counts import RowCounts
from t5_pipeline.data_prep.tasks.encode import EncodedTask
from t5_pipeline.evaluation.held_out import HeldOut, score_model, score_prompts
from t5_pipeline.evaluation.predict import AnswerForm
from t5_pipeline.modeling.prompt_bank import BareT5, PromptedT5
from t5_pipeline.training.loss import token_loss

CPU = torch.device("cpu")
LABELS = {"no": [9, 1], "yes": [12, 30, 1], "maybe": [8, 1]}
INPUTS = [[5, 9, 33, 1], [7, 1], [40, 41, 42, 43, 44, 1], [3, 4, 1]]


def decode(ids: list[int]) -> str:
    return " ".join(map(str, ids))


def split(targets: list[str], *, labels: bool, metrics: list[str], holds: list[bool] | None = None) -> HeldOut:
    """Rows whose targets are labels, or the same ids as free text."""
    names = list(LABELS) if labels else None
    ids = [np.array(LABELS[target], np.int32) for target in targets]
    texts = targets if labels else [decode(LABELS[target]) for target in targets]
    rows = EncodedTask(
        "t", [np.array(row, np.int32) for row in INPUTS], ids, ["" for _ in INPUTS], texts, names,
        np.array([names.index(target) for target in targets]) if names else None, holds=holds,
        counts=RowCounts(task="t", split="test", read=len(targets), used=len(targets)),
    )  # fmt: skip
    task = TaskConfig(name="t", data="d", inputs="{a}", targets="{b}", labels=names, metrics=metrics)
    form = AnswerForm(decode, names or [], list(LABELS.values()) if labels else [], 0 if labels else 4)  # type: ignore[arg-type]
    return HeldOut(task, rows, form)


def loss_of(model: PromptedT5, prompt: int, rows: HeldOut, counted: list[int]) -> float:
    """Teacher forcing, row by row."""
    total = tokens = 0.0
    for i in counted:
        inputs_BS, targets_BT = (torch.tensor(ids[i]).long()[None] for ids in (rows.rows.inputs, rows.rows.targets))
        logits = model(torch.tensor([prompt]), inputs_BS, targets_BT)
        total += float(token_loss(logits, targets_BT, 0.0).sum())
        tokens += targets_BT.numel()
    return total / tokens


TARGETS = ["yes", "no", "maybe", "yes"]


@pytest.mark.parametrize("labels", [True, False], ids=["labels", "free text"])
@torch.no_grad()
def test_the_loss_is_that_of_the_target_tokens(model: PromptedT5, labels: bool) -> None:
    rows = split(TARGETS, labels=labels, metrics=["accuracy"])
    measured = score_prompts(model, [rows, rows], CPU, "fp32")
    for prompt in (0, 1):
        assert measured[prompt].loss == pytest.approx(loss_of(model, prompt, rows, [0, 1, 2, 3]), rel=1e-5)


@torch.no_grad()
def test_targets_that_do_not_hold_are_not_in_the_loss(model: PromptedT5) -> None:
    rows = split(TARGETS, labels=False, metrics=["accuracy"], holds=[True, False, True, False])
    assert score_prompts(model, [rows], CPU, "fp32")[0].loss == pytest.approx(loss_of(model, 0, rows, [0, 2]), rel=1e-5)


def test_free_text_is_scored_by_what_is_decoded(model: PromptedT5) -> None:
    """The target is scored for the loss only; it is not an answer."""
    rows = split(TARGETS, labels=False, metrics=["accuracy"])
    assert score_model(BareT5(model.t5), [rows], CPU, "fp32").scores == {"accuracy": 0.0}


def test_the_average_of_the_metrics_decides() -> None:
    """CB: a step with the higher average is better even if the first metric is lower."""
    rows = split(["yes", "no", "no", "no"], labels=True, metrics=["accuracy", "macro_f1"])
    log_p = [[-1.0] * 3] * 4
    majority = rows.measured(["no"] * 4, log_p)
    balanced = rows.measured(["yes", "yes", "no", "maybe"], log_p)
    assert majority.scores == {"accuracy": 0.75, "macro_f1": pytest.approx(6 / 7 / 3)}
    assert balanced.scores == {"accuracy": 0.5, "macro_f1": pytest.approx((2 / 3 + 1 / 2) / 3)}
    assert (majority.score, balanced.score) == pytest.approx((0.517857, 0.444444), rel=1e-4)
    assert majority.beats(balanced)
    assert not balanced.beats(majority)
    two = split(["yes", "no", "no", "no"], labels=True, metrics=["macro_f1", "accuracy"])
    assert two.measured(["no"] * 4, log_p).score == pytest.approx(majority.score)
    assert balanced.scores["macro_f1"] > majority.scores["macro_f1"]  # the first metric alone would choose the other


def test_several_tasks_count_alike(model: PromptedT5) -> None:
    a = split(TARGETS, labels=True, metrics=["accuracy", "macro_f1"])
    found = score_model(BareT5(model.t5), [a, a], CPU, "fp32")
    one = score_model(BareT5(model.t5), [a], CPU, "fp32")
    assert found.scores["mean"] == found.score == pytest.approx(one.score)
    assert one.score == pytest.approx(sum(one.scores.values()) / 2)
    assert found.loss == pytest.approx(one.loss)
