"""Validation of prompts and models: every metric, their average, and the loss of the targets."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from t5_pipeline.config.stage import Scoring
from t5_pipeline.data_prep.tasks.config import TaskConfig
from t5_pipeline.data_prep.tasks.counts import RowCounts
from t5_pipeline.data_prep.tasks.encode import EncodedTask, Reading
from t5_pipeline.data_prep.tokenizer.vocabulary import Vocabulary
from t5_pipeline.evaluation.held_out import (
    HeldOut,
    answer_all,
    answer_form,
    load_held_out,
    mean_of_tasks,
    score_model,
    score_prompts,
)
from t5_pipeline.evaluation.predict import AnswerForm, AnswerOptions, Outputs
from t5_pipeline.modeling.prompt_bank import BareT5, PromptedT5
from t5_pipeline.training.best_checkpoint import Measured
from t5_pipeline.training.loss import token_loss
from tests.data_prep.tokenizer import kinds
from tests.tiny_run import CORPUS, documentation, write_rows

CPU = AnswerOptions(torch.device("cpu"), "fp32")
LABELS = {"no": [9, 1], "yes": [12, 30, 1], "maybe": [8, 1]}
INPUTS = [[5, 9, 33, 1], [7, 1], [40, 41, 42, 43, 44, 1], [3, 4, 1]]


def decode(ids: list[int]) -> str:
    """The label with these ids, or the ids."""
    ends = ids[: ids.index(1) + 1] if 1 in ids else ids
    return next((label for label, of_label in LABELS.items() if of_label == ends), " ".join(map(str, ends)))


def split(
    targets: list[str],
    *,
    labels: bool,
    metrics: list[str],
    holds: list[bool] | None = None,
    scoring: Scoring = "decode",
) -> HeldOut:
    """Rows whose targets are labels, or the same ids as free text."""
    names = list(LABELS) if labels else None
    ids = [np.array(LABELS[target], np.int32) for target in targets]
    rows = EncodedTask(
        "t", [np.array(row, np.int32) for row in INPUTS], ids, ["" for _ in INPUTS], targets, names,
        np.array([names.index(target) for target in targets]) if names else None, holds=holds,
        counts=RowCounts(task="t", split="test", read=len(targets), used=len(targets)),
    )  # fmt: skip
    task = TaskConfig(name="t", data="d", inputs="{a}", targets="{b}", labels=names, metrics=metrics)
    form = AnswerForm(decode, names or [], list(LABELS.values()) if labels else [], 4)  # type: ignore[arg-type]
    return HeldOut(task, rows, form, scoring)


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
    measured = score_prompts(model, splits=[rows, rows], options=CPU)
    for prompt in (0, 1):
        assert measured[prompt].loss == pytest.approx(loss_of(model, prompt, rows, [0, 1, 2, 3]), rel=1e-5)


@torch.no_grad()
def test_targets_that_do_not_hold_are_not_in_the_loss(model: PromptedT5) -> None:
    rows = split(TARGETS, labels=False, metrics=["accuracy"], holds=[True, False, True, False])
    assert score_prompts(model, splits=[rows], options=CPU)[0].loss == pytest.approx(
        loss_of(model, 0, rows, [0, 2]), rel=1e-5
    )


def test_free_text_is_scored_by_what_is_decoded(model: PromptedT5) -> None:
    """The target is scored for the loss only; it is not an answer."""
    rows = split(TARGETS, labels=False, metrics=["accuracy"])
    assert score_model(BareT5(model.t5), [rows], CPU).scores == {"accuracy": 0.0}


def test_the_average_of_the_metrics_decides() -> None:
    """CB: a step with the higher average is better even if the first metric is lower."""
    rows = split(["yes", "no", "no", "no"], labels=True, metrics=["accuracy", "macro_f1"])

    def outputs(*texts: str) -> Outputs:
        return Outputs([], list(texts), [[-1.0] * 3] * 4)

    majority = rows.measured(outputs("no", "no", "no", "no"))
    balanced = rows.measured(outputs("yes", "yes", "no", "maybe"))
    assert majority.scores == {"accuracy": 0.75, "macro_f1": pytest.approx(6 / 7 / 3)}
    assert balanced.scores == {"accuracy": 0.5, "macro_f1": pytest.approx((2 / 3 + 1 / 2) / 3)}
    assert (majority.score, balanced.score) == pytest.approx((0.517857, 0.444444), rel=1e-4)
    assert majority.beats(balanced)
    assert not balanced.beats(majority)
    two = split(["yes", "no", "no", "no"], labels=True, metrics=["macro_f1", "accuracy"])
    assert two.measured(outputs("no", "no", "no", "no")).score == pytest.approx(majority.score)
    assert balanced.scores["macro_f1"] > majority.scores["macro_f1"]  # the first metric alone would choose the other


def test_several_tasks_count_alike(model: PromptedT5) -> None:
    a = split(TARGETS, labels=True, metrics=["accuracy", "macro_f1"])
    found = score_model(BareT5(model.t5), [a, a], CPU)
    one = score_model(BareT5(model.t5), [a], CPU)
    assert found.scores["mean"] == found.score == pytest.approx(one.score)
    assert one.score == pytest.approx(sum(one.scores.values()) / 2)
    assert found.loss == pytest.approx(one.loss)
    b = replace(a, task=a.task.model_copy(update={"name": "b"}))
    each = [Measured({"accuracy": 0.25, "macro_f1": 0.75}, 0.5, 1.0), Measured({"accuracy": 1.0}, 1.0, 3.0)]
    scores = {"mean": 0.75, "t accuracy": 0.25, "t macro_f1": 0.75, "b accuracy": 1.0}
    assert mean_of_tasks([a, b], each) == Measured(scores, 0.75, 2.0)


@torch.no_grad()
def test_prompts_that_are_left_are_scored_on_their_own_rows(model: PromptedT5) -> None:
    """After others of the bank were dropped, whose rows are those of other tasks."""
    splits = [split(targets, labels=True, metrics=["accuracy"]) for targets in (["no"] * 4, TARGETS)]
    whole = score_prompts(model, splits=splits, options=CPU)
    (left,) = score_prompts(model, [1], splits=splits, options=CPU)
    assert left.loss == pytest.approx(whole[1].loss, rel=1e-5)
    assert left.loss == pytest.approx(loss_of(model, 1, splits[1], [0, 1, 2, 3]), rel=1e-5)


# --------------------------------------------------------------------------------------------------------- scoring


def answers(model: PromptedT5) -> Outputs:
    """Answers of the T5 without a prompt to INPUTS, decoded and by likelihood."""
    rows = split(TARGETS, labels=True, metrics=["accuracy"])
    return answer_all(BareT5(model.t5), [None], [rows], CPU)[0]


def both(model: PromptedT5, targets: list[str]) -> tuple[Measured, Measured]:
    """The validation of the T5 without a prompt by decoded text, and by likelihood."""
    ways: tuple[Scoring, Scoring] = ("decode", "likelihood")
    splits = [split(targets, labels=True, metrics=["accuracy", "macro_f1"], scoring=way) for way in ways]
    decoded, likeliest = (score_model(BareT5(model.t5), [rows], CPU) for rows in splits)
    return decoded, likeliest


def learn(model: PromptedT5, targets: list[str], steps: int = 20) -> None:
    """Train every weight of the T5 to answer INPUTS like this."""
    inputs_BS, targets_BT = (
        torch.nn.utils.rnn.pad_sequence([torch.tensor(ids) for ids in rows], batch_first=True)
        for rows in (INPUTS, [LABELS[target] for target in targets])
    )
    t5 = model.t5.requires_grad_(True)
    optimizer = torch.optim.AdamW(t5.parameters(), lr=0.01)
    for _ in range(steps):
        optimizer.zero_grad()
        token_loss(t5(inputs_BS, targets_BT), targets_BT, 0.0).sum().backward()
        optimizer.step()


def test_an_illegal_output_is_wrong_by_decoding_only(model: PromptedT5) -> None:
    """An untrained T5 generates no label, but one label is always the likeliest."""
    targets = answers(model).texts
    decoded, likeliest = both(model, targets)
    assert (decoded.score, likeliest.scores["accuracy"]) == (0.0, 1.0)
    assert decoded.loss == likeliest.loss
    row = split(targets, labels=True, metrics=["accuracy"]).scored(answers(model))
    assert (row["metrics"], row["illegal"]) == ({"accuracy": 0.0}, 1.0)
    assert row["by_scoring"] == {"decode": {"accuracy": 0.0}, "likelihood": {"accuracy": 1.0}}
    assert sum(map(sum, row["confusion"])) == sum(counts[-1] for counts in row["confusion"]) == 4
    assert not {sample["output"] for sample in row["samples"]} & set(LABELS)
    other = split(targets, labels=True, metrics=["accuracy"], scoring="likelihood").scored(answers(model))
    assert (other["metrics"], other["illegal"]) == ({"accuracy": 1.0}, 1.0)


def test_selection_differs_where_decoding_and_likelihood_disagree(model: PromptedT5) -> None:
    """The untrained T5 is best by likelihood; after it learned to say one label, it is best by decoded text."""
    likeliest = answers(model).texts
    assert "yes" not in likeliest
    # One row that the trained T5 gets right, three that only the likelihood of the untrained T5 gets right.
    targets = ["yes", *likeliest[1:]]
    before = both(model, targets)
    learn(model, ["yes"] * 4)
    after = both(model, targets)
    assert answers(model).decoded == ["yes"] * 4
    assert after[0].beats(before[0])
    assert not after[1].beats(before[1])


def test_both_scores_agree_if_every_output_is_the_likeliest_label(model: PromptedT5) -> None:
    learn(model, TARGETS)
    found = answers(model)
    assert found.decoded == found.texts == TARGETS
    for targets in (TARGETS, ["yes", "yes", "no", "no"]):
        decoded, likeliest = both(model, targets)
        assert decoded == likeliest
        row = split(targets, labels=True, metrics=["accuracy", "mcc"]).scored(found)
        assert row["metrics"] == row["by_scoring"]["decode"] == row["by_scoring"]["likelihood"]
        assert row["illegal"] == 0.0


def test_labels_are_decoded_as_they_are_written() -> None:
    """A vocabulary removes double spaces; decoding stops one token after the longest label."""
    vocabulary = Vocabulary.train((text for module in CORPUS[:8] for _, text in documentation(module)), 300)
    task = TaskConfig(name="t", data="d", inputs="{a}", targets="{b}", labels=["a  file", "numbers"])
    for sentinel in ("none", "targets"):
        form = answer_form(task.labels or [], vocabulary, sentinel, 64)
        assert form.max_length == max(map(len, form.label_ids)) + 1
        assert [form.decode([*ids, 0]) for ids in form.label_ids] == task.labels
        assert form.decode([*vocabulary.encode("a file"), *vocabulary.encode("s"), 1]) not in (task.labels or ())
    free = task.model_copy(update={"labels": None})
    assert answer_form(free.labels or [], vocabulary, "none", 64).max_length == 64


def test_a_label_in_another_unicode_form_is_legal(tmp_path: Path) -> None:
    """ByT5's vocabulary returns both forms of "é"; accuracy counts either as right."""
    vocabulary = Vocabulary.load(kinds.byt5(tmp_path))
    form = answer_form(["caf\u00e9", "nai\u0308f"], vocabulary, "none", 64)
    written = ["cafe\u0301", "caf\u00e9", "na\u00eff", "nai\u0308f", "cafe"]
    found = [form.decode([*vocabulary.encode(text), vocabulary.eos]) for text in written]
    assert found == ["caf\u00e9", "caf\u00e9", "nai\u0308f", "nai\u0308f", "cafe"]


TARGETS_AS_TEXT = ["two words", "two\nlines", "two  spaces", "\u732b", "The end."]


@pytest.mark.parametrize(("metrics", "unwritable"), [(["accuracy"], 3), (["exact_match"], 1), (["token_f1"], 0)])
def test_targets_that_the_vocabulary_cannot_write_are_a_warning(
    tmp_path: Path, metrics: list[str], unwritable: int
) -> None:
    """It has no line breaks, no repeated spaces and no Chinese. SQuAD's normalization ignores spaces.

    Truncated targets count, too.
    """
    vocabulary = Vocabulary.train((text for module in CORPUS[:8] for _, text in documentation(module)), 300)
    write_rows(tmp_path / "test.jsonl", [{"a": "text", "b": target} for target in TARGETS_AS_TEXT])
    task = TaskConfig(name="t", data=str(tmp_path), inputs="{a}", targets="{b}", metrics=metrics)

    def counts_at(longest: int) -> RowCounts:
        return load_held_out(task, "test", Reading(vocabulary, 9, longest), scoring="decode").rows.counts

    assert counts_at(2).unwritable == (5 if unwritable else 0)
    counts = counts_at(40)
    assert (counts.unwritable, counts.unknown_targets) == (unwritable, 1)
    said = f"tasks.t: no output can equal {unwritable} of the 5 targets of split 'test' (characters that the"
    assert [warning[: len(said)] for warning in counts.warnings] == [said] * (unwritable > 0)


def test_samples_are_right_as_the_metrics_see_them() -> None:
    """SQuAD's normalization and other answers; a false referent is right if it is not named."""
    answers = [["Denver", "Broncos"], ["Denver", "Broncos"], ["1966"], ["1966"]]
    rows = split(["yes", "no", "yes", "no"], labels=False, metrics=["token_f1", "exact_match"])
    rows = replace(rows, rows=replace(rows.rows, answers=answers))
    found = rows.scored_texts(["the Broncos!", "Broncos or Denver", "in 1966", "1966."])
    assert [sample["right"] for sample in found["samples"]] == [True, False, False, True]
    assert found["metrics"]["exact_match"] == 0.5
    pronoun = split(["yes"] * 4, labels=False, metrics=["accuracy"], holds=[True, True, False, False])
    pronoun = replace(pronoun, task=pronoun.task.model_copy(update={"metrics": ["referent"]}))
    found = pronoun.scored_texts(["The yes", "no", "yes", "no"])
    assert [sample["right"] for sample in found["samples"]] == [True, False, False, True]
    assert found["metrics"]["referent"] == 0.5


def test_scores_have_the_standard_error_of_a_correlation() -> None:
    rows = split(["no", "yes", "maybe", "no"], labels=False, metrics=["spearman", "accuracy"])
    rows.rows.target_texts[:] = ["1", "2", "3", "4"]
    found = rows.scored_texts(["1", "3", "2", "9"])
    assert found["metrics"] == {"spearman": pytest.approx(0.8), "accuracy": 0.25}
    assert found["standard_errors"].keys() == {"spearman"}
