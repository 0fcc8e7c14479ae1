"""A soft prompt on disk: `prompt.safetensors` (a few KB of fp32), and `prompt.json` with all that inputs depend on.

fp32 because the rows of trained prompts grow large (norms around 1,000), too large for fp16.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field
from safetensors.torch import save_file
from torch import Tensor, float32

from t5_pipeline.artifacts.artifact import Artifact
from t5_pipeline.config.soft_prompt import SoftPromptConfig
from t5_pipeline.config.sweep import without_seed
from t5_pipeline.core.errors import InputError
from t5_pipeline.core.records import Record
from t5_pipeline.core.schema import Sentinel
from t5_pipeline.data_prep.tasks.config import TaskConfig
from t5_pipeline.methods.base import Candidate
from t5_pipeline.modeling.safetensors_dir import read_file_tensors

WEIGHTS = "prompt.safetensors"
ROWS = "prompt"  # the tensor's name in it


class PromptInfo(Record):
    """prompt.json: all that is needed, besides the rows, to use a prompt as it was trained."""

    file_name: ClassVar[str] = "prompt.json"
    what: ClassVar[str] = "a prompt"
    repair: ClassVar[str] = "run prompt_tune again to rebuild it"

    format: Literal[1] = 1
    base_model: str = Field(description="name or path of the T5 that the prompt was trained on")
    base_model_digest: str = Field(description="digest of that T5")
    tokenizer_digest: str = Field(description="digest of the vocabulary")
    task: TaskConfig = Field(description="the task: its templates, labels and metrics")
    sentinel: Sentinel = Field(description="use of extra_id_0: none, before targets, or also after inputs")
    prompt_length: int = Field(gt=0, description="rows")
    width: int = Field(gt=0, description="numbers per row: the T5's d_model")
    max_input_length: int = Field(gt=0, description="input tokens besides the prompt, with EOS; longer inputs are cut")
    max_target_length: int = Field(gt=0, description="target tokens, with EOS")
    prompt_init: str = Field(description="initialization of the rows")
    seed: int = Field(ge=0)
    step: int = Field(ge=0, description="optimizer steps of training")
    scores: dict[str, float] = Field(default_factory=dict, description="metric → value on the validation split")

    @classmethod
    def tuned(cls, c: SoftPromptConfig, **more: Any) -> PromptInfo:
        """The record of a prompt tuned with these settings; `more` are the remaining fields, with `task` if several."""
        same = ("prompt_length", "max_input_length", "max_target_length", "prompt_init", "seed")
        return cls(**{"task": c.made_for()[0], **{name: getattr(c, name) for name in same}} | more)


class Prompt:
    """A prompt's rows, fp32 [P, D], and its record."""

    def __init__(self, rows_PD: Tensor, info: PromptInfo) -> None:
        if tuple(rows_PD.shape) != (info.prompt_length, info.width):
            raise ValueError(f"rows {list(rows_PD.shape)} do not fit {info.prompt_length} × {info.width}")
        self.rows_PD = rows_PD.detach().float().cpu().contiguous()
        self.info = info

    def save(self, directory: str | Path) -> None:
        """Write prompt.safetensors and prompt.json into a directory, which is created if needed."""
        directory = Path(directory)
        directory.mkdir(parents=True, exist_ok=True)
        save_file({ROWS: self.rows_PD}, directory / WEIGHTS, metadata={"format": "pt"})
        self.info.save(directory)

    @classmethod
    def load(cls, directory: str | Path) -> Prompt:
        """Read a prompt.

        Raises:
            InputError: if a file is missing or damaged, or the two do not belong together.
        """
        info, path = PromptInfo.load(directory), Path(directory) / WEIGHTS
        tensors = read_file_tensors(path, info.repair)
        if list(tensors) != [ROWS]:
            raise InputError(f"{path}: contains {sorted(tensors)} instead of one tensor {ROWS!r}; {info.repair}")
        rows_PD = tensors[ROWS]
        if tuple(rows_PD.shape) != (info.prompt_length, info.width) or rows_PD.dtype != float32:
            raise InputError(
                f"{path}: {rows_PD.dtype} {list(rows_PD.shape)}, but {info.file_name} says {info.prompt_length} rows"
                f" of width {info.width} in float32; use the file that belongs to it"
            )
        rows_PD = rows_PD.clone()  # it is the mapped file, which may be overwritten or cut, and that ends the process
        if not bool(rows_PD.bfloat16().isfinite().all()):  # which rounds the largest numbers of fp32 to infinity
            raise InputError(f"{path}: contains numbers that are not finite; train the prompt again")
        return cls(rows_PD, info)


def candidates(artifact: Artifact) -> Iterator[Candidate]:
    prompt = Prompt.load(artifact.path)
    rows_PD, info = prompt.rows_PD, prompt.info
    yield Candidate.of(
        "prompt tuning", artifact, info, {**described(info), "trained": rows_PD.numel(), "step": info.step},
        prompts=[rows_PD], vote_group=vote_group("prompt tuning", artifact, info),
    )  # fmt: skip


def vote_group(method: str, artifact: Artifact, info: PromptInfo) -> str:
    """The same text for prompts of one method that differ only in their seed, as far as is known.

    prompt.json does not contain all settings of training. Those of a prompt with a manifest are compared too.
    """
    record = info.model_dump(mode="json", exclude={"base_model", "seed", "step", "scores"})
    return json.dumps([method, without_seed(artifact.origin.cell), artifact.settings_digest, record], sort_keys=True)


def described(info: PromptInfo) -> dict[str, Any]:
    """Entries of scores.json about a prompt."""
    return {"seed": info.seed, "prompt_length": info.prompt_length, "prompt_init": info.prompt_init}
