"""Export and import of prompts.

    PEFT   adapter_model.safetensors with "prompt_embeddings" [P, D], and adapter_config.json
    .npy   float32 [P, D], as published by the official implementation of the paper

Only safetensors, JSON and plain arrays are read; nothing is unpickled.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from t5_pipeline.artifacts.collection import read_each
from t5_pipeline.artifacts.kinds import PEFT_CONFIG, PEFT_WEIGHTS, named_prompts
from t5_pipeline.config.references import load_task
from t5_pipeline.core import bounded
from t5_pipeline.core.atomic_files import STDOUT, is_stream, write_directory, write_output
from t5_pipeline.core.errors import InputError
from t5_pipeline.core.paths import refuse_to_replace
from t5_pipeline.core.printable import say
from t5_pipeline.core.schema import Sentinel
from t5_pipeline.data_prep.tasks.encode import check_labels
from t5_pipeline.data_prep.tasks.task import Task
from t5_pipeline.methods.soft_prompt import Prompt, PromptInfo
from t5_pipeline.modeling.model_metadata import read_metadata
from t5_pipeline.modeling.safetensors_dir import read_file_tensors
from t5_pipeline.serving.frozen_t5 import FrozenT5

PEFT_ROWS = "prompt_embeddings"
BASE = "base_model_digest"  # in the metadata of adapters exported here
ASSUMED_INPUT, ASSUMED_TARGET = 512, 128
"""Maximum tokens of inputs and targets of an imported prompt, unless they are given: neither format records them."""
_REPAIR = "download or save the adapter again"


# --------------------------------------------------------------------------------------------------------- export


def write_npy(prompt: Prompt, path: Path) -> None:
    """Write the rows as float32 [P, D]."""
    content = io.BytesIO()
    np.save(content, prompt.rows_PD.numpy(), allow_pickle=False)
    write_output(path, content.getvalue())


def write_peft(prompt: Prompt, directory: Path, base_model: str | None = None) -> None:
    """Write a PEFT prompt-tuning adapter for T5, to be loaded by `PeftModel.from_pretrained(t5, directory)`.

    `num_transformer_submodules` is 1: PEFT's default of 2 doubles the table with unused rows.

    Args:
        base_model: name or path of the T5 for users of the adapter (default: as recorded in the prompt).
    """
    info = prompt.info
    config = {
        "peft_type": "PROMPT_TUNING",
        "task_type": "SEQ_2_SEQ_LM",
        "base_model_name_or_path": base_model or info.base_model,
        "inference_mode": True,
        "num_virtual_tokens": info.prompt_length,
        "token_dim": info.width,
        "num_transformer_submodules": 1,
        "prompt_tuning_init": "RANDOM",
    }
    directory.mkdir(parents=True, exist_ok=True)
    save_file({PEFT_ROWS: prompt.rows_PD}, directory / PEFT_WEIGHTS, {"format": "pt", BASE: info.base_model_digest})
    (directory / PEFT_CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def export_prompts(location: str, form: str, output: str, base_model: str | None = None) -> list[Path]:
    """Write every prompt at a location as "peft" or "npy": a single one to `output`, several into it by name.

    Returns:
        The written paths.

    Raises:
        InputError: if there is no prompt, prompts are damaged (it names every one), or an output already exists.
    """
    prompts = read_each(location, named_prompts(location, "DIR"), lambda _, path: Prompt.load(path)).complete()
    npy, streamed = form == "npy", output == STDOUT or is_stream(Path(output))
    if len(prompts) == 1:
        to = dict.fromkeys(prompts, Path(output))
        if npy and not streamed and Path(output).suffix != ".npy":
            raise InputError(f"--output: {output} does not end in .npy; name the output file, or give - for stdout")
    elif streamed:
        raise InputError(f"--output: {output} takes one prompt, but {location} has {len(prompts)}; give a directory")
    else:
        to = {name: Path(output) / f"{name}{'.npy' if npy else ''}" for name in prompts}
    if not npy and output == STDOUT:
        raise InputError("--output: a PEFT adapter is a directory; give its path, not -")
    if len(to) > 1 and Path(output).exists() and not Path(output).is_dir():
        raise InputError(f"--output: {output} is a file, but {location} has {len(to)} prompts; give a directory")
    if not (npy and streamed):
        for path in to.values():
            refuse_to_replace(path)
    for name, prompt in prompts.items():
        to[name].parent.mkdir(parents=True, exist_ok=True)
        if npy:
            write_npy(prompt, to[name])
        else:
            write_directory(to[name], partial(write_peft, prompt, base_model=base_model))
    return list(to.values())


# ---------------------------------------------------------------------------------------------------------- import


def read_npy(path: Path) -> Tensor:
    """Read rows [P, D] as fp32.

    Raises:
        InputError: if the file is not a plain array of floating-point rows.
    """
    try:
        rows_PD = bounded.read_npy(path)
    except FileNotFoundError:
        raise InputError(f"{path}: does not exist; check the path") from None
    except (ValueError, OSError, EOFError) as error:
        raise InputError(f"{path}: is not a plain .npy array ({error}); pickled objects are not read") from None
    if rows_PD.ndim != 2 or rows_PD.dtype.kind != "f" or 0 in rows_PD.shape:
        found = f"{rows_PD.dtype} {list(rows_PD.shape)}"
        raise InputError(f"{path}: contains {found}; give the rows of one prompt, floating point [P, D]")
    return torch.from_numpy(rows_PD.astype(np.float32))


def read_peft(directory: Path) -> Tensor:
    """Read the encoder's rows [P, D] of a PEFT prompt-tuning adapter as fp32; T5 does not use rows for a decoder.

    Raises:
        InputError: if there is no adapter, it is of another method, or its weights are pickled.
    """
    directory = _adapter_directory(directory)
    config_path, weights = directory / PEFT_CONFIG, directory / PEFT_WEIGHTS
    if not config_path.exists():
        raise InputError(f"{directory}: contains no {PEFT_CONFIG}; give the directory of a PEFT adapter")
    config = bounded.read_object(config_path, _REPAIR)
    if config.get("peft_type") != "PROMPT_TUNING":
        raise InputError(
            f"{config_path}: peft_type {config.get('peft_type')!r} is not a prompt; only PROMPT_TUNING is supported"
        )
    if not weights.is_file() and (directory / "adapter_model.bin").is_file():
        raise InputError(
            f"{directory / 'adapter_model.bin'}: is a pickle, which is not read; save the adapter again with"
            " safe_serialization=True"
        )
    if not weights.is_file():
        raise InputError(f"{directory}: contains no {PEFT_WEIGHTS}; give the directory of a PEFT adapter")
    tensors = read_file_tensors(weights, "download or save it again")
    rows_RD, p = tensors.get(PEFT_ROWS), config.get("num_virtual_tokens")
    if len(tensors) != 1 or rows_RD is None or rows_RD.ndim != 2 or not rows_RD.is_floating_point():
        raise InputError(f"{weights}: contains {sorted(tensors)}; an adapter for T5 has one table {PEFT_ROWS!r}")
    # Without `num_transformer_submodules: 1` a table has 2P rows, the encoder's first.
    if not isinstance(p, int) or p < 1 or len(rows_RD) not in (p, 2 * p):
        raise InputError(
            f"{weights}: has {len(rows_RD)} rows, but {PEFT_CONFIG} says num_virtual_tokens {p}; use the two files"
            " of one adapter"
        )
    return rows_RD[:p].float().contiguous()


def _adapter_directory(path: Path) -> Path:
    """The directory of an adapter, of which `path` may be a file."""
    return path.parent if path.name in (PEFT_WEIGHTS, PEFT_CONFIG) else path


def adapter_base(adapter: Path) -> tuple[str | None, str | None]:
    """Name and digest of the T5 that an adapter records; None for one that it does not record."""
    named = bounded.read_object(adapter / PEFT_CONFIG, _REPAIR).get("base_model_name_or_path")
    with safe_open(adapter / PEFT_WEIGHTS, framework="pt") as opened:
        return named, (opened.metadata() or {}).get(BASE)


def check_base(adapter: Path, model: str, t5: FrozenT5) -> None:
    """Compare the T5 of an adapter with the given one; warns if only the names can be compared and differ.

    Args:
        adapter: directory of the adapter.
        model: the given T5, as on the command line.
        t5: the same T5.

    Raises:
        OtherModel: if the adapter records another digest.
    """
    named, recorded = adapter_base(adapter)
    if recorded is not None:
        t5.check(f"{adapter}:", model=str(named), digest=recorded)
    elif named not in (None, "", model, str(t5.path)):
        say(
            f"{adapter / PEFT_CONFIG}: was trained on {named} (base_model_name_or_path), and --model is {model}; their"
            " answers agree only if both are the same T5"
        )


_READERS: Mapping[str, Callable[[Path], Tensor]] = {"peft": read_peft, "npy": read_npy}


def read_rows(source: Path, form: str) -> Tensor:
    """Read rows [P, D] as fp32.

    Args:
        form: "peft" or "npy".

    Raises:
        InputError: if the file cannot be read, or its numbers are not finite as `Prompt.load` requires.
    """
    rows_PD = _READERS[form](source)
    if not bool(rows_PD.bfloat16().isfinite().all()):
        raise InputError(f"{source}: contains non-finite numbers; download or train the prompt again")
    return rows_PD


def import_prompt(
    source: str,
    form: str,
    *,
    model: str,
    task: str,
    output: str,
    sentinel: Sentinel | None = None,
    max_input_length: int | None = None,
    max_target_length: int | None = None,
) -> Prompt:
    """Read rows in another format and write them as a prompt of a T5 and a task. Says which settings it assumed.

    Args:
        source: adapter directory or .npy file.
        form: "peft" or "npy".
        model: the T5 that the prompt was trained on: directory, stage directory or hub name.
        task: YAML file with the task's settings, as for `--task` of prompt_tune.
        sentinel: position of extra_id_0 in training (default: as the model expects).
        max_input_length, max_target_length: tokens in training (default: `ASSUMED_INPUT`, `ASSUMED_TARGET`).

    Raises:
        InputError: if a file cannot be read, or the rows do not fit the model.
    """
    if output == STDOUT:
        raise InputError("--output: a prompt is a directory; give its path, not -")
    refuse_to_replace(Path(output))
    rows_PD = read_rows(Path(source), form)
    settings = load_task(Path(task))
    Task.load(settings)
    t5 = FrozenT5.find(model)
    t5.check_width(f"{source}:", rows_PD.size(1))
    if form == "peft":
        check_base(_adapter_directory(Path(source)), model, t5)
    vocabulary, assumed = t5.vocabulary, []
    if max_input_length is None:
        max_input_length = ASSUMED_INPUT
        assumed.append(f"at most {max_input_length} input tokens (--max-input-length)")
    if max_target_length is None:
        max_target_length = ASSUMED_TARGET
        assumed.append(f"at most {max_target_length} target tokens (--max-target-length)")
    if sentinel is None:
        sentinel = read_metadata(t5.path).sentinel
        assumed.append(f"sentinel {sentinel} as in {t5.path} (--sentinel)")
    check_labels(settings, vocabulary, max_target_length, sentinel)
    info = PromptInfo(
        base_model=str(t5.path),
        base_model_digest=t5.digest,
        tokenizer_digest=vocabulary.digest,
        task=settings,
        sentinel=sentinel,
        prompt_length=len(rows_PD),
        width=t5.width,
        max_input_length=max_input_length,
        max_target_length=max_target_length,
        prompt_init=f"imported from {form}",
        seed=0,
        step=0,
    )
    prompt = Prompt(rows_PD, info)
    write_directory(Path(output), prompt.save)
    if assumed:
        say(
            f"{output}: assumed {', '.join(assumed)}, because {source} does not record it; if the prompt was trained"
            " otherwise, import it again with these flags"
        )
    return prompt
