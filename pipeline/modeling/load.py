"""Load, initialize and save a T5, and grow its vocabulary.

A saved model is what transformers' `save_pretrained` writes: config.json, generation_config.json and safetensors. An
untied output matrix stays untied whether the model is initialized, loaded or saved.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Literal

import torch
from huggingface_hub import split_state_dict_into_shards_factory
from safetensors.torch import save_file
from torch import Tensor, nn

from t5_pipeline.core.errors import InputError
from t5_pipeline.modeling.config import INDEX, WEIGHTS, T5Config, misfits
from t5_pipeline.modeling.digest import t5x_folder
from t5_pipeline.modeling.hub import fetch_model
from t5_pipeline.modeling.safetensors_dir import read_shape, read_tensors
from t5_pipeline.modeling.t5 import T5

log = logging.getLogger("t5-pipeline")


def locate_model(location: str | Path) -> Path:
    """The local directory of a model: the given one, or the snapshot of the hub model of that name.

    Raises:
        InputError: if neither exists.
    """
    path = t5x_folder(Path(location))
    return path if path.is_dir() else fetch_model(str(location))


def load_t5(location: str | Path, dtype: torch.dtype = torch.float32) -> T5:
    """Load a T5 onto the CPU.

    Args:
        location: a directory with safetensors, one that is or contains a T5X checkpoint, or the name of a model on the
            Hugging Face hub (safetensors only).

    Raises:
        InputError: if the model does not exist, has no safetensors, or does not fit its own config.json; names the
            tensors that are missing, unexpected or of another shape.
    """
    directory = locate_model(location)
    shape = read_shape(directory)
    if shape.tied_unlike_published:
        log.warning(
            "%s: the output matrix is tied to the embedding, as in a new T5 1.1 of transformers 5; a pretrained one"
            " loses its own matrix when transformers resizes the embedding",
            directory,
        )
    # Copied one at a time: the model does not depend on the files, and only one tensor is in memory twice.
    tensors = {name: tensor.to(dtype, copy=True) for name, tensor in read_tensors(directory, shape)}
    return assemble(shape, tensors, where=str(directory))


def assemble(shape: T5Config, tensors: Mapping[str, Tensor], where: str) -> T5:
    """A T5 with exactly these tensors (not copies).

    Args:
        where: origin of the tensors, for errors.

    Raises:
        InputError: if tensors are missing, unexpected or of another shape.
    """
    with torch.device("meta"):
        model = T5(shape)
    expected = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    problems = misfits(expected, {name: tuple(tensor.shape) for name, tensor in tensors.items()})
    if problems == {"missing": ["lm_head.weight"]}:
        raise InputError(
            f"{where}: has no output matrix (lm_head.weight), but its config.json says that it is not tied to the"
            " embedding; set `tie_word_embeddings: true` there, or fetch the model again"
        )
    if problems:
        named = "; ".join(f"{kind}: {_few(names)}" for kind, names in problems.items())
        raise InputError(f"{where}: the weights do not fit the sizes in config.json ({named}); fetch the model again")
    model.load_state_dict(tensors, assign=True)
    check_untied(expected, model)
    return model


def init_t5(shape: T5Config, seed: int) -> T5:
    """A randomly initialized T5 in fp32.

    Weights are normal, with the standard deviations of Mesh-TF (T5X has the same scale): 1 for embeddings; (D·K)^−½ for
    q, because scores are not scaled; D^−½ for k, v, the feed-forward's input side and the position biases; (H·K)^−½ for
    o; F^−½ for the feed-forward's output. An untied output matrix gets D^−½ (fan-in), so that logits start with unit
    variance; transformers gives it 1.

    Source: Raffel et al. 2020.
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
    model.load_state_dict({name: torch.empty(like.shape) for name, like in model.state_dict().items()}, assign=True)
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
    """Write a plain transformers directory.

    Args:
        tensors: the whole state, if an engine has sharded the model's own; the model then gives only its shape.
        max_shard_size: larger weights are split into shards with an index.
    """
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    state = model.state_dict() if tensors is None else tensors
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
    _write_json(directory / "config.json", model.shape.to_config())
    _write_json(directory / "generation_config.json", model.shape.special.to_config())
    # The variant for torch imports DTensor and with it a second's worth of modules; these tensors are plain.
    split = split_state_dict_into_shards_factory(
        state,
        get_storage_size=lambda tensor: tensor.nbytes,
        filename_pattern="model{suffix}.safetensors",
        max_shard_size=max_shard_size,
    )
    for file, names in split.filename_to_tensors.items():
        save_file({name: state[name] for name in names}, directory / file, metadata={"format": "pt"})
    if split.is_sharded:
        _write_json(directory / INDEX, {"metadata": split.metadata, "weight_map": split.tensor_to_filename})
    else:
        assert (directory / WEIGHTS).is_file()


@torch.no_grad()
def grow_vocabulary(model: T5, rows: int, *, first_new: int, start: Literal["mean", "normal"], seed: int) -> T5:
    """The same T5 with at least `rows` embedding rows.

    Args:
        first_new: first id that was never trained.
        start: initial values of the rows from `first_new` on, in the embedding and in an untied output matrix: the mean
            of the rows below, or normal noise around it with their standard deviation, column by column.
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


def check_untied(names: Iterable[str], model: nn.Module) -> None:
    """Check that parameters which were separate still are: several libraries tie output matrices silently.

    Call it after anything that rebuilt or wrapped the model.

    Args:
        names: parameters that must not share memory with one another.

    Raises:
        RuntimeError: if one of them is shared.
    """
    owners: dict[int, str] = {}
    for name, p in model.named_parameters(remove_duplicate=False):
        in_memory = p.device.type != "meta" and p.numel() > 0 and type(p.data) is Tensor  # sharded ones have no address
        owners.setdefault(p.data_ptr() if in_memory else id(p), name)
    lost = sorted(set(names) - set(owners.values()))
    if lost:
        raise RuntimeError(
            f"{lost[0]} has been tied to another parameter, but a T5 1.1 keeps its output matrix apart from its"
            " embedding, so training on would be wrong"
        )


def _few(names: list[str]) -> str:
    rest = len(names) - 4
    return ", ".join(names[:4]) + (f" and {rest} more" if rest > 0 else "")


def _write_json(path: Path, content: Mapping[str, object]) -> None:
    path.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")
