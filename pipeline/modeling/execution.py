"""The implementations that a T5 runs with: chosen by settings, as far as its device allows."""

from __future__ import annotations

from collections.abc import Collection
from typing import Literal

from t5_pipeline.modeling.compilation import use_compiler, use_flex
from t5_pipeline.modeling.t5 import T5


def configure_execution(
    t5: T5,
    device_type: str,
    *,
    compile: Literal["auto", "true", "false"],
    attention: Literal["auto", "sdpa", "flex"] = "auto",
    reference_ops: Collection[str] = (),
    recompute: bool = False,
) -> bool:
    """Set the implementations of a T5, the only place that decides about compilation; logs what is not possible.

    Args:
        device_type: where it will run: cpu, cuda, …
        compile, attention, reference_ops, recompute: the settings of these names (`config.stage`).

    Returns:
        Whether its blocks are compiled.
    """
    compiled = use_compiler(compile, device_type)
    t5.set_execution(reference_ops, recompute, compiled, use_flex(attention, compiled, device_type))
    return compiled
