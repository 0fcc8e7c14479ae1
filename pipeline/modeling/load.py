"""Where a T5 comes from and how it is published: read, started from nothing, or written as a plain directory.

A published model is what transformers' `save_pretrained` writes: config.json, generation_config.json and safetensors.
Models that are not tied are not tied in any path: built, loaded, saved and loaded again.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Literal

import torch
from huggingface_hub import split_torch_state_dict_into_shards
from safetensors.torch import save_file
from torch import Tensor, nn

from t5_pipeline.core.errors import InputError
from t5_pipeline.modeling.config import T5Config
from t5_pipeline.modeling.hub import fetch_model
from t5_pipeline.modeling.safetensors_dir import INDEX, WEIGHTS, read_shape, read_tensors
from t5_pipeline.modeling.t5 import T5


def locate_model(location: str | Path) -> Path:
    """The local directory of a model: the given one, or the snapshot of the hub model of that name.

    Raises InputError where there is neither.
    """
    return Path(location) if Path(location).is_dir() else fetch_model(str(location))


def load_t5(location: str | Path, dtype: torch.dtype = torch.float32) -> T5:
    """The T5 in a local directory, or of that name on the Hugging Face hub (safetensors only), on the CPU.

    A directory may also be, or hold, a T5X checkpoint.

    Raises InputError for what is not there, not safetensors, or does not fit its own config.json: tensors that are
    missing, too many or of another shape are named.
    """
    directory = locate_model(location)
    shape = read_shape(directory)
    # A copy of each tensor: the files stay untouched and unneeded, and only one tensor is in memory twice.
    tensors = {name: tensor.to(dtype, copy=True) for name, tensor in read_tensors(directory, shape)}
    return assemble(shape, tensors, where=str(directory))


def assemble(shape: T5Config, tensors: Mapping[str, Tensor], where: str) -> T5:
    """A T5 that holds exactly these tensors (not copies of them). `where` names their origin in errors."""
    with torch.device("meta"):
        model = T5(shape)
    expected = model.state_dict()
    missing = sorted(expected.keys() - tensors.keys())
    extra = sorted(tensors.keys() - expected.keys())
    misshapen = [
        f"{name} {list(tensors[name].shape)} instead of {list(expected[name].shape)}"
        for name in expected
        if name in tensors and tensors[name].shape != expected[name].shape
    ]
    problems = {"missing": missing, "not of this architecture": extra, "of another shape": misshapen}
    if any(problems.values()):
        named = "; ".join(f"{kind}: {_few(names)}" for kind, names in problems.items() if names)
        raise InputError(f"{where}: the weights do not fit the model's sizes. Tensors {named}")
    model.load_state_dict(tensors, assign=True)
    check_untied(model, shape)
    return model


def init_t5(shape: T5Config, seed: int) -> T5:
    """A T5 to start from nothing, in fp32: Mesh-TF's initialisation (Raffel et al. 2020; also T5X's, in scale).

    Normal with standard deviation 1 for embeddings; (D·K)^−½ for q, which stands for the unscaled scores; D^−½ for
    k, v, the feed-forward's input side and the position biases; (H·K)^−½ for o; F^−½ for the feed-forward's output.
    An untied output matrix gets D^−½ (fan-in, as in Mesh-TF and T5X), so that logits start with unit variance;
    transformers gives it 1.
    """
    D = shape.d_model
    deviation = {
        "shared": 1.0,
        "q": (D * shape.d_kv) ** -0.5,
        "k": D**-0.5,
        "v": D**-0.5,
        "o": (shape.num_heads * shape.d_kv) ** -0.5,
        "relative_attention_bias": D**-0.5,
        "wi": D**-0.5,
        "wi_0": D**-0.5,
        "wi_1": D**-0.5,
        "wo": shape.d_ff**-0.5,
        "lm_head": D**-0.5,
    }
    with torch.device("meta"):
        model = T5(shape)
    model.to_empty(device="cpu")
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            kind = name.split(".")[-2]
            if kind.endswith("layer_norm"):
                parameter.fill_(1.0)
            else:
                parameter.normal_(0.0, deviation[kind], generator=generator)
    return model


def save_t5(
    model: T5, directory: str | Path, tensors: Mapping[str, Tensor] | None = None, max_shard_size: str = "5GB"
) -> None:
    """Write a plain transformers directory, in shards with an index where the weights exceed `max_shard_size`.

    tensors: the whole state, where an engine has sharded the model's own; the model then gives only its shape.
    """
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    state = model.state_dict() if tensors is None else tensors
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
    _write_json(directory / "config.json", model.shape.to_config())
    _write_json(
        directory / "generation_config.json", {"decoder_start_token_id": 0, "eos_token_id": 1, "pad_token_id": 0}
    )
    split = split_torch_state_dict_into_shards(
        state, filename_pattern="model{suffix}.safetensors", max_shard_size=max_shard_size
    )
    for file, names in split.filename_to_tensors.items():
        save_file({name: state[name] for name in names}, directory / file, metadata={"format": "pt"})
    if split.is_sharded:
        _write_json(directory / INDEX, {"metadata": split.metadata, "weight_map": split.tensor_to_filename})
    else:
        assert (directory / WEIGHTS).is_file()


@torch.no_grad()
def grow_vocabulary(model: T5, rows: int, *, first_new: int, start: Literal["mean", "normal"], seed: int) -> T5:
    """The same T5 with at least `rows` embedding rows, whose ids from `first_new` on have never been trained.

    start: how those rows begin, in the embedding and in an untied output matrix: the mean of the rows below
    `first_new`, or normal noise around it with their standard deviation, column by column.
    """
    shape = replace(model.shape, vocab_size=max(rows, model.shape.vocab_size))
    generator = torch.Generator().manual_seed(seed)
    tensors = dict(model.state_dict())
    for name in ("shared.weight", "lm_head.weight"):
        if name not in tensors:
            continue
        trained_VD = tensors[name][:first_new].float()
        new_VD = trained_VD.mean(0).repeat(shape.vocab_size - first_new, 1)
        if start == "normal":
            new_VD += torch.randn(new_VD.shape, generator=generator) * trained_VD.std(0)
        tensors[name] = torch.cat([trained_VD, new_VD]).to(tensors[name].dtype)
    return assemble(shape, tensors, where="the grown vocabulary")


def check_untied(model: nn.Module, shape: T5Config) -> None:
    """Raise RuntimeError where a model that must not be tied is: several libraries tie it again in silence.

    Call it after anything that rebuilt or wrapped the model. It looks at names by their end, so wrappers may prefix.
    """
    if shape.tied:
        return
    named = dict(model.named_parameters(remove_duplicate=False))
    heads = [p for name, p in named.items() if name.endswith("lm_head.weight")]
    embeddings = [p for name, p in named.items() if name.endswith("shared.weight")]
    if len(heads) != 1 or len(embeddings) != 1:
        raise RuntimeError(
            f"expected one lm_head.weight and one shared.weight, found {len(heads)} and {len(embeddings)}"
        )
    same_memory = (
        heads[0].device.type != "meta" and heads[0].numel() > 0 and heads[0].data_ptr() == embeddings[0].data_ptr()
    )
    if heads[0] is embeddings[0] or same_memory:
        raise RuntimeError("lm_head.weight has been tied to shared.weight, but a T5 1.1 keeps them apart")


def _few(names: list[str], at_most: int = 4) -> str:
    rest = len(names) - at_most
    return ", ".join(names[:at_most]) + (f" and {rest} more" if rest > 0 else "")


def _write_json(path: Path, content: Mapping[str, object]) -> None:
    path.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")
