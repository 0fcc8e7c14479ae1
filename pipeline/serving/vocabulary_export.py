"""Soft prompts as vocabulary: a plain T5 whose tokenizer turns an alias into the rows of a prompt.

The rows of every prompt become embedding rows of new ids, so any server that runs a T5 can serve soft prompts:

    <prompt:sst2>       alias that a client writes at the start of the input; the tokenizer replaces it by
    <prompt:sst2:0> …   one token per row, with the ids after those of the vocabulary

A prompt's row is added to the encoder's input as it was trained, so the encoder computes the same numbers. The new ids
also get rows in the output matrix, where they must never win: each gets the mean of the existing rows with the lowest
logits. A mean of logits is below the greatest one whatever the input, so greedy decoding gives the outputs of the
prompted T5, and a new id is at most as probable as the ids of these rows are on average.
An original T5, whose output matrix is the embedding, gets a separate output matrix. Rows above the vocabulary, to which
no token belongs (the last 28 of T5 1.1), follow the new ids, because their logits are part of every probability.

    transformers    model.safetensors, tokenizer.json, prompts.json
    ctranslate2     model.bin (fp32, or quantized), tokenizer.json, prompts.json
    onnx            encoder_model.onnx and decoder_model.onnx as optimum names them, tokenizer.json, prompts.json
"""

from __future__ import annotations

import json
import shutil
import tempfile
import warnings
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import AddedToken, Tokenizer, normalizers
from torch import Tensor

from t5_pipeline.artifacts.collection import read_each
from t5_pipeline.artifacts.kinds import named_prompts
from t5_pipeline.core.atomic_files import write_directory
from t5_pipeline.core.errors import InputError
from t5_pipeline.core.paths import refuse_to_replace
from t5_pipeline.data_prep.tokenizer.vocabulary import Vocabulary
from t5_pipeline.methods.soft_prompt import Prompt
from t5_pipeline.modeling.in_transformers import load_in_transformers, quiet
from t5_pipeline.modeling.load import assemble, load_t5, save_t5
from t5_pipeline.modeling.t5 import T5, shift_right
from t5_pipeline.serving.frozen_t5 import FrozenT5
from t5_pipeline.serving.inspection import load_checked

INDEX = "prompts.json"
_LOWEST = 16  # output rows averaged for a new id: enough that their mean never ties with the greatest logit


@dataclass(frozen=True)
class PromptTokens:
    """The ids of a prompt's rows: `first` to `first + length − 1`."""

    name: str
    first: int
    length: int

    @property
    def alias(self) -> str:
        return f"<prompt:{self.name}>"

    @property
    def tokens(self) -> list[str]:
        return [f"<prompt:{self.name}:{row}>" for row in range(self.length)]


def export(
    model: str, prompts: str, form: str, output: str, quantization: str | None = None
) -> dict[str, PromptTokens]:
    """Write a T5 with prompts as vocabulary.

    Args:
        model: the frozen T5: directory, stage directory or hub name.
        prompts: a prompt, a prompt_tune stage, or a folder of them.
        form: a key of `WRITERS`.
        output: the directory to write.
        quantization: for ctranslate2: a type such as "int8" or "float16" (default: fp32).

    Returns:
        The ids of each prompt.

    Raises:
        InputError: if prompts are damaged or were trained on another T5 (it names every one), or the output exists.
    """
    if quantization and form != "ctranslate2":
        raise InputError(f"--quantization: {form} is written in fp32; leave it out, or give --to ctranslate2")
    refuse_to_replace(Path(output))
    t5 = FrozenT5.find(model)

    def read(name: str, place: Path) -> Prompt:
        prompt = load_checked(place, t5)
        _check_name(name, place, prompt)
        return prompt

    loaded = read_each(prompts, named_prompts(prompts, "--prompts"), read).complete()
    rows_PD = {name: prompt.rows_PD for name, prompt in loaded.items()}
    tokens = assign_ids(rows_PD, t5.vocabulary.size)
    grown = add_rows(load_t5(t5.path), rows_PD, tokens)

    def fill(directory: Path) -> None:
        write_tokenizer(directory, t5.vocabulary, tokens.values())
        (directory / INDEX).write_text(
            json.dumps(index(loaded, tokens, t5.digest), indent=1, ensure_ascii=False) + "\n", encoding="utf-8"
        )
        WRITERS[form](directory, grown, tokens.values(), quantization)

    write_directory(Path(output), fill)
    return tokens


def _check_name(name: str, place: Path, prompt: Prompt) -> None:
    if not all(c.isascii() and (c.isalnum() or c in "-_.=,+") for c in name):
        raise InputError(
            f"{place}: {name!r} cannot be part of a token; rename the prompt's directory (A-Z, 0-9, -_.=,+)"
        )
    if prompt.info.sentinel == "both":
        raise InputError(
            f"{place}: was trained with extra_id_0 after its inputs, which an alias at the start cannot add; use"
            " `t5-pipeline serve` or a prompt trained with `variant: targets`"
        )


def assign_ids(prompts_PD: Mapping[str, Tensor], first: int) -> dict[str, PromptTokens]:
    """Consecutive ids for the rows of prompts, from `first` on."""
    tokens = {}
    for name, rows_PD in prompts_PD.items():
        tokens[name] = PromptTokens(name, first, len(rows_PD))
        first += len(rows_PD)
    return tokens


@torch.no_grad()
def add_rows(t5: T5, prompts_PD: Mapping[str, Tensor], tokens: Mapping[str, PromptTokens]) -> T5:
    """An untied T5 whose embedding contains the rows of the prompts, and whose output matrix never selects them.

    Args:
        tokens: the consecutive ids of the prompts' rows. Rows of the T5 that have these or higher ids move up.
    """
    first = min(one.first for one in tokens.values())
    state = dict(t5.state_dict())
    embedding_VD = state["shared.weight"]
    output_VD = embedding_VD * t5.shape.output_scale if t5.shape.tied else state["lm_head.weight"]
    never_D = output_VD[lowest_ids(t5, output_VD[:first], list(prompts_PD.values()))].mean(0)
    rows_PD = torch.cat([prompts_PD[name] for name in tokens])
    state["shared.weight"] = torch.cat([embedding_VD[:first], rows_PD, embedding_VD[first:]])
    state["lm_head.weight"] = torch.cat([output_VD[:first], never_D.repeat(len(rows_PD), 1), output_VD[first:]])
    shape = replace(
        t5.shape, vocab_size=len(state["shared.weight"]), tied=False, scaled=None if t5.shape.tied else t5.shape.scaled
    )
    return assemble(shape, state, "the T5 with prompts as vocabulary")


def lowest_ids(t5: T5, output_VD: Tensor, prompts_PD: Sequence[Tensor]) -> Tensor:
    """The ids whose logits are lowest on average over seeded inputs of random tokens, with and without the prompts."""
    generator = torch.Generator().manual_seed(0)
    ids_BS = torch.randint(3, len(output_VD), (8, 24), generator=generator)
    targets_BT = torch.randint(3, len(output_VD), (8, 6), generator=generator)
    total_V = torch.zeros(len(output_VD))
    t5.eval()
    for rows_PD in [ids_BS.new_zeros(0, t5.shape.d_model).float(), *prompts_PD[:16]]:
        embedded_BSD = torch.cat([rows_PD.expand(len(ids_BS), -1, -1), t5.embed(ids_BS)], dim=1)
        hidden_BTD = t5.decode(
            t5.embed(shift_right(targets_BT, start=t5.special.start)), t5.encode(embedded_BSD, None), None
        )
        total_V += (hidden_BTD @ output_VD.T).log_softmax(-1).mean((0, 1))
    return total_V.topk(min(_LOWEST, len(output_VD)), largest=False).indices


def write_tokenizer(directory: Path, vocabulary: Vocabulary, tokens: Iterable[PromptTokens]) -> None:
    """Write the vocabulary's tokenizer.json with one token per row and one alias per prompt.

    Raises:
        InputError: for bytes, or if the text after an alias would have other ids than without it.
    """
    tokens = list(tokens)
    tokenizer = write_row_tokens(directory, vocabulary, tokens, aliases=True)
    probe = "The text"
    for one in tokens:
        found = tokenizer.encode(f"{one.alias} {probe}", add_special_tokens=False).ids
        if found != [*range(one.first, one.first + one.length), *vocabulary.encode(probe)]:
            raise InputError(
                "vocabulary: its normalizer is not T5's (nmt_nfkc), so an alias would change the ids of its text;"
                " serve these prompts with `t5-pipeline serve`"
            )


def write_row_tokens(
    directory: Path, vocabulary: Vocabulary, tokens: Iterable[PromptTokens], aliases: bool = False
) -> Tokenizer:
    """Write the vocabulary's tokenizer.json with one token per row, and with aliases if asked for.

    spiece.model is left out: it does not know the new tokens, and a program that read it would give other ids.
    """
    vocabulary.save(directory)
    (directory / "spiece.model").unlink(missing_ok=True)
    path = directory / "tokenizer.json"
    if not path.is_file():
        raise InputError(
            "vocabulary: bytes have no tokenizer.json to which tokens could be added; serve these prompts with"
            " `t5-pipeline serve --engine torch`"
        )
    tokenizer, tokens = Tokenizer.from_file(str(path)), list(tokens)
    if aliases:
        # The alias is replaced in the normalized text, in which tokens with normalized=True are then found.
        replaced = [normalizers.Replace(one.alias, "".join(one.tokens)) for one in tokens]
        own = [] if tokenizer.normalizer is None else [tokenizer.normalizer]
        tokenizer.normalizer = normalizers.Sequence([*replaced, *own])
    for one in tokens:
        # rstrip: a space between alias and text is not part of the text.
        added = [AddedToken(token, normalized=True, special=False, rstrip=True) for token in one.tokens]
        tokenizer.add_tokens(added)
        if tokenizer.token_to_id(one.tokens[0]) != one.first:
            raise RuntimeError(f"{one.tokens[0]} has id {tokenizer.token_to_id(one.tokens[0])}, not {one.first}")
    tokenizer.save(str(path))
    return tokenizer


def index(prompts: Mapping[str, Prompt], tokens: Mapping[str, PromptTokens], digest: str) -> dict[str, Any]:
    """The content of prompts.json: each prompt's alias, ids, template, labels and lengths, for clients."""
    return {
        "format": 1,
        "base_model_digest": digest,
        "prompts": {
            name: {
                "alias": tokens[name].alias,
                "first_id": tokens[name].first,
                "rows": tokens[name].length,
                "inputs": prompt.info.task.inputs,
                "labels": prompt.info.task.labels,
                "sentinel": prompt.info.sentinel,
                "max_input_length": prompt.info.max_input_length,
                "max_target_length": prompt.info.max_target_length,
                "scores": prompt.info.scores,
            }
            for name, prompt in prompts.items()
        },
    }


# ---------------------------------------------------------------------------------------------------------- targets


def write_transformers(directory: Path, t5: T5, tokens: Iterable[PromptTokens], quantization: str | None) -> None:
    """Weights and config.json; generation_config.json also keeps the new ids out of sampled outputs."""
    save_t5(t5, directory)
    path = directory / "generation_config.json"
    generation = json.loads(path.read_text(encoding="utf-8"))
    generation["suppress_tokens"] = [i for one in tokens for i in range(one.first, one.first + one.length)]
    path.write_text(json.dumps(generation, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def write_ctranslate2(directory: Path, t5: T5, tokens: Collection[PromptTokens], quantization: str | None) -> None:
    """A CTranslate2 model directory, converted by CTranslate2 from the transformers directory.

    Its output layer has a bias, which takes the new ids out of every probability.
    """
    try:
        from ctranslate2.converters import TransformersConverter
        from ctranslate2.specs.model_spec import OPTIONAL
    except ImportError:
        raise InputError("ctranslate2 is not installed; pip install 't5-pipeline[export]'") from None

    bias_V = np.zeros(t5.shape.vocab_size, np.float32)
    for one in tokens:
        bias_V[one.first : one.first + one.length] = -1e4

    class Converter(TransformersConverter):
        def _load(self) -> Any:
            spec = super()._load()
            # transformers 5 calls every T5 tied, for which CTranslate2 would scale the decoder's output.
            spec.decoder.scale_outputs = t5.shape.output_scale if t5.shape.scales_outputs else OPTIONAL
            spec.decoder.projection.bias = bias_V
            return spec

    with tempfile.TemporaryDirectory(dir=directory.parent, prefix=".ctranslate2.", suffix=".tmp") as scratch:
        source, made = Path(scratch) / "transformers", Path(scratch) / "ctranslate2"
        shutil.copytree(directory, source)
        write_transformers(source, t5, tokens, None)
        with quiet():
            Converter(str(source)).convert(str(made), quantization=quantization)
        for file in made.iterdir():
            shutil.move(file, directory / file.name)


def write_onnx(directory: Path, t5: T5, tokens: Iterable[PromptTokens], quantization: str | None) -> None:
    """encoder_model.onnx and decoder_model.onnx (without cache), exported by torch from transformers' T5."""
    try:
        import onnxscript  # noqa: F401
    except ImportError:
        raise InputError("onnxscript is not installed; pip install 't5-pipeline[export]'") from None
    write_transformers(directory, t5, tokens, None)
    plain = load_in_transformers(directory, attn_implementation="eager").eval()
    for file in directory.glob("model*.safetensors*"):
        file.unlink()
    ids_BS, mask_BS = torch.tensor([[5, 6, 7, 1], [5, 1, 0, 0]]), torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]])
    encoded = plain.get_encoder()(input_ids=ids_BS, attention_mask=mask_BS).last_hidden_state
    batch, source, target = (torch.export.Dim(name) for name in ("batch", "source", "target"))
    _to_onnx(
        _Encoder(plain), directory / "encoder_model.onnx", (ids_BS, mask_BS), ["input_ids", "attention_mask"],
        ["last_hidden_state"], ({0: batch, 1: source}, {0: batch, 1: source}),
    )  # fmt: skip
    _to_onnx(
        _Decoder(plain), directory / "decoder_model.onnx", (torch.tensor([[0, 5, 6], [0, 7, 8]]), encoded, mask_BS),
        ["input_ids", "encoder_hidden_states", "encoder_attention_mask"], ["logits"],
        ({0: batch, 1: target}, {0: batch, 1: source}, {0: batch, 1: source}),
    )  # fmt: skip


class _Encoder(torch.nn.Module):
    def __init__(self, t5: Any) -> None:
        super().__init__()
        self.encoder = t5.get_encoder()
        self.eval()

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        hidden: Tensor = self.encoder(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        return hidden


class _Decoder(torch.nn.Module):
    def __init__(self, t5: Any) -> None:
        super().__init__()
        self.decoder, self.lm_head = t5.get_decoder(), t5.lm_head
        self.eval()

    def forward(self, input_ids: Tensor, encoder_hidden_states: Tensor, encoder_attention_mask: Tensor) -> Tensor:
        hidden = self.decoder(
            input_ids=input_ids, encoder_hidden_states=encoder_hidden_states,
            encoder_attention_mask=encoder_attention_mask, use_cache=False,
        ).last_hidden_state  # fmt: skip
        logits: Tensor = self.lm_head(hidden)
        return logits


def _to_onnx(
    module: torch.nn.Module, path: Path, example: tuple[Tensor, ...], inputs: list[str], outputs: list[str], dims: Any
) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the exporter, about itself
        program = torch.onnx.export(
            module, example, input_names=inputs, output_names=outputs, dynamic_shapes=dims, dynamo=True, verbose=False
        )
    assert program is not None
    # A protobuf file is limited to 2 GB; larger weights are written next to it.
    program.save(str(path), external_data=4 * sum(p.numel() for p in module.parameters()) > 1_900_000_000)


WRITERS: Mapping[str, Callable[[Path, T5, Collection[PromptTokens], str | None], None]] = {
    "transformers": write_transformers,
    "ctranslate2": write_ctranslate2,
    "onnx": write_onnx,
}
