"""Selection of the best checkpoint, in one run or with interruptions."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from t5_pipeline.training.best_checkpoint import Selection
from t5_pipeline.training.distributed.collectives import ProcessGroup
from t5_pipeline.training.distributed.engine import ForwardScope
from t5_pipeline.training.distributed.replicated import Replicated
from tests.training.checkpoints.saved import Saved

# The scores and the kept weight are made up; the engine is only passed through.
ENGINE = Replicated(
    ForwardScope(nn.Linear(1, 1), "fp32", "cpu"),
    lambda trained: torch.optim.SGD(trained, lr=0.0),
    ProcessGroup(),
    torch.device("cpu"),
)
SCORES = st.lists(st.integers(0, 5), min_size=1, max_size=20)


def train_to(scores: list[int], *, every: int = 1, patience: int = 0, stop_at: int = 0) -> tuple[Selection, int]:
    """Train with one score per step; the weight is the step. At `stop_at`, save and resume."""
    step = 0

    def new() -> Selection:
        return Selection(
            ["a"], lambda model: [{"accuracy": scores[step - 1]}], lambda model, index: {"w": torch.tensor(float(step))},
            every=every, patience=patience,
        )  # fmt: skip

    selection = new()
    while step < len(scores) and not selection.exhausted:
        step += 1
        if selection.due(step):
            selection.update(step, ENGINE)
        if step == stop_at:
            saved, scalars = Saved.of(selection.shards()), selection.scalars()
            selection = new()
            selection.load(saved, scalars, ENGINE)
    return selection, step


@given(scores=SCORES)
def test_the_first_of_the_highest_scores_is_kept_with_its_weights(scores: list[int]) -> None:
    selection, step = train_to(scores)
    (best,) = selection.finalize(step, ENGINE)
    assert best.step == scores.index(max(scores)) + 1
    assert best.scores == {"accuracy": max(scores)}
    assert float(best.tensors["w"]) == best.step


@given(scores=SCORES, every=st.integers(1, 4), patience=st.integers(0, 3), stop_at=st.integers(1, 20))
def test_resuming_at_any_step_changes_nothing(scores: list[int], every: int, patience: int, stop_at: int) -> None:
    whole, end = train_to(scores, every=every, patience=patience)
    parts, same_end = train_to(scores, every=every, patience=patience, stop_at=stop_at)
    assert end == same_end
    assert whole.scalars() == parts.scalars()
    assert [b.step for b in whole.finalize(end, ENGINE)] == [b.step for b in parts.finalize(end, ENGINE)]


@given(scores=SCORES, every=st.integers(1, 4))
def test_a_last_step_that_is_not_due_is_a_candidate_but_not_stored(scores: list[int], every: int) -> None:
    selection, end = train_to(scores, every=every)
    before = selection.scalars()
    (best,) = selection.finalize(end, ENGINE)
    measured = [*range(every, end + 1, every), *([end] if end % every else [])]
    assert best.step == min(measured, key=lambda step: (-scores[step - 1], step))
    assert selection.scalars() == before


@given(scores=SCORES, patience=st.integers(1, 4))
def test_patience_counts_measurements_without_a_better_score(scores: list[int], patience: int) -> None:
    selection, end = train_to(scores, patience=patience)
    best = without = 0
    expected = len(scores)
    for step, score in enumerate(scores, 1):
        if step == 1 or score > scores[best - 1]:
            best, without = step, 0
        else:
            without += 1
        if without == patience:
            expected = step
            break
    assert (end, selection.finalize(end, ENGINE)[0].step) == (expected, best)


def test_a_cell_without_patience_left_accepts_no_later_score_while_others_continue() -> None:
    scores = {"a": [3, 1, 9, 9], "b": [1, 2, 3, 4]}
    step = 0
    selection = Selection(
        ["a", "b"], lambda model: [{"m": scores[cell][step - 1]} for cell in "ab"],
        lambda model, index: {"w": torch.tensor(float(step))}, every=1, patience=1,
    )  # fmt: skip
    for step in (1, 2, 3, 4):
        selection.update(step, ENGINE)
    assert [best.step for best in selection.finalize(4, ENGINE)] == [1, 4]
    assert not selection.exhausted
