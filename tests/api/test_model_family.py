"""Every kind of T5 through the stages: adapt, publish, learn a prompt, answer, and load in transformers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import t5_pipeline
from t5_pipeline.data_prep.corpora.documents import corpus_chunks
from t5_pipeline.data_prep.shards.writer import write_tokens
from t5_pipeline.data_prep.tokenizer.vocabulary import Vocabulary
from t5_pipeline.methods.soft_prompt import Prompt
from t5_pipeline.modeling.in_transformers import load_in_transformers
from t5_pipeline.modeling.load import load_t5
from t5_pipeline.modeling.safetensors_dir import read_shape
from tests.data_prep.tokenizer.kinds import TEXTS
from tests.modeling.family import KINDS
from tests.tiny_run import stage

ROWS = "text,label\na fine café,good\na dull day,bad\nколо,good\nx = y\\n,bad\n"
ACIDS = "text,label\nA L G V,A L\nS R E D,G V\nT I P K,A L\nF Q N Y,G V\n"  # all that ProtT5 reads
DAILY = ("mT5", "Pile-T5", "ByT5", "CodeT5")
PROMPT = (
    "--prompt-length", 3, "--steps", 2, "--batch-size", 4, "--max-input-length", 32, "--precision", "fp32",
    "--select", "last",
)  # fmt: skip


@pytest.mark.parametrize(
    "name", [name if name in DAILY else pytest.param(name, marks=pytest.mark.soak) for name in KINDS]
)
def test_adapt_publish_tune_and_answer(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    kind, rows = KINDS[name], ACIDS if name == "ProtT5" else ROWS
    source = kind.write_with_tokenizer(tmp_path / "source")
    text = [TEXTS[0], TEXTS[1], "A L G V S R E D T I P K"] * 8
    (tmp_path / "text.jsonl").write_text("".join(json.dumps({"text": line}) + "\n" for line in text))
    write_tokens(corpus_chunks(tmp_path / "text.jsonl"), Vocabulary.load(source), tmp_path / "tokens")
    ended = stage(
        "lm_adapt", "--model", source, "--tokens", "tokens", "--segment-length", 12, "--batch-size", 4, "--steps", 2,
        "--learning-rate", 0.01, "--schedule", "constant", "--precision", "fp32", "--threads", 1, "--output-dir", "adapted",
    )  # fmt: skip
    assert ended.code == 0, ended.err
    before, after = load_t5(source), load_t5("adapted/model")
    assert after.shape == before.shape == read_shape(tmp_path / "adapted/model")
    assert all(not torch.equal(p, q) for p, q in zip(before.parameters(), after.parameters(), strict=True))

    ended = stage("sentinel", "--model", "adapted/model", "--threads", 1, "--output-dir", "published")
    assert ended.code == 0, ended.err
    (tmp_path / "rows.csv").write_text(rows)
    labels = sorted({line.split(",")[1] for line in rows.splitlines()[1:]})
    task = {"name": "tone", "data": "rows.csv", "inputs": "{text}", "targets": "{label}", "labels": labels}
    (tmp_path / "tone.yaml").write_text(json.dumps(task))
    ended = stage(
        "prompt_tune", "--model", "published/model", "--task", "tone.yaml", *PROMPT, "--threads", 1,
        "--output-dir", "prompts/tone",
    )  # fmt: skip
    assert ended.code == 0, ended.err
    assert Prompt.load(tmp_path / "prompts/tone/prompt").info.sentinel == "targets"
    served = t5_pipeline.load("published/model", prompts="prompts", precision="fp32")
    (found,) = served.classify([{"text": rows.splitlines()[1].split(",")[0]}], prompt="tone")
    assert found.label in labels

    from transformers import AutoTokenizer

    for published in ("adapted/model", "published/model"):
        tokens = AutoTokenizer.from_pretrained(published)(rows.splitlines()[1], return_tensors="pt").input_ids
        targets, start = torch.tensor([[5, 6, kind.special[1]]]), torch.tensor([[0, 5, 6]])
        with torch.no_grad():
            ours = load_t5(published).eval()(tokens, targets)
            theirs = load_in_transformers(published).eval()(input_ids=tokens, decoder_input_ids=start).logits
        torch.testing.assert_close(ours, theirs, atol=5e-5, rtol=1e-5)
