"""The Python API: a frozen T5 and its prompts.

    import t5_pipeline

    t5 = t5_pipeline.load("runs/demo/lm_adapt", prompts="prompts")
    t5.classify(["seek(self, offset) …", "sorted(iterable) …"], prompt="kind")
    t5.generate([{"question": "Who …?", "context": "…"}], prompt="squad")
    t5.tune([("a fine film .", "positive"), …], labels=["negative", "positive"], name="tone")

Inputs that cannot be answered raise `InputError`, with the remedy in its message.
"""

from t5_pipeline.api.model import Input, Names, PromptedModel, load
from t5_pipeline.core.errors import InputError
from t5_pipeline.evaluation.ensemble import Classification

__all__ = ["Classification", "Input", "InputError", "Names", "PromptedModel", "load"]
