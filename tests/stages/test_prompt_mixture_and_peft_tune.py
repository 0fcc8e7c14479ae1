"""The baselines of prompt tuning, run as stages and scored in one table."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.torch import load_file

from t5_pipeline.artifacts.kinds import artifact_digest
from t5_pipeline.evaluation.ensemble import vote
from t5_pipeline.evaluation.predict import Outputs
from t5_pipeline.methods.mixture import Mixture
from t5_pipeline.methods.soft_prompt import Prompt
from t5_pipeline.methods.text_prompt import TextPrompt
from t5_pipeline.modeling.config import T5Config
from tests.tiny_run import Tiny, refused, scores, stage, t5_pipeline

TRAINED = (
    "--steps", 4, "--batch-size", 4, "--max-input-length", 32, "--max-target-length", 8, "--validate-every", 2,
    "--validation-limit", 6, "--checkpoint-every", 2, "--precision", "fp32", "--threads", 1,
)  # fmt: skip


@pytest.fixture(scope="module")
def place(finished: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Task files, and one artifact of each method on the same adapted T5."""
    path = tmp_path_factory.mktemp("methods")
    rows = str(finished.data / "rows")
    about: dict[str, Any] = {
        "data": rows,
        "inputs": "about: {text}",
        "targets": "{label}",
        "labels": ["files", "numbers"],
    }
    (path / "about.yaml").write_text(json.dumps(about | {"metrics": ["accuracy", "macro_f1"]}))
    (path / "short.yaml").write_text(
        json.dumps(about | {"inputs": "{name}", "splits": {"train": "train[:20]", "test": "test"}})
    )
    (path / "name.yaml").write_text(
        json.dumps({"data": rows, "inputs": "{text}", "targets": "{name}", "metrics": ["token_f1"]})
    )
    for kind, name, more in (
        ("prompt_mixture", "mixture", ("--components", 3, "--prompt-length", 2)),
        ("prompt_mixture", "free", ("--components", 2, "--prompt-length", 2, "--prompt-init", "vocabulary")),
        ("peft_tune", "prefix", ("--method", "prefix_tuning", "--virtual-tokens", 3)),
        ("peft_tune", "p", ("--method", "p_tuning", "--virtual-tokens", 3)),
        ("peft_tune", "lora", ("--method", "lora", "--rank", 2)),
        ("peft_tune", "ia3", ("--method", "ia3")),
    ):
        task = path / ("name.yaml" if name == "free" else "about.yaml")
        run(finished, kind, path / name, "--task", task, *TRAINED, *more)
    words = (
        "--shots",
        2,
        "--max-input-length",
        96,
        "--templates",
        "{input}",
        "{input} It is about",
        "--validation-limit",
        6,
    )
    run(
        finished,
        "prompt_design",
        path / "words",
        "--task",
        path / "about.yaml",
        *words,
        "--precision",
        "fp32",
        "--threads",
        1,
    )
    return path


def run(finished: Tiny, kind: str, output: Path, *more: object) -> None:
    ended = stage(kind, "--model", finished.run / "lm_adapt", *more, "--output-dir", output)
    assert ended.code == 0, ended.err


def evaluated(output: Path, *more: object) -> list[dict[str, Any]]:
    ended = stage("evaluate", *more, "--limit", 9, "--precision", "fp32", "--threads", 1, "--max-output-length", 6,
                  "--output-dir", output)  # fmt: skip
    assert ended.code == 0, ended.err
    return scores(output)


def test_every_method_is_a_row_of_the_same_table(finished: Tiny, place: Path, tmp_path: Path) -> None:
    prompts = tmp_path / "prompts"
    prompts.mkdir()
    for seed in (0, 1):
        (prompts / f"seed{seed}").symlink_to(finished.run / "prompt_tune" / f"model=lm_adapt,seed={seed}")
    adapters = tmp_path / "adapters"
    adapters.mkdir()
    for name in ("prefix", "lora", "ia3"):
        (adapters / name).symlink_to(place / name)
    rows = evaluated(
        tmp_path / "scores", "--prompts", prompts, "--mixtures", place / "mixture", "--text-prompts", place / "words",
        "--adapters", adapters, "--also-on", place / "short.yaml", "--latency-tasks", 1, 3,
    )  # fmt: skip
    own = [row for row in rows if row["task"] == "about"]
    assert [row["method"] for row in own] == [
        "no prompt", "majority class", "prompt tuning", "prompt tuning", "prompt mixture", "prompt design",
        "(IA)³", "LoRA", "prefix tuning", "ensemble",
    ]  # fmt: skip
    assert [row["method"] for row in rows if row["task"] == "short"] == [row["method"] for row in own]
    by_method = {row["method"]: row for row in own}
    assert by_method["prompt design"]["variant"] == "2 shots"
    assert by_method["prompt mixture"]["variant"] == "3 prompts"
    assert by_method["ensemble"]["variant"] == "2 prompts"
    assert by_method["LoRA"]["variant"] == "rank 2"
    t5 = T5Config.from_config(json.loads((finished.run / "lm_adapt" / "model" / "config.json").read_text()))
    inner, attentions = t5.num_heads * t5.d_kv, t5.num_layers + 2 * t5.num_decoder_layers
    lora = attentions * 2 * 2 * (t5.d_model + inner)  # rank 2, of q and v
    ia3 = attentions * 2 * inner + (t5.num_layers + t5.num_decoder_layers) * t5.d_ff  # k, v and the inner activations
    assert {method: row["trained"] for method, row in by_method.items() if "trained" in row} == {
        "no prompt": 0, "majority class": 0, "prompt design": 0, "prompt tuning": 4 * 32, "ensemble": 2 * 4 * 32,
        "prompt mixture": 3 * (2 * 32 + 1), "prefix tuning": 3 * 2 * 32, "LoRA": lora, "(IA)³": ia3,
    }  # fmt: skip
    for row in own:
        assert set(row["metrics"]) == {"accuracy", "macro_f1"}
        if row["method"] != "majority class":
            assert sum(row["illegal_by_label"]) == pytest.approx(row["illegal"] * 9)
    for row in rows:
        shifted = row["task"] == "short" and row["method"] not in ("no prompt", "majority class")
        assert row.get("trained_on") == ("about" if shifted else None)
    for row in json.loads((tmp_path / "scores/scores/scores.json").read_text())["rows"]:
        a_solution = row["method"] not in ("no prompt", "majority class", "ensemble")
        assert (row.get("bytes", 0) > 0, row.get("peak_bytes", 0) > 0) == (a_solution, a_solution), row["method"]
        assert ("latency_seconds" in row) == (a_solution and row["task"] == "about")
        assert list(row.get("latency_seconds", {"1": 0, "3": 0})) == ["1", "3"]
    lines = [json.loads(line) for line in (tmp_path / "scores/scores/predictions.jsonl").read_text().splitlines()]
    assert len(lines) == 9 * len(rows), "every method answers every row"
    for row, begin in zip(rows, range(0, len(lines), 9), strict=True):
        mine = lines[begin : begin + 9]
        assert {(line["task"], line["method"], line.get("cell")) for line in mine} == {
            (row["task"], row["method"], row.get("cell"))
        }
        assert [line["row"] for line in mine] == list(range(1, 10))
        right = [line["output"] == line["target"] for line in mine]
        assert sum(right) / 9 == pytest.approx(row["metrics"]["accuracy"])
    neighbors = by_method["prompt tuning"]["neighbors"]
    assert [len(row) for row in neighbors] == [5] * 4
    assert "neighbors" not in by_method["ensemble"]

    for method in ("mixture", "words", "prefix", "lora"):
        (prompts / method).symlink_to(place / method)
    cells = {"prompt mixture": "mixture", "prompt design": "words", "prefix tuning": "prefix", "LoRA": "lora",
             "prompt tuning": "seed0"}  # fmt: skip
    mine = [line for line in lines if line["task"] == "about" and line["method"] in cells]
    asked = [{"prompt": cells[line["method"]], "input": line["input"]} for line in mine]
    (tmp_path / "asked.jsonl").write_text("".join(json.dumps(line) + "\n" for line in asked))
    said = t5_pipeline("predict", "--model", finished.run / "lm_adapt", "--prompts", prompts, "--precision", "fp32",
                       "--threads", 1, "--input", tmp_path / "asked.jsonl", "--batch-size", 4)  # fmt: skip
    assert said.code == 0, said.err
    found = [json.loads(line) for line in said.out.splitlines()]
    seeds = [line for line in mine if line["method"] == "prompt tuning"]
    for line, answer in zip(mine, found, strict=True):
        if line not in seeds[9:]:  # those of the other seed
            assert answer["scores"] == pytest.approx(line["scores"], abs=1e-4), line["method"]


def test_an_ensemble_is_the_majority_vote_of_its_prompts(finished: Tiny, place: Path, tmp_path: Path) -> None:
    """Scored alone, each prompt answers as in the shared batch, and the vote uses exactly these answers."""
    rows = scores(finished.run / "evaluate")
    single = [row for row in rows if row["method"] == "prompt tuning" and row["model"] == "lm_adapt"]
    (ensemble,) = [row for row in rows if row["method"] == "ensemble" and row["model"] == "lm_adapt"]
    assert (ensemble["source"], ensemble["cell"], ensemble["settings"]) == (
        "prompt_tune", "model=lm_adapt", single[0]["settings"],
    )  # fmt: skip
    answered = [{s["input"]: s["output"] for s in row["samples"]} for row in single]
    inputs = [s["input"] for s in ensemble["samples"]]
    voted = vote([Outputs([answers[text] for text in inputs], []) for answers in answered])
    same = [a == b for a, b in zip(voted.texts, [s["output"] for s in ensemble["samples"]], strict=True)]
    agreed = [answered[0][text] == answered[1][text] for text in inputs]
    assert all(ok for ok, clear in zip(same, agreed, strict=True) if clear)
    for row in single:
        (alone,) = [
            found
            for found in evaluated(
                tmp_path / row["cell"],
                "--prompts",
                finished.run / "prompt_tune" / row["cell"],
                "--no-baselines",
                "--scoring",
                row["scoring"],
            )
            if found["method"] == "prompt tuning"
        ]
        mine = {s["input"]: s["output"] for s in row["samples"]}
        assert all(mine[s["input"]] == s["output"] for s in alone["samples"] if s["input"] in mine)


def test_prompts_of_a_mixture_can_be_used_alone(place: Path, tmp_path: Path) -> None:
    mixture = Mixture.load(place / "mixture" / "mixture")
    assert [prompt.info.seed for prompt in mixture.prompts] == [0, 1, 2]
    assert sum(mixture.weights) == pytest.approx(1)
    assert len(set(mixture.weights)) == 3
    assert set(mixture.scores) == {"accuracy", "macro_f1"}

    # With all the weight on one prompt, it answers like that prompt, with labels or with free text.
    for name, weights in (("mixture", [0.0, 1.0, 0.0]), ("free", [0.0, 1.0])):
        prompts = Mixture.load(place / name / "mixture").prompts
        Mixture(prompts, weights).save(tmp_path / name / "mixture")
        prompts[1].save(tmp_path / name / "prompt")
        (one,) = evaluated(tmp_path / name / "one", "--mixtures", tmp_path / name / "mixture", "--no-baselines")
        (alone,) = evaluated(tmp_path / name / "alone", "--prompts", tmp_path / name / "prompt", "--no-baselines")
        for key in ("samples", "metrics", "by_scoring", "illegal"):
            assert one[key] == alone[key]


def test_more_steps_resume_where_training_ended(finished: Tiny, place: Path, tmp_path: Path) -> None:
    for kind, artifact, more in (
        ("prompt_mixture", "mixture", ("--components", 2, "--prompt-length", 2)),
        ("peft_tune", "adapter", ("--method", "lora", "--rank", 2)),
    ):
        for name, all_steps in (("parts", (3, 6)), ("whole", (6,))):
            for steps in all_steps:
                given = [*TRAINED[2:], "--steps", steps, *more]
                run(finished, kind, tmp_path / kind / name, "--task", place / "about.yaml", *given)
        parts, whole = (tmp_path / kind / name / artifact for name in ("parts", "whole"))
        assert artifact_digest(artifact, parts) == artifact_digest(artifact, whole)


def test_the_best_template_on_the_validation_rows_is_published(place: Path) -> None:
    prompt = TextPrompt.load(place / "words" / "text_prompt")
    assert prompt.template in ("{input}", "{input} It is about")
    assert len(prompt.demonstrations) == 2
    assert {text.rpartition(" ")[2] for text in prompt.demonstrations} == {"files", "numbers"}
    assert set(prompt.scores) == {"accuracy", "macro_f1"}


def test_an_adapter_is_stored_in_peft_s_own_format(place: Path) -> None:
    for name, width in (("prefix", 2 * 32), ("p", 32)):
        (tensor,) = load_file(place / name / "adapter" / "adapter_model.safetensors").values()
        assert list(tensor.shape) == [3, width]
        assert np.isfinite(tensor.numpy()).all()
        assert not list((place / name / "adapter").glob("*.bin"))


def test_inputs_that_cannot_be_scored_are_refused(finished: Tiny, place: Path, tmp_path: Path) -> None:
    common = ("--precision", "fp32", "--threads", 1, "--output-dir", tmp_path / "x")
    refused(
        stage("evaluate", *common),
        "evaluate.py: there is nothing to score; give one of `--prompts`, `--task-prompts`,.*",
    )
    refused(
        stage("evaluate", "--tuned-models", finished.run / "lm_adapt", *common),
        ".*was not tuned on a task; give a model that model_tune published",
    )
    prompts = finished.run / "prompt_tune" / "model=lm_adapt,seed=0"
    for given in (("--mixtures", "mixture"), ("--text-prompts", "words"), ("--adapters", "prefix")):
        refused(
            stage("evaluate", given[0], place / given[1], "--split", "gone", *common),
            r"--split: task `about` has no split 'gone'; .*",
        )
    asked = ("--metrics", "about=referent")
    refused(
        stage("evaluate", "--prompts", prompts, *asked, *common),
        r"--metrics: .*`referent` needs the task's `holds`.*",
    )
    refused(
        stage("evaluate", "--prompts", prompts, "--also-on", place / "name.yaml", *common),
        r"--also-on: no candidate has the labels of name \(free text\), only about: files, numbers; .*",
    )
    mixture = place / "mixture" / "mixture"
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "mixture.json").write_text((mixture / "mixture.json").read_text().replace("0.3", "0.9"))
    refused(stage("evaluate", "--mixtures", tmp_path / "broken", *common), ".*weights: do not add up to 1.*")
    assert Prompt.load(mixture / "0").info.prompt_length == 2
