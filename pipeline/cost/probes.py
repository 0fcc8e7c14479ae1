"""FLOPs of the probes of LM adaptation, which `probe_cost` bounds."""

from __future__ import annotations

from dataclasses import dataclass

from t5_pipeline.config.adaptation import LMAdaptConfig
from t5_pipeline.core.errors import InputError
from t5_pipeline.cost.flops import forward_flops, step_cost
from t5_pipeline.modeling.config import T5Config

_ROWS = 1000  # validation rows of a task, if all are scored; the number is in its files, which are not read here


@dataclass(frozen=True)
class ProbeCost:
    """Cost of the probes of a run.

    Attributes:
        flops: of one probe: training its prompts, and scoring them.
        every: steps between probes.
        share: FLOPs of all probes, the first one before step 1, as a share of the run's steps.
    """

    flops: float
    every: int
    share: float

    def __str__(self) -> str:
        return f"a probe every {self.every:,} steps, {self.share:,.1%} of the FLOPs of the adaptation"


def probe_cost(c: LMAdaptConfig, shape: T5Config) -> ProbeCost | None:
    """The cost of the probes; None without probes.

    Raises:
        InputError: if they cost more than `probe_cost`.
    """
    cells, step = c.probe_cells(c.model), step_cost(c, shape)
    if not cells or step is None:
        return None
    flops = 0.0
    for cell in cells:
        of_a_step = step_cost(cell, shape)
        assert of_a_step is not None
        ((inputs, targets),) = cell.example_lengths()
        row = forward_flops(shape, inputs + cell.prompt_length, targets)
        # A row is scored by decoding, and with labels also by the likelihood of each.
        rows = (cell.validation_limit or _ROWS) * (1 + len(cell.task.labels or ()))
        flops += cell.steps * of_a_step.flops + rows * row
    total = c.steps * step.flops
    share = (1 + c.steps // c.probe_every) * flops / total if total else 0.0
    if share > c.probe_cost:
        affordable = int(c.probe_cost * total / flops) - 1  # after the first one
        remedy = f"give at least {c.steps // (affordable + 1) + 1:,}" if affordable > 0 else "lower probe_steps"
        raise InputError(
            f"probe_every: with {c.probe_every:,} the probes cost {share:.0%} of the adaptation's FLOPs; {remedy}, or"
            f" raise probe_cost, now {c.probe_cost:g}"
        )
    return ProbeCost(flops, c.probe_every, share)
