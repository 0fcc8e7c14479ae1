"""Settings of a sweep: which settings are tried in one batch, when the weaker ones are dropped, and which wait."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

from pydantic import model_validator

from t5_pipeline.core.schema import Config, setting

MAX_TRIALS = 1_000
_LONGEST = 60  # characters of a value in a name


@dataclass(frozen=True)
class Stretch:
    """Steps of a run in which the same prompts of each sweep train.

    Attributes:
        start: steps of the run before it.
        begin, end: steps that each of its prompts has trained for before it, and after it.
        members: which of the prompts that remain in a sweep, in the order of their settings.
        remaining: prompts of a sweep that remain after it; None if it does not end with a decision.
    """

    start: int
    begin: int
    end: int
    members: slice
    remaining: int | None = None

    @property
    def stop(self) -> int:
        """Steps of the run after it."""
        return self.start + self.end - self.begin


class SweepConfig(Config):
    """Group: settings that are tried in one batch by successive halving (Jamieson and Talwalkar 2016).

    n prompts start, one for each combination. At each rung the best ⌈n/η⌉ remain, by their best validation so far,
    until one is left; the rungs are at r, r·η, r·η², … steps. Each prompt trains as if it were alone.

    If only K may train at a time, they take turns: K train to the next rung and wait there, unchanged, while the next K
    take their places. Decisions are made once all have reached the rung, so they do not depend on K. The steps of each
    turn follow from n, η, r, K and `steps` alone, not from scores.
    """

    sweep: dict[str, list[Any]] = setting(
        {}, "lists of values by setting, to try in one batch; the best combination is published", neutral=True
    )
    halving: int = setting(
        2, "sweep: η; 1/η of the prompts remain after each rung; 0: all train to the end", neutral=True, only="sweep",
        ge=0,
    )  # fmt: skip
    first_rung: int = setting(
        0, "sweep: step r of the first rung; 0: steps/η^k for k rungs", unit="steps", neutral=True, only="sweep", ge=0
    )
    sweep_slots: int = setting(
        0, "sweep: K prompts train at a time, in turns up to each rung; 0: all at once", unit="prompts", neutral=True,
        only="sweep", ge=0,
    )  # fmt: skip

    @model_validator(mode="after")
    def rungs_drop_prompts(self) -> SweepConfig:
        if self.halving == 1:
            raise ValueError("`halving: 1` would drop nothing; set 2 or more, or 0 to train all prompts to the end")
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

    def stretches(self, steps: int) -> list[Stretch]:
        """The stretches of a run in which each prompt that is not dropped trains for `steps` steps.

        >>> c = SweepConfig(sweep={"learning_rate": [0.1] * 6}, halving=3, sweep_slots=4)
        >>> for stretch in c.stretches(900):
        ...     print(stretch.start, stretch.begin, stretch.end, stretch.members, stretch.remaining)
        0 0 100 slice(0, 4, None) None
        100 0 100 slice(4, 6, None) 2
        200 100 300 slice(0, 2, None) 1
        400 300 900 slice(0, 1, None) None
        """
        found: list[Stretch] = []
        begin, count, rungs = 0, self.combination_count, self.rungs(steps)
        for end in (*rungs, steps):
            slots = (steps and self.sweep_slots) or count  # without steps, all are validated as they start
            for first in range(0, count, slots):
                last = min(first + slots, count)
                start = found[-1].stop if found else 0
                found.append(Stretch(start, begin, end, slice(first, last), rungs.get(end) if last == count else None))
            begin, count = end, rungs.get(end, count)
        return found

    def run_steps(self, steps: int) -> int:
        """Steps of a run after which each prompt that is not dropped has trained for `steps` steps.

        >>> SweepConfig(sweep={"seed": [1, 2, 3]}, halving=0, sweep_slots=2).run_steps(900)
        1800
        """
        return self.stretches(steps)[-1].stop

    def prompt_steps(self, steps: int) -> int:
        """Steps of all prompts together: Σ prompts × steps between rungs.

        >>> SweepConfig(sweep={"learning_rate": [0.1] * 16}, halving=4, sweep_slots=3).prompt_steps(1600)
        4000
        """
        return sum((s.members.stop - s.members.start) * (s.end - s.begin) for s in self.stretches(steps))


def combination_name(values: dict[str, Any]) -> str:
    """Settings as a valid directory name.

    >>> combination_name({"learning_rate": 0.1, "init_labels": ["a b", "c"]})
    'learning_rate=0.1,init_labels=a-b+c'

    Of a value with more than 60 characters, the name has the first 51 and 8 digits of its SHA-256.
    """
    return ",".join(f"{name}={_short(value)}" for name, value in values.items())


def without_seed(cell: str | None) -> str:
    """The axes of a cell besides the seed.

    >>> without_seed("model=lm_adapt,seed=0"), without_seed("seed=0"), without_seed(None)
    ('model=lm_adapt', '', '')
    """
    return ",".join(axis for axis in (cell or "").split(",") if not axis.startswith("seed="))


def _short(value: Any) -> str:
    if isinstance(value, list):
        return "+".join(map(_short, value))
    text = str(value.get("name", value)) if isinstance(value, dict) else str(value)
    if isinstance(value, float):
        text = text.replace("+", "")  # the name of 1e+18 must not be that of 1e-18
    name = "".join(c if c.isalnum() or c in "._-@" else "-" for c in text)
    if len(name) <= _LONGEST:
        return name
    digest = sha256(text.encode(errors="surrogatepass")).hexdigest()  # YAML can escape half of a surrogate pair
    return f"{name[: _LONGEST - 9]}-{digest[:8]}"
