"""Prefix tuning (Li and Liang 2021) and P-tuning (Liu et al. 2021) on a frozen T5, by the PEFT library.

    prefix tuning   learned keys and values before those of the self-attention in each decoder layer
    P-tuning        a soft prompt before the encoder's input, written by a small network that is dropped afterwards

The T5 is transformers' own. An adapter on disk is PEFT's (`adapter_model.safetensors`, `adapter_config.json`) with
`adapter.json` beside it, which says what it was trained on.

Shapes: B batch, S input length, T target length, R decoder rows, D d_model, V vocabulary rows
"""

from __future__ import annotations

import importlib.util
import json
import warnings
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import Tensor, nn

from t5_pipeline.core.atomic_files import write_text
from t5_pipeline.core.errors import InputError
from t5_pipeline.data_prep.tasks.config import TaskConfig
from t5_pipeline.modeling.config import T5Config
from t5_pipeline.modeling.layers import DecoderCache
from t5_pipeline.modeling.load import check_untied
from t5_pipeline.modeling.t5 import shift_right

NAME, WEIGHTS, CONFIG = "adapter.json", "adapter_model.safetensors", "adapter_config.json"
Method = Literal["prefix_tuning", "p_tuning"]


class AdapterInfo(BaseModel):
    """What adapter.json says."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    format: Literal[1] = 1
    method: Method
    base_model: str
    base_model_digest: str
    tokenizer_digest: str
    task: TaskConfig
    sentinel: Literal["none", "targets", "both"]
    virtual_tokens: int = Field(gt=0)
    trained: int = Field(gt=0, description="numbers that were trained")
    max_input_length: int = Field(gt=0)
    max_target_length: int = Field(gt=0)
    seed: int = Field(ge=0)
    step: int = Field(ge=0)
    scores: dict[str, float] = Field(default_factory=dict)

    @classmethod
    def load(cls, directory: str | Path) -> AdapterInfo:
        """Read it back. Raises InputError that names the file, and the key that is wrong."""
        path = Path(directory) / NAME
        try:
            return cls.model_validate(json.loads(path.read_text(encoding="utf-8")))
        except OSError:
            raise InputError(f"{path}: not there; give a directory that peft_tune wrote") from None
        except ValidationError as error:
            first = error.errors()[0]
            raise InputError(f"{path}: {'.'.join(map(str, first['loc']))}: {first['msg']}") from None
        except ValueError as error:
            raise InputError(f"{path}: not valid JSON ({error})") from None


class PeftT5(nn.Module):
    """A frozen T5 with one adapter, under the methods by which a `BareT5` answers."""

    def __init__(self, adapted: Any, method: Method) -> None:
        """adapted: PEFT's model around transformers' T5ForConditionalGeneration."""
        super().__init__()
        self.adapted = adapted
        self.method = method

    @classmethod
    def start(
        cls, model: str | Path, method: Method, virtual_tokens: int, hidden_size: int, dropout: float, seed: int
    ) -> PeftT5:
        """A new adapter on the T5 of a directory or hub name.

        Sizes are given one by one: from the configuration of a T5 PEFT would take d_model / heads as the size of a
        head, and the encoder's layers for the decoder's, neither of which a T5 keeps to.
        """
        peft = _peft()
        t5 = _transformers_t5(model, dropout)
        shape = t5.config
        common = {"task_type": "SEQ_2_SEQ_LM", "num_virtual_tokens": virtual_tokens}
        torch.manual_seed(seed)
        if method == "p_tuning":
            config = peft.PromptEncoderConfig(
                **common,
                token_dim=shape.d_model,
                num_transformer_submodules=1,
                encoder_hidden_size=hidden_size or shape.d_model,
            )
        else:
            config = peft.PrefixTuningConfig(
                **common,
                token_dim=shape.num_heads * shape.d_kv,
                num_attention_heads=shape.num_heads,
                num_layers=shape.num_decoder_layers,
                prefix_projection=hidden_size > 0,
                encoder_hidden_size=hidden_size or None,
            )
        with warnings.catch_warnings():
            # PEFT asks transformers by a name that is going out of use.
            warnings.simplefilter("ignore", FutureWarning)
            return cls(peft.get_peft_model(t5, config), method)

    @classmethod
    def load(cls, directory: Path, model: str | Path) -> PeftT5:
        """An adapter as it was saved, on the T5 that it belongs to. Never reads a pickle.

        Raises:
            InputError: a file is missing.
        """
        peft = _peft()
        for name in (WEIGHTS, CONFIG):
            if not (directory / name).is_file():
                raise InputError(f"{directory / name}: not there, so {directory} is no adapter; make it again")
        info = AdapterInfo.load(directory)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            return cls(peft.PeftModel.from_pretrained(_transformers_t5(model, 0.0), str(directory)), info.method)

    def save(self, directory: Path, info: AdapterInfo) -> None:
        """PEFT's own files, with the numbers that answering needs and no others, and adapter.json."""
        self.adapted.save_pretrained(str(directory), safe_serialization=True)
        content = json.dumps(info.model_dump(mode="json"), indent=2, ensure_ascii=False)
        write_text(directory / NAME, content + "\n")

    @property
    def trained(self) -> dict[str, Tensor]:
        """Every tensor that learns, by name."""
        return {name: p for name, p in self.named_parameters() if p.requires_grad}

    def forward(self, inputs_BS: Tensor, targets_BT: Tensor) -> Tensor:
        """fp32 logits [B, T, V] that predict each target token."""
        encoded, mask = self.encode(None, inputs_BS)
        return self.decode(shift_right(targets_BT), encoded, mask).float()

    def encode(self, prompt_B: Tensor | None, inputs_BS: Tensor) -> tuple[Tensor, Tensor | None]:
        """The encoder's output and its mask."""
        assert prompt_B is None
        t5, mask = self.adapted.get_base_model(), inputs_BS != 0
        embedded = t5.get_input_embeddings()(inputs_BS)
        if self.method == "p_tuning":
            prompt = self.adapted.get_prompt(len(inputs_BS)).to(embedded.dtype)
            embedded = torch.cat([prompt, embedded], dim=1)
            mask = torch.cat([mask.new_ones(prompt.shape[:2]), mask], dim=1)
        return t5.get_encoder()(inputs_embeds=embedded, attention_mask=mask).last_hidden_state, mask

    def decode(
        self, decoder_ids_RT: Tensor, encoded: Tensor, mask: Tensor | None, cache: DecoderCache | None = None
    ) -> Tensor:
        """Logits [R, T, V] of the decoder's inputs; rows i·L … i·L+L−1 read input i. A cache keeps the ids so far."""
        ids_RT = decoder_ids_RT
        if cache is not None:
            cache.ids = ids_RT if cache.ids is None else torch.cat([cache.ids, ids_RT], dim=1)
            ids_RT = cache.ids
        each = len(ids_RT) // len(encoded)
        assert mask is not None
        prefix = {"past_key_values": self.adapted.get_prompt(len(ids_RT))} if self.method == "prefix_tuning" else {}
        logits: Tensor = self.adapted.get_base_model()(
            encoder_outputs=(encoded.repeat_interleave(each, dim=0),),
            attention_mask=mask.repeat_interleave(each, dim=0),
            decoder_input_ids=ids_RT,
            **prefix,
        ).logits
        return logits[:, -decoder_ids_RT.size(1) :]

    def logits(self, hidden_RTD: Tensor) -> Tensor:
        """What `decode` gives are logits already."""
        return hidden_RTD.float()


def check_installed() -> None:
    """
    Raises:
        InputError: PEFT is not installed.
    """
    if importlib.util.find_spec("peft") is None:
        raise InputError("peft_tune: PEFT is not installed; pip install 't5-pipeline[peft]'")


def _peft() -> Any:
    check_installed()
    import peft

    return peft


def _transformers_t5(model: str | Path, dropout: float) -> Any:
    """transformers' T5 with its output matrix as the configuration says, tied or not."""
    from transformers import T5ForConditionalGeneration
    from transformers.utils import logging

    # It says in many words that it leaves an untied matrix untied, which is checked below.
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        t5 = T5ForConditionalGeneration.from_pretrained(str(model), dropout_rate=dropout, dtype=torch.float32)
    except OSError as error:
        raise InputError(f"{model}: transformers cannot load it ({str(error).splitlines()[0]})") from None
    tied = T5Config.from_config(t5.config.to_dict(), str(model)).tied
    check_untied(() if tied else ("shared.weight", "lm_head.weight"), t5)
    return t5.requires_grad_(False)
