"""The kinds of T5 in the tests, and the family table of docs/models.md, which is made from them.

python -m tests.modeling.family          write the table into docs/models.md
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from t5_pipeline.data_prep.tokenizer.vocabulary import Vocabulary
from tests.data_prep.tokenizer import kinds as tokenizers
from tests.tiny_run import ROOT

PAGE = ROOT / "docs" / "models.md"
BEGIN, END = "<!-- family table: python -m tests.modeling.family -->\n", "<!-- end of family table -->\n"


@dataclass(frozen=True)
class Kind:
    """One kind of T5.

    Attributes:
        members: published models of this kind.
        differs: what differs from T5 1.1, for the table.
        tokenizer: its tokenizer, for the table.
        config: entries of its config.json, as published.
        untied: whether the weights contain an output matrix.
        embedding: name of the embedding in the published weights.
        files: writes its tokenizer, small.
        sentinels: their number.
    """

    members: str
    differs: str
    tokenizer: str
    config: dict[str, Any] = field(default_factory=dict)
    untied: bool = True
    embedding: str = "shared.weight"
    files: Callable[[Path], Path] = tokenizers.t5
    sentinels: int = 100

    @property
    def special(self) -> tuple[int, int]:
        """Ids of padding and EOS."""
        return self.config.get("pad_token_id", 0), self.config.get("eos_token_id", 1)

    def write(self, directory: Path) -> Path:
        """Write a random checkpoint of this kind as it is published: config.json and safetensors."""
        from transformers import AutoConfig, AutoModelForSeq2SeqLM

        directory.mkdir(parents=True, exist_ok=True)
        config = {**SIZES, **self.config}
        torch.manual_seed(5)
        theirs = AutoModelForSeq2SeqLM.from_config(AutoConfig.for_model(**config))
        tensors = {name: 0.5 + p.detach() if "norm" in name else p.detach() for name, p in theirs.named_parameters()}
        tensors[self.embedding] = tensors.pop("shared.weight")
        if self.untied:
            tensors["lm_head.weight"] = torch.randn(config["vocab_size"], config["d_model"]) * 0.5
        save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
        (directory / "config.json").write_text(json.dumps(config))
        return directory

    def write_with_tokenizer(self, directory: Path) -> Path:
        """Also its tokenizer, with as many rows of the embedding as that needs."""
        self.files(directory)
        rows = Vocabulary.load(directory).rows
        return replace(self, config={**self.config, "vocab_size": rows}).write(directory)


SIZES = {
    "model_type": "t5", "vocab_size": 96, "d_model": 16, "d_kv": 8, "d_ff": 24, "num_layers": 2, "num_decoder_layers": 2,
    "num_heads": 2, "relative_attention_num_buckets": 8, "relative_attention_max_distance": 12,
    "feed_forward_proj": "gated-gelu", "tie_word_embeddings": False, "pad_token_id": 0, "eos_token_id": 1,
    "decoder_start_token_id": 0,
}  # fmt: skip

_SENTENCEPIECE = "SentencePiece, 100 sentinels above the pieces, `<extra_id_0>` highest"
_ORIGINAL = {"feed_forward_proj": "relu", "tie_word_embeddings": True}

KINDS = {
    "T5 1.1": Kind("`google/t5-v1_1-*`, `google/t5-*-lm-adapt`, Flan-T5, T0", "–", _SENTENCEPIECE),
    "T5 1.1 by transformers 5": Kind(
        "T5 1.1 after `save_pretrained`",
        "`tie_word_embeddings: true`, though the output matrix is separate",
        "`tokenizer.json` without `spiece.model`, which is rebuilt from it",
        {"tie_word_embeddings": True, "scale_decoder_outputs": False},
        files=tokenizers.t5_json,
    ),
    "new T5 1.1 of transformers 5": Kind(
        "a T5 1.1 that transformers 5 made or resized",
        "the output matrix is the embedding; outputs are not scaled",
        _SENTENCEPIECE,
        {"tie_word_embeddings": True, "scale_decoder_outputs": False},
        untied=False,
    ),
    "T5 1.0": Kind(
        "`google-t5/t5-*`",
        "ReLU; the output matrix is the embedding; outputs are scaled",
        _SENTENCEPIECE,
        _ORIGINAL,
        untied=False,
    ),
    "UL2": Kind(
        "`google/ul2`, `google/flan-ul2`",
        "gated SiLU; the output matrix is the embedding; outputs are scaled",
        f"{_SENTENCEPIECE}; mode tokens (`[NLU]`, …) are text",
        {"feed_forward_proj": "gated-silu", "tie_word_embeddings": True},
        untied=False,
    ),
    "mT5": Kind(
        "`google/mt5-*`, mT0, aya-101 (as `t5`)",
        "–",
        "SentencePiece, sentinels are pieces",
        {"model_type": "mt5"},
        files=tokenizers.mt5,
    ),
    "umT5": Kind(
        "`google/umt5-*`",
        "position biases in every layer; transformers 5 scales the outputs (see below)",
        "SentencePiece, 300 sentinels above the pieces",
        {"model_type": "umt5"},
        files=tokenizers.umt5,
        sentinels=300,
    ),
    "umT5 by transformers 5": Kind(
        "a umT5 after `save_pretrained`",
        "position biases in every layer; outputs are scaled",
        "as umT5",
        {"model_type": "umt5", "tie_word_embeddings": True},
        files=tokenizers.umt5,
        sentinels=300,
    ),
    "Pile-T5": Kind(
        "`EleutherAI/pile-t5-*`",
        "position biases in every layer; ids of padding and EOS",
        "Llama's SentencePiece (BPE with byte fallback), `tokenizer.model`",
        {"model_type": "umt5", "scalable_attention": True, "pad_token_id": 1, "eos_token_id": 2},
        files=tokenizers.pile_t5,
    ),
    "ByT5": Kind(
        "`google/byt5-*`",
        "three encoder layers for each decoder layer",
        "bytes, 384 ids; sentinels are the bytes from 0xFF down, as in pretraining",
        {"num_layers": 3, "num_decoder_layers": 1, "vocab_size": 384},
        files=tokenizers.byt5,
    ),
    "MADLAD-400": Kind(
        "`google/madlad400-*`",
        "padding 1, EOS 2, the decoder starts with 0; the embedding has another name in the file",
        "SentencePiece; languages are pieces",
        {"pad_token_id": 1, "eos_token_id": 2},
        embedding="decoder.embed_tokens.weight",
        files=tokenizers.madlad,
        sentinels=0,
    ),
    "CodeT5": Kind(
        "`Salesforce/codet5-*`, `Salesforce/codet5p-220m`, `-770m`",
        "as T5 1.0; EOS 2",
        "byte-level BPE; sentinels in either order",
        {**_ORIGINAL, "eos_token_id": 2},
        untied=False,
        files=tokenizers.codet5,
    ),
    "ProtT5": Kind(
        "`Rostlab/prot_t5_xl_*`",
        "as T5 1.0; 128 rows",
        "SentencePiece of amino acids, 100 sentinels above 28 pieces",
        {**_ORIGINAL, "vocab_size": 128},
        untied=False,
        files=tokenizers.prot_t5,
    ),
}  # fmt: skip


def table() -> str:
    """The family table, in Markdown."""
    rows = [f"| {name} | {kind.members} | {kind.differs} | {kind.tokenizer} |" for name, kind in KINDS.items()]
    head = "| kind | published models | differs from T5 1.1 | tokenizer |\n|---|---|---|---|\n"
    return head + "\n".join(rows) + "\n"


def page_with_table(page: str) -> str:
    """The page with the current table between its markers."""
    return re.sub(f"(?s)(?<={re.escape(BEGIN)}).*?(?={re.escape(END)})", lambda _: table(), page)


if __name__ == "__main__":
    PAGE.write_text(page_with_table(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
