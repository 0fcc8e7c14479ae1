"""Model tuning as a method (Lester et al. 2021, §3): a published T5 whose metadata lists the tasks it was tuned on."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from t5_pipeline.artifacts.artifact import Artifact
from t5_pipeline.core.errors import InputError
from t5_pipeline.methods.base import Candidate
from t5_pipeline.modeling.model_metadata import read_metadata


def candidates(artifact: Artifact) -> Iterator[Candidate]:
    """One candidate for each task that a model was tuned on.

    Raises:
        InputError: if it was not tuned on any task.
    """
    metadata = read_metadata(artifact.path)
    if not metadata.tasks:
        raise InputError(f"{artifact.path}: was not tuned on a task; give a model that model_tune published")
    for tuned in metadata.tasks:
        about: dict[str, Any] = {"seed": tuned.seed, "step": metadata.lineage[-1].step, "trained": tuned.trained}
        if len(metadata.tasks) > 1:
            about["variant"] = f"on {len(metadata.tasks)} tasks"
        yield Candidate(
            method="model tuning",
            artifact=artifact,
            task=tuned.task,
            model=tuned.base_model,
            digest=artifact.digest,
            sentinel=metadata.sentinel,
            max_input_length=tuned.max_input_length,
            max_target_length=tuned.max_target_length,
            about=about,
            fine_tuned=True,
        )
