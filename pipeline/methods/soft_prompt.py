"""A prompt on disk: `prompt.safetensors` (a few KB of fp32) and `prompt.json`, enough to rebuild its inputs anywhere.

fp32 because the rows of trained prompts grow large (norms around 1,000), which fp16 cannot be trusted with.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, float32

from t5_pipeline.config.tuning import SoftPromptConfig
from t5_pipeline.core.errors import InputError
from t5_pipeline.data_prep.tasks.config import TaskConfig

FORMAT = 1
ROWS = "prompt"  # the tensor's name in prompt.safetensors

SentinelVariant = Literal["none", "targets", "both"]


class PromptInfo(BaseModel):
    """What prompt.json says: all that is needed, beside the rows, to use the prompt as it was trained."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    format: Literal[1] = 1
    base_model: str = Field(description="name or path of the T5 that the prompt was trained on")
    base_model_digest: str = Field(description="digest of that T5's tensors")
    tokenizer_digest: str = Field(description="digest of the vocabulary")
    task: TaskConfig = Field(description="the task: its templates, labels and metrics")
    sentinel: SentinelVariant = Field(
        description="where extra_id_0 stands: nowhere, before targets, or after inputs too"
    )
    prompt_length: int = Field(gt=0, description="rows")
    width: int = Field(gt=0, description="numbers in a row: the T5's d_model")
    max_input_length: int = Field(gt=0, description="input tokens beside the prompt, EOS counted; longer ones are cut")
    max_target_length: int = Field(gt=0, description="target tokens, EOS counted")
    prompt_init: str = Field(description="how the rows started")
    seed: int = Field(ge=0)
    step: int = Field(ge=0, description="optimizer steps of training")
    scores: dict[str, float] = Field(default_factory=dict, description="metric → value on the validation split")

    @classmethod
    def tuned(cls, c: SoftPromptConfig, **more: Any) -> PromptInfo:
        """Of a prompt tuned with these settings; `more` is what they do not say: T5, vocabulary, width, step."""
        same = ("task", "prompt_length", "max_input_length", "max_target_length", "prompt_init", "seed")
        return cls(**{name: getattr(c, name) for name in same} | more)


class Prompt:
    """A prompt's rows, fp32 [P, D], and what must be known to use them."""

    def __init__(self, rows_PD: Tensor, info: PromptInfo) -> None:
        if tuple(rows_PD.shape) != (info.prompt_length, info.width):
            raise ValueError(f"rows {list(rows_PD.shape)} do not fit {info.prompt_length} × {info.width}")
        self.rows_PD = rows_PD.detach().float().cpu().contiguous()
        self.info = info

    def save(self, directory: str | Path) -> None:
        """Write prompt.safetensors and prompt.json into a directory, which is made where it is not there."""
        directory = Path(directory)
        directory.mkdir(parents=True, exist_ok=True)
        save_file({ROWS: self.rows_PD}, directory / "prompt.safetensors", metadata={"format": "pt"})
        content = json.dumps(self.info.model_dump(mode="json"), indent=2, ensure_ascii=False)
        (directory / "prompt.json").write_text(content + "\n", encoding="utf-8")

    @classmethod
    def load(cls, directory: str | Path) -> Prompt:
        """Read a prompt back. Raises InputError that names the file and, in prompt.json, the key that is wrong."""
        directory = Path(directory)
        rows_path, info_path = directory / "prompt.safetensors", directory / "prompt.json"
        for path in (info_path, rows_path):
            if not path.is_file():
                raise InputError(f"{path}: not there, so {directory} is no prompt; give a directory that holds one")
        info = _read_info(info_path)
        try:
            tensors = load_file(rows_path)
        except SafetensorError as error:
            raise InputError(f"{rows_path}: not a whole safetensors file ({error}); write or copy it again") from error
        if list(tensors) != [ROWS]:
            raise InputError(f"{rows_path}: holds {sorted(tensors)} where one tensor named {ROWS!r} is needed")
        rows_PD = tensors[ROWS]
        if tuple(rows_PD.shape) != (info.prompt_length, info.width) or rows_PD.dtype != float32:
            raise InputError(
                f"{rows_path}: {rows_PD.dtype} {list(rows_PD.shape)}, but {info_path.name} says"
                f" {info.prompt_length} rows of width {info.width} in float32; the two files do not belong together"
            )
        if not bool(rows_PD.isfinite().all()):
            raise InputError(f"{rows_path}: holds numbers that are not finite; the training that wrote it has failed")
        return cls(rows_PD, info)


def _read_info(path: Path) -> PromptInfo:
    try:
        content: Any = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not valid JSON ({error})") from error
    if isinstance(content, dict) and content.get("format") != FORMAT:
        raise InputError(
            f"{path}: format {content.get('format')!r}, but this version reads format {FORMAT}; write the prompt again"
            " with the version you use"
        )
    try:
        return PromptInfo.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"]) or "the whole file"
        raise InputError(f"{path}: {key}: {first['msg']}") from error
