"""What evaluate scores: prompts and everything they are compared with, as one type.

A solution answers a task on one T5. What sets methods apart is how inputs are worded and who answers them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from t5_pipeline.core.errors import InputError
from t5_pipeline.core.schema import Sentinel
from t5_pipeline.data_prep.tasks.config import TaskConfig
from t5_pipeline.execution.context import Artifact
from t5_pipeline.methods.mixture import Mixture
from t5_pipeline.methods.peft import AdapterInfo
from t5_pipeline.methods.soft_prompt import Prompt
from t5_pipeline.methods.text_prompt import TextPrompt
from t5_pipeline.modeling.model_dir import read_metadata


@dataclass(frozen=True)
class Candidate:
    """One row of scores in the making.

    Attributes:
        model, digest: the T5 that answers, as the solution's own record names it.
        about: what its row of scores.json says beside the scores.
        prompts: soft prompts, one or those of a mixture; `weights` are a mixture's.
        words: a prompt in words. `adapter`: where PEFT's adapter lies.
        tuned: the model answers for itself, for it was tuned on the task.
    """

    method: str
    artifact: Artifact
    task: TaskConfig
    model: str
    digest: str
    sentinel: Sentinel
    max_input_length: int
    max_target_length: int
    about: dict[str, Any] = field(default_factory=dict)
    prompts: list[Prompt] = field(default_factory=list)
    weights: list[float] = field(default_factory=list)
    words: TextPrompt | None = None
    adapter: Path | None = None
    tuned: bool = False

    @property
    def name(self) -> str:
        return self.artifact.cell or self.artifact.name

    @property
    def single(self) -> bool:
        """One soft prompt: such ones are answered together, and vote."""
        return len(self.prompts) == 1 and not self.weights

    def alike(self, other: Candidate) -> bool:
        """Prompts that differ in nothing but their seed, and what followed from it."""
        mine, theirs = (one.prompts[0].info.model_dump(exclude={"seed", "step", "scores"}) for one in (self, other))
        return bool(mine == theirs) and _axes(self) == _axes(other)


def _axes(solution: Candidate) -> list[str]:
    return [axis for axis in (solution.artifact.cell or "").split(",") if not axis.startswith("seed=")]


def load_candidates(kind: str, artifact: Artifact) -> Iterator[Candidate]:
    """What one artifact of an input of evaluate holds.

    Args:
        kind: the input's name: prompts, tuned_models, mixtures, text_prompts or adapters.

    Raises:
        InputError: it is damaged, or a model that was tuned on no task.
    """
    match kind:
        case "prompts":
            prompt = Prompt.load(artifact.path)
            yield _of_prompts("prompt tuning", artifact, [prompt], step=prompt.info.step)
        case "mixtures":
            mixture = Mixture.load(artifact.path)
            variant = f"{len(mixture.prompts)} prompts"
            trained = sum(prompt.rows_PD.numel() + 1 for prompt in mixture.prompts)
            yield _of_prompts(
                "prompt mixture", artifact, mixture.prompts, mixture.weights,
                variant=variant, step=mixture.step, trained=trained,
            )  # fmt: skip
        case "text_prompts":
            words = TextPrompt.load(artifact.path)
            shots = len(words.demonstrations)
            about = {"seed": words.seed, "variant": f"{shots} shots" if shots else "zero-shot", "trained": 0}
            yield Candidate(
                "prompt design", artifact, words.task, words.base_model, words.base_model_digest, words.sentinel,
                words.max_input_length, words.max_target_length, about, words=words,
            )  # fmt: skip
        case "adapters":
            info = AdapterInfo.load(artifact.path)
            method = {"prefix_tuning": "prefix tuning", "p_tuning": "P-tuning"}[info.method]
            about = {"seed": info.seed, "prompt_length": info.virtual_tokens, "step": info.step}
            yield Candidate(
                method, artifact, info.task, info.base_model, info.base_model_digest, info.sentinel,
                info.max_input_length, info.max_target_length, about | {"trained": info.trained}, adapter=artifact.path,
            )  # fmt: skip
        case "tuned_models":
            metadata = read_metadata(artifact.path)
            if not metadata.tasks:
                raise InputError(f"{artifact.path}: was tuned on no task; tuned_models takes what model_tune made")
            names = [of["task"]["name"] for of in metadata.tasks]
            for of in metadata.tasks:
                about = {"seed": of["seed"], "step": metadata.lineage[-1].get("step"), "trained": of["trained"]}
                about |= {"variant": f"on {len(names)} tasks"} if len(names) > 1 else {}
                task = TaskConfig.model_validate(of["task"])
                yield Candidate(
                    "model tuning", artifact, task, of["base_model"], artifact.digest, metadata.sentinel,
                    of["max_input_length"], of["max_target_length"], about, tuned=True,
                )  # fmt: skip


def _of_prompts(
    method: str, artifact: Artifact, prompts: list[Prompt], weights: list[float] | None = None, **about: Any
) -> Candidate:
    info = prompts[0].info
    described = {"seed": info.seed, "prompt_length": info.prompt_length, "prompt_init": info.prompt_init}
    return Candidate(
        method, artifact, info.task, info.base_model, info.base_model_digest, info.sentinel, info.max_input_length,
        info.max_target_length, {**described, "trained": prompts[0].rows_PD.numel(), **about}, prompts, weights or [],
    )  # fmt: skip


def scored_on(solution: Candidate, own: TaskConfig, also_on: list[TaskConfig]) -> list[TaskConfig]:
    """The tasks that a solution is scored on: its own, and others with the same answers (domain shift)."""
    others = [task for task in also_on if task.name != own.name and task.labels == own.labels]
    return [own, *others]


def check_also_on(solutions: list[Candidate], also_on: list[TaskConfig]) -> None:
    """
    Raises:
        InputError: nothing that is scored can answer one of the tasks.
    """
    for task in also_on:
        if not any(solution.task.labels == task.labels for solution in solutions):
            there = "; ".join(sorted({f"{s.task.name}: {_labels(s.task)}" for s in solutions}))
            raise InputError(
                f"also_on: nothing scored here was made for the answers of {task.name} ({_labels(task)}); there are"
                f" {there}. Let `values` give its labels the same words"
            )


def _labels(task: TaskConfig) -> str:
    return ", ".join(task.labels) if task.labels else "free text"
