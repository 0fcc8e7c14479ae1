"""Model directories: `config.json` beside safetensors, as transformers writes them, or a T5X checkpoint.

Tensors are read one at a time under canonical names: copies of the embedding are folded into `shared.weight`, so that
a model does not depend on which library saved it. Nothing is ever unpickled.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor

from t5_pipeline.core.bounded import open_file, read_object, tensor_entries
from t5_pipeline.core.errors import InputError
from t5_pipeline.core.paths import below
from t5_pipeline.modeling.config import INDEX, REPAIR, WEIGHTS, T5Config, read_config
from t5_pipeline.modeling.digest import no_weights
from t5_pipeline.modeling.t5x import t5x_tensors
from t5_pipeline.modeling.t5x_layout import find_t5x, t5x_shape

# Original T5 checkpoints carry this table, which neither Mesh-TF nor transformers ever uses.
UNUSED = "decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight"


def read_shape(directory: Path) -> T5Config:
    """Sizes of a model, from its files in the form of transformers or the arrays of a T5X checkpoint.

    Raises:
        InputError: if the directory contains neither.
    """
    if (directory / "config.json").is_file():
        return read_config(directory)
    checkpoint = find_t5x(directory)
    if checkpoint is not None:
        return t5x_shape(checkpoint)
    raise InputError(f"{directory}: contains neither config.json nor a T5X checkpoint; give the directory of a model")


def read_file_tensors(path: Path, repair: str) -> dict[str, Tensor]:
    """All tensors of a file.

    Args:
        repair: what to do if it is missing or damaged.

    Raises:
        InputError: if it is.
    """
    try:
        open_file(path).close()  # safetensors would wait for the other end of a FIFO
        return load_file(path)
    except FileNotFoundError:
        raise InputError(f"{path}: does not exist; {repair}") from None
    except SafetensorError as error:
        raise InputError(f"{path}: is not a complete safetensors file ({error}); {repair}") from error


def weight_files(directory: Path) -> list[Path]:
    """The safetensors files of a model directory.

    Raises:
        InputError: if there are none, or a shard is missing.
    """
    if (directory / WEIGHTS).is_file():
        return [directory / WEIGHTS]
    if (directory / INDEX).is_file():
        weight_map = read_object(directory / INDEX, REPAIR).get("weight_map")
        names = weight_map.values() if isinstance(weight_map, dict) else [None]
        if not all(isinstance(name, str) for name in names):
            raise InputError(f"{directory / INDEX}: `weight_map` does not map names to files; fetch the model again")
        files = [directory / below(name, directory / INDEX) for name in sorted(set(names))]
        for file in files:
            if not file.is_file():
                raise InputError(f"{directory / INDEX}: {file.name} does not exist; fetch the model again")
        return files
    raise no_weights(directory)


def read_tensors(directory: Path, shape: T5Config) -> Iterator[tuple[str, Tensor]]:
    """Every tensor of a model directory once, under its canonical name, on the CPU and in the dtype of the file.

    Without safetensors, a T5X checkpoint is read; a config.json beside it says what its arrays do not, such as SiLU.

    Raises:
        InputError: if a file is damaged, or copies of the embedding differ although the config says they are tied.
    """
    if not any(directory.glob("*.safetensors")):
        checkpoint = find_t5x(directory)
        if checkpoint is not None:
            yield from t5x_tensors(checkpoint, shape)
            return
    copies = {"encoder.embed_tokens.weight", "decoder.embed_tokens.weight"} | (
        {"lm_head.weight"} if shape.tied else set()
    )
    embedding: tuple[str, Tensor] | None = None
    files = weight_files(directory)
    _check_layers(shape, files, directory / "config.json")
    for file in files:
        try:
            with safe_open(file, framework="pt") as opened:
                for name in opened.keys():  # noqa: SIM118 (an opened file is not a dict)
                    if name == UNUSED:
                        continue
                    tensor = opened.get_tensor(name)
                    if not tensor.is_floating_point():
                        raise InputError(
                            f"{file}: {name} is {tensor.dtype}; quantized weights are not supported, give the original"
                        )
                    if name != "shared.weight" and name not in copies:
                        yield name, tensor
                    elif embedding is None:
                        embedding = name, tensor
                        yield "shared.weight", tensor
                    elif not torch.equal(tensor, embedding[1]):
                        raise InputError(
                            f"{file}: {name} differs from {embedding[0]}, but {directory / 'config.json'} says they"
                            " are tied; for an untied T5 (1.1) set `tie_word_embeddings: false` there"
                        )
        except SafetensorError as error:
            raise InputError(f"{file}: is damaged ({error}); fetch or write it again") from error


def _check_layers(shape: T5Config, files: list[Path], config: Path) -> None:
    """Compare a config with the headers of the tensors, before a T5 of its size is built.

    Raises:
        InputError: if it has more layers than there are tensors.
    """
    tensors, layers = sum(len(tensor_entries(file)) for file in files), shape.num_layers + shape.num_decoder_layers
    if layers > tensors:
        raise InputError(f"{config}: has {layers:,} layers, but there are {tensors:,} tensors; fetch the model again")
