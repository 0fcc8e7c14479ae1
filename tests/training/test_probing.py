"""Early stopping by probes, and its state in checkpoints."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from t5_pipeline.training.probing import Probing


def test_stops_after_probes_without_a_better_score() -> None:
    """Equal scores are not better. A resumed run stops at the same probe."""
    scores = [0.2, 0.5, 0.5, 0.4, 0.6, 0.6, 0.1, 0.3]
    state: Any = SimpleNamespace(step=0, group=SimpleNamespace(rank=0))

    def probing(left: list[float]) -> Probing:
        values = iter(left)
        return Probing(lambda _: {"score": next(values)}, every=10, patience=3)

    whole, stopped = probing(scores), []
    for _ in scores:
        whole.update(state)
        stopped.append(whole.exhausted)
    assert stopped == [False] * 7 + [True]
    for cut in range(len(scores)):
        first, second = probing(scores[:cut]), probing(scores[cut:])
        for _ in range(cut):
            first.update(state)
        second.load(first.scalars())
        for number in range(cut, len(scores)):
            second.update(state)
            assert second.exhausted == stopped[number]
    assert [step for step in range(40) if whole.due(step)] == [0, 10, 20, 30]
    assert not Probing(lambda _: {"score": 0.0}, every=1, without_higher=9).exhausted
