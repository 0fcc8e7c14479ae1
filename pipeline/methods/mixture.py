"""A mixture of soft prompts on disk: `mixture.json` with the weights, and each prompt in a folder of its own.

mixture.json {"format": 1, "weights": [0.3, 0.7], "step": 2000, "scores": {…}}
0/prompt.json 0/prompt.safetensors  1/…       plain prompts, that can also be used alone
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from pathlib import Path

from t5_pipeline.core.atomic_files import write_text
from t5_pipeline.core.errors import InputError
from t5_pipeline.methods.soft_prompt import Prompt, PromptInfo

NAME = "mixture.json"
FORMAT = 1


@dataclass(frozen=True)
class Mixture:
    """Prompts of one task on one frozen T5, and their weights: p(y|x) = Σ_k w_k p(y | [P_k; x]), Σ_k w_k = 1."""

    prompts: list[Prompt]
    weights: list[float]
    step: int = 0
    scores: dict[str, float] = field(default_factory=dict)

    @property
    def info(self) -> PromptInfo:
        """What all of its prompts have in common: task, T5, lengths."""
        return self.prompts[0].info

    def save(self, directory: str | Path) -> None:
        directory = Path(directory)
        for number, prompt in enumerate(self.prompts):
            prompt.save(directory / str(number))
        described = {"format": FORMAT, "weights": self.weights, "step": self.step, "scores": self.scores}
        write_text(directory / NAME, json.dumps(described, indent=2) + "\n")

    @classmethod
    def load(cls, directory: str | Path) -> Mixture:
        """Read a mixture back. Raises InputError that names the file that is wrong."""
        path = Path(directory) / NAME
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
            weights = [float(weight) for weight in found["weights"]]
            if found["format"] != FORMAT:
                raise ValueError(f"format {found['format']}, where this version reads {FORMAT}")
            if not weights or min(weights) < 0 or not math.isclose(sum(weights), 1, abs_tol=1e-4):
                raise ValueError("its weights do not add up to 1")
            step, scores = int(found["step"]), dict(found["scores"])
        except OSError:
            raise InputError(f"{path}: not there; give a directory that prompt_mixture wrote") from None
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(f"{path}: is damaged ({error}); make the mixture again") from None
        prompts = [Prompt.load(Path(directory) / str(number)) for number in range(len(weights))]
        if any(prompt.info.base_model_digest != prompts[0].info.base_model_digest for prompt in prompts):
            raise InputError(f"{directory}: its prompts are of different T5s; make the mixture again")
        return cls(prompts, weights, step, scores)
