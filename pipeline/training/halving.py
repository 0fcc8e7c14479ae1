"""Successive halving: at given steps, the weaker prompts of a bank are dropped (Jamieson and Talwalkar 2016).

A decision depends only on validation results, so a resumed run makes the same ones. If prompts take turns, the run and
its prompts count their steps apart.
"""

from __future__ import annotations

import sys
from bisect import bisect_right
from collections.abc import Sequence
from typing import NamedTuple

from t5_pipeline.config.sweep import Stretch


class Turn(NamedTuple):
    """The prompts that train together.

    Attributes:
        step: number of steps that they have done.
        prompts: their indices in the bank, ascending.
    """

    step: int
    prompts: list[int]


class Halving:
    """The prompts of a bank that train in each step of a run.

    >>> halving = Halving([0, 0, 0, 1], [Stretch(0, 0, 10, slice(0, 3), remaining=1), Stretch(10, 10, 30, slice(0, 1))])
    >>> halving.drop(10, [(0.5, 2.0), (0.9, 2.0), (0.9, 3.0), (0.1, 2.0)])
    [0, 2]
    >>> halving.turn(9), halving.turn(10)
    (Turn(step=9, prompts=[0, 1, 2, 3]), Turn(step=10, prompts=[1, 3]))

    Two prompts, one at a time:

    >>> halving = Halving([0, 0], [Stretch(0, 0, 5, slice(0, 1)), Stretch(5, 0, 5, slice(1, 2))])
    >>> halving.turn(4), halving.turn(5), halving.takes_turns
    (Turn(step=4, prompts=[0]), Turn(step=0, prompts=[1]), True)

    Attributes:
        takes_turns: whether prompts wait while others train.
        ends: steps of the run at which a rung is reached or, if prompts take turns, a stretch ends.
        dropped_at: rung at which each prompt was dropped; None if it was not.
    """

    def __init__(self, groups: Sequence[int], stretches: Sequence[Stretch] = ()) -> None:
        """
        Args:
            groups: a number for each prompt; those with the same number compete.
            stretches: those of the run, the same for each group; default: all prompts train in every step.
        """
        self.groups = {group: [i for i, of in enumerate(groups) if of == group] for group in dict.fromkeys(groups)}
        self.stretches = list(stretches) or [Stretch(0, 0, sys.maxsize, slice(None))]
        self.takes_turns = any(stretch.start != stretch.begin for stretch in self.stretches)
        self.ends = {s.stop for s in self.stretches if self.takes_turns or s.remaining is not None}
        self.dropped_at: list[int | None] = [None] * len(groups)
        self._starts = [stretch.start for stretch in self.stretches]

    def turn(self, step: int) -> Turn:
        """The prompts in the batch of a step of the run (0 is the first), before that step."""
        stretch = self._stretch(step)
        members = [i for group in self.groups for i in self._remaining(group, stretch)[stretch.members]]
        return Turn(stretch.begin + step - stretch.start, sorted(members))

    def trained(self, step: int) -> Turn:
        """The prompts that trained last, after `step` steps of the run."""
        before = self.turn(step - 1)
        return before._replace(step=before.step + 1)

    def left(self) -> list[int]:
        """The prompts that have not been dropped."""
        return [i for i, at in enumerate(self.dropped_at) if at is None]

    def drop(self, step: int, best: Sequence[tuple[float, float] | None]) -> list[int]:
        """Keep the best prompts of each group if a decision is due after `step` steps; returns the dropped ones.

        Args:
            best: score and loss of each prompt's best validation so far. Ties go to the lower loss, then to the first.
        """
        stretch = self._stretch(step - 1)
        if stretch.remaining is None or step != stretch.stop:
            return []

        def rank(index: int) -> tuple[float, float, int]:
            found = best[index]
            assert found is not None  # every prompt is validated at its rung
            return -found[0], found[1], index

        ranked = [sorted(self._remaining(group, stretch), key=rank) for group in self.groups]
        dropped = sorted(index for members in ranked for index in members[stretch.remaining :])
        for index in dropped:
            self.dropped_at[index] = stretch.end
        return dropped

    def _stretch(self, step: int) -> Stretch:
        return self.stretches[max(0, bisect_right(self._starts, step) - 1)]

    def _remaining(self, group: int, stretch: Stretch) -> list[int]:
        """The prompts of a group that were not dropped before a stretch."""
        at = self.dropped_at
        return [i for i in self.groups[group] if (dropped := at[i]) is None or dropped >= stretch.end]
