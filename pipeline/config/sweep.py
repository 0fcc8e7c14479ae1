"""Settings of a sweep: which settings are tried in one batch, and when the weaker ones are dropped."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from typing import Any

from pydantic import model_validator

from t5_pipeline.core.schema import Config, setting

MAX_TRIALS = 1_000


class SweepConfig(Config):
    """Group: settings that are tried in one batch by successive halving (Jamieson and Talwalkar 2016).

    n prompts start, one for each combination. At each rung the best ⌈n/η⌉ remain, by their best validation so far,
    until one is left; the rungs are at r, r·η, r·η², … steps. Each prompt trains as if it were alone.
    """

    sweep: dict[str, list[Any]] = setting(
        {}, "settings to try in one batch, each with its values; the best combination is published", neutral=True
    )
    halving: int = setting(
        2, "η: at each rung of a sweep 1/η of the prompts remain; 0: all train to the end", neutral=True, ge=0
    )
    first_rung: int = setting(
        0, "r, the first rung of a sweep; 0: steps/η^k for k rungs", unit="steps", neutral=True, ge=0
    )

    @model_validator(mode="after")
    def rungs_need_a_sweep(self) -> SweepConfig:
        if self.halving == 1:
            raise ValueError("`halving: 1` would drop nothing; set 2 or more, or 0 to train all prompts to the end")
        if not self.sweep and (self.halving != 2 or self.first_rung):
            raise ValueError("`halving` and `first_rung` need a `sweep`; add it, or remove them")
        if self.first_rung and not self.halving:
            raise ValueError("`first_rung` has no effect with `halving: 0`; remove one of the two")
        return self

    @property
    def combination_count(self) -> int:
        return math.prod(map(len, self.sweep.values()))

    def combinations(self) -> Iterator[dict[str, Any]]:
        """The combinations of a sweep's values; without a sweep, a single empty one."""
        for values in itertools.product(*self.sweep.values()):
            yield dict(zip(self.sweep, values, strict=True))

    def rungs(self, steps: int) -> dict[int, int]:
        """Step of each rung → prompts that remain after it.

        >>> c = SweepConfig(sweep={"learning_rate": [0.1] * 16}, halving=4)
        >>> c.rungs(1600), c.rungs(1600)[100], SweepConfig().rungs(1600)
        ({100: 4, 400: 1}, 4, {})
        """
        left, remaining = self.combination_count, []
        while left > 1 and self.halving:
            left = -(-left // self.halving)
            remaining.append(left)
        first = self.first_rung or max(1, -(-steps // self.halving ** len(remaining)) if remaining else 1)
        found = {first * self.halving**k: count for k, count in enumerate(remaining)}
        return {step: count for step, count in found.items() if step < steps}

    def prompt_steps(self, steps: int) -> int:
        """Steps of all prompts together: Σ prompts × steps between rungs.

        >>> SweepConfig(sweep={"learning_rate": [0.1] * 16}, halving=4).prompt_steps(1600)
        4000
        """
        count, begin, total = self.combination_count, 0, 0
        for step, remaining in self.rungs(steps).items():
            total, begin, count = total + count * (step - begin), step, remaining
        return total + count * (steps - begin)


def combination_name(values: dict[str, Any]) -> str:
    """Settings as a valid directory name.

    >>> combination_name({"learning_rate": 0.1, "init_labels": ["a b", "c"]})
    'learning_rate=0.1,init_labels=a-b+c'
    """
    return ",".join(f"{name}={_short(value)}" for name, value in values.items())


def _short(value: Any) -> str:
    if isinstance(value, list):
        return "+".join(map(_short, value))
    text = str(value.get("name", value)) if isinstance(value, dict) else str(value)
    return "".join(c if c.isalnum() or c in "._-@" else "-" for c in text)[:60]
