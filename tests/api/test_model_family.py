"""Other members of the T5 family through the stages: publish, learn a prompt, answer, and load in transformers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import t5_pipeline
from t5_pipeline.data_prep.tokenizer.vocabulary import Vocabulary
from t5_pipeline.methods.soft_prompt import Prompt
from t5_pipeline.modeling.in_transformers import load_in_transformers
from t5_pipeline.modeling.load import load_t5
from tests.data_prep.tokenizer.kinds import byt5, codet5, pile_t5
from tests.modeling.family import KINDS
from tests.tiny_run import stage

TASK = '{name: tone, data: rows.csv, inputs: "{text}", targets: "{label}", labels: [good, bad]}'
ROWS = "text,label\na fine café,good\na dull day,bad\nколо,good\nx = y\\n,bad\n"


@pytest.mark.parametrize(("name", "tokenizer"), [("ByT5", byt5), ("Pile-T5", pile_t5), ("CodeT5", codet5)])
def test_publish_tune_and_answer(
    name: str, tokenizer: Callable[[Path], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    source = tokenizer(tmp_path / "source")
    kind = KINDS[name]
    replace(kind, config={**kind.config, "vocab_size": Vocabulary.load(source).rows}).write(source)
    ended = stage("sentinel", "--model", source, "--threads", 1, "--output-dir", "published")
    assert ended.code == 0, ended.err
    (tmp_path / "rows.csv").write_text(ROWS)
    (tmp_path / "tone.yaml").write_text(TASK)
    ended = stage(
        "prompt_tune", "--model", "published/model", "--task", "tone.yaml", "--prompt-length", 3, "--steps", 2,
        "--batch-size", 4, "--max-input-length", 32, "--precision", "fp32", "--threads", 1, "--select", "last",
        "--output-dir", "prompts/tone",
    )  # fmt: skip
    assert ended.code == 0, ended.err
    assert Prompt.load(tmp_path / "prompts/tone/prompt").info.sentinel == "targets"
    served = t5_pipeline.load("published/model", prompts="prompts", precision="fp32")
    (found,) = served.classify([{"text": "a fine café"}], prompt="tone")
    assert found.label in ("good", "bad")

    from transformers import AutoTokenizer

    tokens = AutoTokenizer.from_pretrained("published/model")("a fine café", return_tensors="pt").input_ids
    targets = torch.tensor([[5, 6, kind.special[1]]])
    with torch.no_grad():
        ours = load_t5("published/model").eval()(tokens, targets)
        start = torch.tensor([[0, 5, 6]])
        theirs = load_in_transformers("published/model").eval()(input_ids=tokens, decoder_input_ids=start).logits
    torch.testing.assert_close(ours, theirs, atol=5e-5, rtol=1e-5)
