"""Successive halving: at given steps, the weaker prompts of a bank are dropped (Jamieson and Talwalkar 2016).

A decision depends only on validation results, so a resumed run makes the same ones.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence


class Halving:
    """The prompts of a bank that still train.

    >>> halving = Halving([0, 0, 0, 1], rungs={10: 1})
    >>> halving.drop(10, [(0.5, 2.0), (0.9, 2.0), (0.9, 3.0), (0.1, 2.0)])
    [0, 2]
    >>> halving.active(9), halving.active(10)
    ([0, 1, 2, 3], [1, 3])

    Attributes:
        dropped_at: rung at which each prompt was dropped; None if it was not.
    """

    def __init__(self, groups: Sequence[int], rungs: Mapping[int, int]) -> None:
        """
        Args:
            groups: a number for each prompt; those with the same number compete.
            rungs: step → prompts of each group that remain after it.
        """
        self.groups = list(groups)
        self.rungs = dict(rungs)
        self.dropped_at: list[int | None] = [None] * len(groups)

    def active(self, step: int | None = None) -> list[int]:
        """The prompts that train on, after `step` steps, or now."""
        return [i for i, at in enumerate(self.dropped_at) if at is None or (step is not None and step < at)]

    def drop(self, step: int, best: Sequence[tuple[float, float]]) -> list[int]:
        """Keep the best prompts of each group if `step` is a rung; returns the dropped ones.

        Args:
            best: score and loss of each prompt's best validation so far. Ties go to the lower loss, then to the first.
        """
        dropped: list[int] = []
        for group in dict.fromkeys(self.groups) if step in self.rungs else ():
            members = [i for i in self.active() if self.groups[i] == group]
            members.sort(key=lambda i: (-best[i][0], best[i][1], i))
            dropped += members[self.rungs[step] :]
        for i in dropped:
            self.dropped_at[i] = step
        return sorted(dropped)
