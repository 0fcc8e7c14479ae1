"""Multitask prompt tuning (Wang et al. 2023): prompts of several tasks that share one, from which other tasks start.

    P_k = P* ∘ (u_k·v_kᵀ)     for each source task k
    P   = P* ∘ (ū·v̄ᵀ)         at the start of a target task, with ū, v̄ the means over the source tasks

    task_prompts.json {"format": 1, "folders": ["rte", "sst2"], "step": 2000, "scores": {…}}
    shared.safetensors                          P*, ū and v̄
    rte/prompt.json rte/prompt.safetensors  …   P_k, prompts that can also be used alone

P rows of the prompt, D d_model, K tasks
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, ClassVar, Literal, NamedTuple

from pydantic import Field
from safetensors.torch import save_file
from torch import Tensor, float32

from t5_pipeline.artifacts.artifact import Artifact
from t5_pipeline.core.errors import InputError
from t5_pipeline.core.records import Record
from t5_pipeline.methods.base import Candidate
from t5_pipeline.methods.soft_prompt import Prompt, described, vote_group
from t5_pipeline.modeling.reparametrization import scaled_rows
from t5_pipeline.modeling.safetensors_dir import read_file_tensors

SHARED = "shared.safetensors"


class TaskPromptsInfo(Record):
    """task_prompts.json."""

    file_name: ClassVar[str] = "task_prompts.json"
    what: ClassVar[str] = "a folder of prompts that share one"
    repair: ClassVar[str] = "run prompt_multitask again to rebuild it"

    format: Literal[1] = 1
    folders: list[Annotated[str, Field(pattern="^[A-Za-z0-9_@+][A-Za-z0-9_.@+-]*$")]] = Field(min_length=1)
    step: int
    scores: dict[str, float]


class SharedPrompt(NamedTuple):
    """P* [P, D] and the means of the factors of the source tasks, ū [P] and v̄ [D], in fp32."""

    shared_PD: Tensor
    u_P: Tensor
    v_D: Tensor

    @classmethod
    def of(cls, trained: Mapping[str, Tensor]) -> SharedPrompt:
        """From the trained parameters of a `SharedBank` by name."""
        return cls(trained["shared_PD"], trained["u_KP"].mean(dim=0), trained["v_KD"].mean(dim=0))

    def rows(self) -> Tensor:
        return scaled_rows(*self)

    def save(self, directory: str | Path) -> None:
        tensors = {name: tensor.float().cpu().contiguous() for name, tensor in self._asdict().items()}
        save_file(tensors, Path(directory) / SHARED, metadata={"format": "pt"})

    @classmethod
    def load(cls, directory: str | Path) -> SharedPrompt:
        """Read the shared prompt of a folder.

        Raises:
            InputError: if the file is missing or damaged.
        """
        path, repair = Path(directory) / SHARED, TaskPromptsInfo.repair
        tensors = read_file_tensors(path, repair)
        shapes = {name: list(tensor.shape) for name, tensor in tensors.items() if tensor.dtype == float32}
        rows = shapes.get("shared_PD", [])
        if len(rows) != 2 or shapes != {"shared_PD": rows, "u_P": rows[:1], "v_D": rows[1:]}:
            raise InputError(f"{path}: contains {shapes} instead of a shared prompt and its factors in fp32; {repair}")
        if not all(bool(tensor.isfinite().all()) for tensor in tensors.values()):
            raise InputError(f"{path}: contains numbers that are not finite; {repair}")
        return cls(**tensors)


@dataclass(frozen=True)
class TaskPrompts:
    """Prompts of several tasks on one frozen T5, and the one that they share."""

    prompts: Sequence[Prompt]
    shared: SharedPrompt
    step: int = 0
    scores: dict[str, float] = field(default_factory=dict)

    def save(self, directory: str | Path) -> None:
        folders = folder_names([prompt.info.task.name for prompt in self.prompts])
        for folder, prompt in zip(folders, self.prompts, strict=True):
            prompt.save(Path(directory) / folder)
        self.shared.save(directory)
        TaskPromptsInfo(folders=folders, step=self.step, scores=self.scores).save(directory)


def folder_names(tasks: Sequence[str]) -> list[str]:
    """A directory name for each task.

    >>> folder_names(["rte", "glue/rte", "glue rte"])
    ['rte', 'glue-rte', 'glue-rte-2']
    """
    found: list[str] = []
    for task in tasks:
        kept = (c if c.isascii() and (c.isalnum() or c in "_.@+-") else "-" for c in task)
        name = "".join(kept).lstrip(".-")[:60] or "task"
        count = next(n for n in range(1, len(tasks) + 1) if (name if n == 1 else f"{name}-{n}") not in found)
        found.append(name if count == 1 else f"{name}-{count}")
    return found


def candidates(artifact: Artifact) -> Iterator[Candidate]:
    """One candidate for each task; its artifact is the folder of its prompt."""
    folders = TaskPromptsInfo.load(artifact.path).folders
    for folder in folders:
        prompt = Prompt.load(artifact.path / folder)
        about = described(prompt.info) | {"trained": prompt.rows_PD.numel(), "step": prompt.info.step}
        variant = f"on {len(folders)} tasks"
        yield Candidate.of(
            "multitask prompt tuning", replace(artifact, path=artifact.path / folder), prompt.info,
            {**about, "variant": variant}, prompts=[prompt.rows_PD],
            vote_group=vote_group(f"multitask prompt tuning {variant}", artifact, prompt.info),
        )  # fmt: skip
