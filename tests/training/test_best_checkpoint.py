"""Selection of the best checkpoint, in one run or with interruptions."""

from __future__ import annotations

import json
from collections.abc import Iterable

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from t5_pipeline.config.sweep import SweepConfig
from t5_pipeline.training.best_checkpoint import Measured, Selection
from t5_pipeline.training.distributed.collectives import ProcessGroup
from t5_pipeline.training.distributed.engine import ForwardScope
from t5_pipeline.training.distributed.replicated import Replicated
from t5_pipeline.training.halving import Halving
from tests.training.checkpoints.saved import Saved

# The scores and the kept weight are made up; the engine is only passed through.
ENGINE = Replicated(
    ForwardScope(nn.Linear(1, 1), "fp32", "cpu"),
    lambda trained: torch.optim.SGD(trained, lr=0.0),
    ProcessGroup(),
    torch.device("cpu"),
)
VALIDATION = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=20)
"""(score, loss) of every step, with many ties."""


def validation(score: float, loss: float) -> Measured:
    return Measured({"f1": score + 1, "accuracy": score - 1}, score, loss)


def train_bank(
    cells: list[list[tuple[int, int]]], *, every: int = 1, patience: int = 0, stop_at: int = 0
) -> tuple[Selection, int]:
    """Train cells with these (scores, losses) of every step; the weight is the step. At `stop_at`, save and resume."""
    step = 0

    def new() -> Selection:
        return Selection(
            list(map(str, range(len(cells)))), lambda model: [validation(*of[step - 1]) for of in cells],
            lambda model, index: {"w": torch.tensor(float(step))}, every=every, patience=patience,
        )  # fmt: skip

    selection = new()
    while step < len(cells[0]) and not selection.exhausted:
        step += 1
        if selection.due(step):
            selection.update(step, ENGINE)
        if step == stop_at:
            selection = resumed(selection, new())
    return selection, step


def resumed(saved: Selection, new: Selection) -> Selection:
    """A selection that has loaded the checkpoint of another."""
    new.load(Saved.of(saved.shards()), json.loads(json.dumps(saved.scalars())), ENGINE)
    return new


def train_to(steps: list[tuple[int, int]], **settings: int) -> tuple[Selection, int]:
    return train_bank([steps], **settings)


def best_of(steps: list[tuple[int, int]], measured: Iterable[int]) -> int:
    return max(measured, key=lambda step: (steps[step - 1][0], -steps[step - 1][1], step))


@given(steps=VALIDATION)
def test_of_equal_scores_the_lowest_loss_then_the_last_is_kept_with_its_weights(steps: list[tuple[int, int]]) -> None:
    selection, end = train_to(steps)
    (best,) = selection.finalize(end, ENGINE)
    assert best.step == best_of(steps, range(1, end + 1))
    assert best.measured == validation(*steps[best.step - 1])
    assert float(best.tensors["w"]) == best.step


def test_a_run_that_never_improves_publishes_its_last_step() -> None:
    selection, end = train_to([(1, 2)] * 8)
    assert selection.finalize(end, ENGINE)[0].step == 8


@given(steps=VALIDATION, every=st.integers(1, 4), patience=st.integers(0, 3), stop_at=st.integers(1, 20))
def test_resuming_at_any_step_changes_nothing(
    steps: list[tuple[int, int]], every: int, patience: int, stop_at: int
) -> None:
    whole, end = train_to(steps, every=every, patience=patience)
    parts, same_end = train_to(steps, every=every, patience=patience, stop_at=stop_at)
    assert end == same_end
    assert whole.scalars() == parts.scalars()
    results = [selection.finalize(end, ENGINE) for selection in (whole, parts)]
    assert [(b.step, b.measured, float(b.tensors["w"])) for b in results[0]] == [
        (b.step, b.measured, float(b.tensors["w"])) for b in results[1]
    ]


@given(steps=VALIDATION, every=st.integers(1, 4))
def test_a_last_step_that_is_not_due_is_a_candidate_but_not_stored(steps: list[tuple[int, int]], every: int) -> None:
    selection, end = train_to(steps, every=every)
    before = selection.scalars()
    (best,) = selection.finalize(end, ENGINE)
    measured = [*range(every, end + 1, every), *([end] if end % every else [])]
    assert best.step == best_of(steps, measured)
    assert selection.scalars() == before


@given(steps=VALIDATION, patience=st.integers(1, 4))
def test_patience_counts_measurements_without_a_higher_score(steps: list[tuple[int, int]], patience: int) -> None:
    selection, end = train_to(steps, patience=patience)
    highest, without, expected = -1, 0, len(steps)
    for step, (score, _) in enumerate(steps, 1):
        without = 0 if score > highest else without + 1
        highest = max(highest, score)
        if without == patience:
            expected = step
            break
    assert (end, selection.finalize(end, ENGINE)[0].step) == (expected, best_of(steps, range(1, expected + 1)))


def published(scores: list[list[int]], *, patience: int = 1, **settings: int) -> tuple[list[int], list[int]]:
    """Train a bank of one prompt per list of scores; (published steps, numbers of validations)."""
    cells = [[(score, 0) for score in of] for of in scores]
    selection, step = train_bank(cells, patience=patience, **settings)
    best = selection.finalize(step, ENGINE)
    assert [float(each.tensors["w"]) for each in best] == [each.step for each in best]
    return [each.step for each in best], selection.validations(step)


def test_a_cell_without_patience_left_accepts_no_later_score_while_others_continue() -> None:
    assert published([[3, 1, 9, 9], [1, 2, 3, 4]]) == ([1, 4], [2, 4])
    # The last step is validated although it is not due, but not for the cell whose patience has run out.
    assert published([[0, 3, 0, 1, 9], [0, 1, 0, 2, 3]], every=2) == ([2, 5], [2, 3])


BANKS = st.integers(1, 12).flatmap(
    lambda steps: st.lists(st.lists(st.integers(0, 3), min_size=steps, max_size=steps), min_size=2, max_size=3)
)


@given(scores=BANKS, every=st.integers(1, 4), patience=st.integers(0, 3), stop_at=st.integers(0, 12))
def test_a_prompt_in_a_bank_publishes_the_same_step_as_alone(
    scores: list[list[int]], every: int, patience: int, stop_at: int
) -> None:
    alone = [published([of], every=every, patience=patience) for of in scores]
    steps, validations = published(scores, every=every, patience=patience, stop_at=stop_at)
    assert steps == [step for (step,), _ in alone]
    assert validations == [count for _, (count,) in alone]


THREE = SweepConfig(sweep={"seed": [0, 1, 2]}, first_rung=3)


@given(
    scores=st.lists(st.lists(st.integers(0, 2), min_size=6, max_size=6), min_size=9, max_size=9),
    stop_at=st.integers(1, 9),
)
def test_halving_drops_the_weaker_of_each_group_also_after_a_resume(scores: list[list[int]], stop_at: int) -> None:
    """Six prompts in two groups; their scores fall at steps 3 and 6. A prompt that was dropped is not measured again."""
    step = 0
    asked: list[list[int]] = []

    def measure(model: object, active: list[int]) -> list[Measured]:
        asked.append(active)
        return [validation(scores[step - 1][i], loss=i % 3) for i in active]

    def new() -> Selection:
        halving = Halving([0, 0, 0, 1, 1, 1], THREE.stretches(9))
        kept = {"w": torch.tensor(0.0)}
        return Selection(list("abcdef"), measure, lambda model, index: kept, every=2, halving=halving)

    def train(stop_at: int) -> Selection:
        nonlocal step
        selection = new()
        for step in range(1, 10):
            if selection.due(step):
                selection.update(step, ENGINE)
                assert selection.dropped == [name for name, at in dropped(selection).items() if at == step]
            if step == stop_at:
                selection = resumed(selection, new())
        return selection

    def dropped(selection: Selection) -> dict[str, int | None]:
        return dict(zip(selection.cells, selection.halving.dropped_at, strict=True))

    whole = train(0)
    expected: dict[int, int] = {}
    for group in ([0, 1, 2], [3, 4, 5]):
        for rung, left in ((3, 2), (6, 1)):
            alive = [i for i in group if i not in expected]
            measured = [s for s in (2, 3, 4, 6) if s <= rung]
            best = {i: max(scores[s - 1][i] for s in measured) for i in alive}
            ranked = sorted(alive, key=lambda i: (-best[i], i % 3))
            expected |= dict.fromkeys(ranked[left:], rung)
    assert dropped(whole) == {name: expected.get(i) for i, name in enumerate("abcdef")}
    assert asked[-1] == whole.halving.left()
    assert len(asked[-1]) == 2
    measured = {3: 2, 6: 4, None: 6}  # at 2, 3, 4, 6, 8 and, at the end, 9
    assert whole.validations(9) == [measured[at] for at in dropped(whole).values()]
    assert train(stop_at).scalars() == whole.scalars()


@given(
    scores=st.lists(st.lists(st.integers(0, 2), min_size=8, max_size=8), min_size=11, max_size=11),
    slots=st.integers(1, 4),
    patience=st.integers(0, 3),
    stop_at=st.integers(0, 40),
)
def test_turns_make_the_decisions_of_a_sweep_that_trains_at_once(
    scores: list[list[int]], slots: int, patience: int, stop_at: int
) -> None:
    """Eight prompts in two groups, whose rungs are at their steps 3 and 6 of 11."""

    def train(slots: int, stop_at: int = 0) -> tuple[list[dict[str, object]], dict[int, list[str]]]:
        c = SweepConfig(sweep={"seed": list(range(4))}, first_rung=3, sweep_slots=slots)
        step, decisions = 0, {}

        def measure(model: object, active: list[int]) -> list[Measured]:
            at, trained = selection.halving.trained(step)
            assert active == trained
            return [validation(scores[at - 1][i], loss=i % 3) for i in active]

        def kept(model: object, index: int) -> dict[str, torch.Tensor]:
            return {"w": torch.tensor(float(10 * index + selection.halving.trained(step).step))}

        def new() -> Selection:
            halving = Halving([0, 1] * 4, c.stretches(11))
            return Selection(list("abcdefgh"), measure, kept, every=2, patience=patience, halving=halving)

        selection = new()
        for step in range(1, c.run_steps(11) + 1):
            assert len(selection.halving.turn(step - 1).prompts) <= 2 * (slots or 4)
            if selection.due(step):
                measured = selection.update(step, ENGINE)
                if selection.dropped:
                    decisions[selection.halving.trained(step).step] = selection.dropped
                assert list(measured) == ["abcdefgh"[i] for i in selection.halving.trained(step).prompts]
            if step == stop_at:
                selection = resumed(selection, new())
            if selection.exhausted:
                break
        best = selection.finalize(step, ENGINE)
        facts: list[dict[str, object]] = [
            {"step": b.step, "measured": b.measured, "w": float(b.tensors["w"]), "dropped": at, "validations": n}
            for b, at, n in zip(best, selection.halving.dropped_at, selection.validations(step), strict=True)
        ]
        assert [found["w"] for found in facts] == [10.0 * i + b.step for i, b in enumerate(best)]
        return facts, decisions

    turns = train(slots)
    assert train(slots, stop_at) == turns
    assert turns == train(0)


def test_a_rung_between_validations_does_not_count_for_patience() -> None:
    """Validations at 2, 3 (a rung), 4 and 6: alone, the two after the best would be at 4 and 6."""
    scores = [0, 9, 1, 2, 0, 3]
    step = 0
    halving = Halving([0, 0, 0], THREE.stretches(9))
    selection = Selection(
        list("abc"), lambda model, active: [validation(scores[step - 1] - i, loss=0) for i in active],
        lambda model, index: {"w": torch.tensor(0.0)}, every=2, patience=2, halving=halving,
    )  # fmt: skip
    left = []
    for step in (2, 3, 4, 6):
        selection.update(step, ENGINE)
        left.append(selection._is_exhausted(0))
    assert left == [False, False, False, True]
