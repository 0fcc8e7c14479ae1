"""The command `doctor`: text, JSON and exit codes."""

from __future__ import annotations

import json
from pathlib import Path

from tests.tiny_run import Tiny, refused, t5_pipeline


def test_text_and_json(finished: Tiny, tmp_path: Path) -> None:
    said = t5_pipeline("doctor", finished.run / "lm_adapt")
    assert said.code == 0, said
    assert "✓ forward pass" in said.out
    assert said.out.endswith("nothing is wrong\n")
    assert max(map(len, said.out.splitlines())) <= 120
    found = json.loads(t5_pipeline("doctor", finished.run / "lm_adapt", "--json").out)
    assert found["ok"]
    assert found["what"] == "T5"
    assert found["facts"]["vocabulary"]["pieces"] == 300
    for check in found["checks"]:
        assert check.keys() == {"name", "state", "found", "fix"}
    prompt = t5_pipeline("doctor", finished.run / "prompt_tune" / "model=sentinel,seed=0")
    assert prompt.code == 0, prompt.out
    assert "is the T5 that it was trained on" in prompt.out
    corpus = t5_pipeline("doctor", finished.data / "corpus", "--model", finished.run / "lm_adapt")
    assert corpus.code == 0, corpus.out
    assert t5_pipeline("doctor", finished.run / "prepare").code == 0


def test_a_wrong_model(finished: Tiny, tmp_path: Path) -> None:
    prompt = finished.run / "prompt_tune" / "model=sentinel,seed=0"
    said = t5_pipeline("doctor", prompt, "--model", finished.run / "lm_adapt")
    assert said.code == 2
    assert "✗ T5" in said.out
    assert "→ give the T5 that it was trained on as --model" in said.out
    assert said.out.endswith("1 wrong\n")
    refused(t5_pipeline("doctor", tmp_path / "nowhere"), r"WHAT: .*nowhere does not exist; check the path")
    missing = t5_pipeline("doctor", "absent/rows.ndjson.gz")
    assert (missing.code, "✗ documents  corpus absent/rows.ndjson.gz does not exist" in missing.out) == (2, True)
    refused(t5_pipeline("doctor", finished.run / "evaluate"), r".*evaluate: contains scores; give .*")


def test_several_results(finished: Tiny, tmp_path: Path) -> None:
    """Not a corpus, although a run contains JSON files."""
    refused(
        t5_pipeline("doctor", finished.run),
        r".*run: contains several results; give one of them: (\S+/(lm_adapt|prepare|pretrain|prompt_tune/\S+), )+…",
    )
    refused(
        t5_pipeline("doctor", finished.run / "prompt_tune"),
        r".*prompt_tune: contains several results; give one of them: (\S+seed=[01](, )?){6}",
    )
    folder = tmp_path / "corpus" / "project"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text('{"text": "a document"}')
    assert "corpus" in t5_pipeline("doctor", tmp_path / "corpus").out


def test_a_recipe_is_not_a_task(finished: Tiny) -> None:
    said = t5_pipeline("doctor", finished.recipe)
    assert said.code == 2
    assert f"{finished.recipe}: is a recipe → write the task in a file of its own" in " ".join(said.out.split())
