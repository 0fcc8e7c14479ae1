"""Every method by the kind of its artifact. A new method is one line here and one in pipeline/config/registry.py."""

from __future__ import annotations

from t5_pipeline.methods import full_model, mixture, multitask, peft, soft_prompt, text_prompt
from t5_pipeline.methods.base import Method

METHODS: dict[str, Method] = {
    "prompt": soft_prompt.candidates,
    "task_prompts": multitask.candidates,
    "model": full_model.candidates,
    "mixture": mixture.candidates,
    "text_prompt": text_prompt.candidates,
    "adapter": peft.candidates,
}
