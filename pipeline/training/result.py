"""The result of training: the tensors of a step and, with a selection, the best ones of each cell."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from torch import Tensor

from t5_pipeline.core.scores import scores_text
from t5_pipeline.modeling.prompt_bank import PromptBank
from t5_pipeline.training.best_checkpoint import SELECTION, Best, Measured
from t5_pipeline.training.checkpoints.format import Checkpoint
from t5_pipeline.training.distributed.engine import MODEL


@dataclass(frozen=True)
class TrainingResult:
    """The checkpoint of a step and, with a selection, the best of each cell (otherwise `selected` is empty).

    Attributes:
        validations: number of steps among which the best of each cell was chosen.
    """

    checkpoint: Checkpoint
    selected: list[Best]
    validations: list[int] = field(default_factory=list)

    def best(self, index: int = 0) -> Best:
        """The published step of cell `index`: its best one, or without a selection the last, without scores."""
        return self.selected[index] if self.selected else Best(self.checkpoint.step, Measured({}, -math.inf))

    def chosen(self, index: int = 0) -> str:
        """The published step of cell `index`, as text: `step 150, accuracy 86.7, best of 8 validations`."""
        best = self.best(index)
        if not self.selected:
            return f"step {best.step:,}"
        count = self.validations[index]
        of = f"best of {count:,} validations" if count > 1 else "the only validation"
        return f"step {best.step:,}, {scores_text(best.scores)}, {of}"

    def weights(self, index: int = 0) -> dict[str, Tensor]:
        """All trained parameters as published by cell `index`, whole, whichever engine wrote the checkpoint."""
        last = self.best(index).step == self.checkpoint.step
        return self.checkpoint.tensors(MODEL if last else f"{SELECTION}{index}/")

    def prompts(self, bank: PromptBank) -> list[Tensor]:
        """The rows [P, D] that each cell of a bank publishes (with a selection that keeps `prompt_rows`)."""
        last = bank.prompts_of(self.checkpoint.tensors(f"{MODEL}bank."))
        return [self.best(index).tensors.get("rows", rows_PD) for index, rows_PD in enumerate(last)]
