"""LoRA (Hu et al. 2021), (IA)³ (Liu et al. 2022), prefix tuning (Li and Liang 2021) and P-tuning (Liu et al. 2021).

    LoRA            W + alpha/r · B A  for projections W of encoder and decoder, B of width r and initially 0
    (IA)³           keys, values and inner feed-forward activations times learned vectors, initially 1
    prefix tuning   learned keys and values before those of the self-attention in each decoder layer
    P-tuning        a soft prompt before the encoder's input, produced by a small network that is dropped afterward

The PEFT library computes all of them, on transformers' own T5, which is frozen. An adapter is stored in PEFT's files
(`adapter_model.safetensors`, `adapter_config.json`), with `adapter.json` for what it was trained on.

Shapes: B batch, P prompt length, S input length, T target length, R decoder rows, D d_model, V vocabulary rows
"""

from __future__ import annotations

import importlib.util
import warnings
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from t5_pipeline.artifacts.artifact import Artifact
from t5_pipeline.artifacts.kinds import PEFT_CONFIG, PEFT_WEIGHTS
from t5_pipeline.config.tuning import PeftMethod, PeftTuneConfig
from t5_pipeline.core.errors import InputError
from t5_pipeline.core.records import Record
from t5_pipeline.core.schema import Sentinel
from t5_pipeline.data_prep.tasks.config import TaskConfig
from t5_pipeline.data_prep.tokenizer.special_tokens import SpecialTokens
from t5_pipeline.methods.base import Candidate
from t5_pipeline.modeling.decoder_cache import DecoderCache
from t5_pipeline.modeling.in_transformers import load_in_transformers
from t5_pipeline.modeling.t5 import shift_right

_NAMES: dict[PeftMethod, str] = {
    "lora": "LoRA",
    "ia3": "(IA)³",
    "prefix_tuning": "prefix tuning",
    "p_tuning": "P-tuning",
}


class AdapterInfo(Record):
    """adapter.json."""

    file_name: ClassVar[str] = "adapter.json"
    what: ClassVar[str] = "an adapter"
    repair: ClassVar[str] = "run peft_tune again to rebuild it"

    format: Literal[1] = 1
    method: PeftMethod
    base_model: str
    base_model_digest: str
    tokenizer_digest: str
    task: TaskConfig
    sentinel: Sentinel
    virtual_tokens: int | None = Field(None, gt=0, description="length of the prefix or prompt")
    rank: int | None = Field(None, gt=0, description="lora")
    alpha: float | None = Field(None, gt=0, description="lora")
    target_modules: list[str] | None = Field(None, description="lora, ia3")
    trained: int = Field(gt=0, description="number of trained parameters")
    max_input_length: int = Field(gt=0)
    max_target_length: int = Field(gt=0)
    seed: int = Field(ge=0)
    step: int = Field(ge=0)
    scores: dict[str, float] = Field(default_factory=dict)

    def content(self) -> dict[str, Any]:
        return self.model_dump(mode="json", exclude_none=True)


def candidates(artifact: Artifact) -> Iterator[Candidate]:
    info = AdapterInfo.load(artifact.path)
    about: dict[str, Any] = {"seed": info.seed, "step": info.step, "trained": info.trained}
    if info.virtual_tokens:
        about["prompt_length"] = info.virtual_tokens
    if info.rank:
        about["variant"] = f"rank {info.rank}"
    yield Candidate.of(
        _NAMES[info.method],
        artifact,
        info,
        about,
        load_model=partial(PeftT5.load, artifact.path),
        replace_in=lambda model: model.replace(artifact.path),
    )


class PeftT5(nn.Module):
    """A frozen T5 with one adapter, as a `ReadingModel`."""

    def __init__(self, adapted: Any, method: PeftMethod) -> None:
        """
        Args:
            adapted: PEFT's model around transformers' T5ForConditionalGeneration.
        """
        super().__init__()
        self.adapted = adapted
        self.method = method

    @classmethod
    def start(cls, model: str | Path, c: PeftTuneConfig) -> PeftT5:
        """Start a new adapter on the T5 of a directory or hub name.

        Raises:
            InputError: if PEFT is not installed, or the T5 does not have one of `target_modules`.
        """
        peft = _peft()
        t5 = _frozen_t5(model, c.dropout)
        names = {name.rpartition(".")[2] for name, _ in t5.named_modules()}
        if missing := [name for name in c.target_modules if name not in names]:
            raise InputError(f"target_modules: {model} has no projection {missing[0]}; choose others")
        torch.manual_seed(c.seed)
        with warnings.catch_warnings():
            # PEFT uses a deprecated name of transformers.
            warnings.simplefilter("ignore", FutureWarning)
            return cls(peft.get_peft_model(t5, _config(peft, c, t5.config)), c.method)

    @classmethod
    def load(cls, directory: Path, model: str | Path) -> PeftT5:
        """Load an adapter onto the T5 that it belongs to; never reads a pickle.

        Raises:
            InputError: if a file is missing.
        """
        peft, info = _peft(), AdapterInfo.load(directory)
        for name in (PEFT_WEIGHTS, PEFT_CONFIG):
            if not (directory / name).is_file():
                raise InputError(f"{directory / name}: does not exist; {info.repair}")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            return cls(peft.PeftModel.from_pretrained(_frozen_t5(model, 0.0), str(directory)), info.method)

    def replace(self, directory: Path) -> None:
        """Replace the adapter by another of the same method, on the same T5."""
        old = self.adapted.active_adapter
        new = "second" if old == "default" else "default"
        self.adapted.load_adapter(str(directory), adapter_name=new)
        self.adapted.set_adapter(new)
        self.adapted.delete_adapter(old)

    def save(self, directory: Path, info: AdapterInfo) -> None:
        """Write PEFT's own files, with only the tensors that inference needs, and adapter.json."""
        # The embedding is never trained; otherwise PEFT asks the hub whether its size has changed.
        self.adapted.save_pretrained(str(directory), safe_serialization=True, save_embedding_layers=False)
        info.save(directory)

    @property
    def special(self) -> SpecialTokens:
        return SpecialTokens.of_config(self.adapted.get_base_model().config.to_dict(), "the adapted T5")

    @property
    def trained(self) -> dict[str, Tensor]:
        """Every trained tensor by name."""
        return {name: p for name, p in self.named_parameters() if p.requires_grad}

    def forward(self, inputs_BS: Tensor, targets_BT: Tensor) -> Tensor:
        """fp32 logits [B, T, V] for each target token."""
        encoded_BSD, mask_BS = self.encode(None, inputs_BS)
        return self.decode(shift_right(targets_BT, start=self.special.start), encoded_BSD, mask_BS).float()

    def encode(self, prompt_B: Tensor | None, inputs_BS: Tensor) -> tuple[Tensor, Tensor | None]:
        """Encoder output [B, S, D] and its mask, bool [B, S]; with P-tuning, S includes the prompt.

        Args:
            prompt_B: must be None, because an adapter is not in a bank of prompts.
        """
        assert prompt_B is None
        t5, mask_BS = self.adapted.get_base_model(), inputs_BS != self.special.pad
        embedded_BSD = t5.get_input_embeddings()(inputs_BS)
        if self.method == "p_tuning":
            prompt_BPD = self.adapted.get_prompt(len(inputs_BS)).to(embedded_BSD.dtype)
            embedded_BSD = torch.cat([prompt_BPD, embedded_BSD], dim=1)
            mask_BS = torch.cat([mask_BS.new_ones(prompt_BPD.shape[:2]), mask_BS], dim=1)
        return t5.get_encoder()(inputs_embeds=embedded_BSD, attention_mask=mask_BS).last_hidden_state, mask_BS

    def decode(
        self, decoder_ids_RT: Tensor, encoded: Tensor, mask: Tensor | None, cache: DecoderCache | None = None
    ) -> Tensor:
        """Logits [R, T, V], not states as of our own T5s: transformers' T5 computes both in one call.

        Rows i·L … i·L+L−1 read input i. The cache contains only the ids so far, which are decoded again.
        """
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
        """fp32 logits [R, T, V] from the output of `decode`, which already consists of logits."""
        return hidden_RTD.float()


def adapter_size(c: PeftTuneConfig) -> dict[str, Any]:
    """The entries of `AdapterInfo` that say how large an adapter of these settings is."""
    if c.method == "lora":
        return {"rank": c.rank, "alpha": c.alpha, "target_modules": c.target_modules}
    if c.method == "ia3":
        return {"target_modules": c.target_modules}
    return {"virtual_tokens": c.virtual_tokens}


def _config(peft: Any, c: PeftTuneConfig, shape: Any) -> Any:
    """PEFT's settings of a method."""
    common: dict[str, Any] = {"task_type": "SEQ_2_SEQ_LM"}
    if c.method == "lora":
        return peft.LoraConfig(**common, r=c.rank, lora_alpha=c.alpha, target_modules=c.target_modules)
    if c.method == "ia3":
        # PEFT scales the inputs of these instead of the outputs: wo reads the inner activations.
        inner = [name for name in c.target_modules if name == "wo"]
        return peft.IA3Config(**common, target_modules=c.target_modules, feedforward_modules=inner)
    # Sizes are explicit because PEFT would infer d_model / heads as the size of a head, and the encoder's number of
    # layers for the decoder, neither of which holds for every T5.
    common["num_virtual_tokens"] = c.virtual_tokens
    if c.method == "p_tuning":
        return peft.PromptEncoderConfig(
            **common,
            token_dim=shape.d_model,
            num_transformer_submodules=1,
            encoder_hidden_size=c.hidden_size or shape.d_model,
        )
    return peft.PrefixTuningConfig(
        **common,
        token_dim=shape.num_heads * shape.d_kv,
        num_attention_heads=shape.num_heads,
        num_layers=shape.num_decoder_layers,
        prefix_projection=c.hidden_size > 0,
        encoder_hidden_size=c.hidden_size or None,
    )


def check_installed() -> None:
    """Check that PEFT is installed.

    Raises:
        InputError: if it is not.
    """
    if importlib.util.find_spec("peft") is None:
        raise InputError("peft_tune: PEFT is not installed; pip install 't5-pipeline[peft]'")


def _peft() -> Any:
    check_installed()
    import peft

    return peft


def _frozen_t5(model: str | Path, dropout: float) -> Any:
    """transformers' T5, frozen, with its output matrix tied or not as its configuration says."""
    return load_in_transformers(model, dropout_rate=dropout, dtype=torch.float32).requires_grad_(False)
