"""Evaluation on a finished run."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from t5_pipeline.artifacts import manifest as manifests
from t5_pipeline.data_prep.tasks.counts import RowCounts
from tests.tiny_run import Tiny, refused, scores, stage, t5_pipeline


def test_changed_metrics_rerun_only_evaluate(tiny: Tiny) -> None:
    before = tiny.digests()
    tiny.edit("  evaluate: {", "  evaluate: {metrics: {about: [accuracy, mcc]}, ")
    assert [line.split()[:2] for line in tiny.plan() if not line.startswith("up to date")] == [["run", "evaluate"]]
    done = tiny.start()
    assert done.code == 0, done.err
    assert {tuple(row["metrics"]) for row in scores(tiny.run / "evaluate")} == {("accuracy", "mcc")}
    assert tiny.digests() == before


def test_both_ways_of_scoring_are_recorded(finished: Tiny, tmp_path: Path) -> None:
    """`scoring` chooses the metrics, confusion and samples; the rest of a row stays the same."""
    cell = "model=lm_adapt,seed=0"
    flags = ("--precision", "fp32", "--limit", 8, "--threads", 1)
    done = stage("evaluate", "--prompts", finished.run / "prompt_tune" / cell, *flags, "--output-dir", tmp_path / "x")
    assert done.code == 0, done.err
    (decoded,) = [row for row in scores(tmp_path / "x") if row["method"] == "prompt tuning"]
    (likeliest,) = [row for row in scores(finished.run / "evaluate") if row.get("cell") == cell]
    labels = set(decoded["labels"])
    for row, scoring in ((decoded, "decode"), (likeliest, "likelihood")):
        assert (row["scoring"], row["metrics"]) == (scoring, row["by_scoring"][scoring])
        assert row["by_scoring"] == decoded["by_scoring"]
        illegal = sum(counts[-1] for counts in row["confusion"])
        assert illegal == (sum(row["illegal_by_label"]) if scoring == "decode" else 0)
        assert row["illegal"] == sum(row["illegal_by_label"]) / 8 == decoded["illegal"]
    assert sum(sample["output"] not in labels for sample in decoded["samples"]) == decoded["illegal"] * 8
    assert {sample["output"] for sample in likeliest["samples"]} <= labels


def test_t5s_of_two_cells_have_names_of_their_own(tiny: Tiny) -> None:
    """In scores, prompts and tuned models, and so in votes, in the table that ends the run and in its report."""
    t5s = ["lm_adapt/objective=prefix_lm", "lm_adapt/objective=lm"]
    tiny.edit("    segment_length: 48\n", "    segment_length: 48\n    matrix: {objective: [prefix_lm, lm]}\n")
    tiny.edit("[lm_adapt@4, lm_adapt, sentinel]", f"[{', '.join(t5s)}]")
    tuned = f"{{uses: model_tune, tasks: about, steps: 1, batch_size: 4, threads: 1, matrix: {{model: [{', '.join(t5s)}]}}}}"
    tiny.edit("  evaluate: {", f"  tuned: {tuned}\n  evaluate: {{tuned_models: tuned, ")
    done = tiny.start()
    assert done.code == 0, done.err
    ends = [line.split("  ")[0] for line in done.out.splitlines() if "(objective=lm)" in line]
    assert ends == ["Prompt tuning", "Ensemble, 2 prompts", "Model tuning", "No prompt"]
    found = scores(tiny.run / "evaluate")
    for t5 in t5s:
        assert f"evaluate: about, no prompt on {t5}: accuracy" in done.err
        cell = "model=" + t5.replace("/", "-").replace("=", "-")
        assert f"evaluate: about, prompt tuning, {cell},seed=0: accuracy" in done.err
        rows = [row for row in found if row["model"] == t5 and row["method"] != "majority class"]
        assert [(row["method"], row.get("source"), row.get("cell")) for row in rows] == [
            ("no prompt", None, None),
            ("prompt tuning", "prompt_tune", f"{cell},seed=0"),
            ("prompt tuning", "prompt_tune", f"{cell},seed=1"),
            ("ensemble", "prompt_tune", cell),
            ("model tuning", "tuned", cell),
        ]
        prompt = json.loads((tiny.run / "prompt_tune" / f"{cell},seed=0/prompt/prompt.json").read_text())
        assert prompt["base_model"] == t5
    assert {row["model"] for row in found} == set(t5s)
    assert all(line.startswith("up to date") for line in tiny.plan())


def test_metrics_flag_names_task(tiny: Tiny) -> None:
    output = tiny.run.parent / "scores"
    prompts = ["--prompts", tiny.run / "prompt_tune" / "model=sentinel,seed=0", "--precision", "fp32", "--limit", 4]
    done = stage("evaluate", *prompts, "--metrics", "about=mcc,f1", "--output-dir", output)
    assert done.code == 0, done.err
    assert {tuple(row["metrics"]) for row in scores(output)} == {("mcc", "f1")}
    data = json.loads((output / "scores" / "scores.json").read_text())["data"]
    (counts,) = [RowCounts.model_validate(row) for row in data]
    manifest = manifests.read(output)
    assert manifest is not None
    assert manifest.rows == [counts]
    assert (counts.split, counts.used) == ("test", 4)
    assert counts.dropped == {"over the limit": counts.read - 4}
    assert f"evaluate: {counts}" in done.err
    refused(stage("evaluate", *prompts, "--metrics", "f1", "--output-dir", output), ".*")


def test_two_tasks_of_one_name_are_refused(finished: Tiny, tmp_path: Path) -> None:
    """Their scores would have one name in the table and the report."""
    prompts = tmp_path / "prompts"
    for name in ("a", "b"):
        shutil.copytree(finished.run / "prompt_tune/model=lm_adapt,seed=0/prompt", prompts / name)
    info = json.loads((prompts / "b/prompt.json").read_text())
    info["task"]["inputs"] = "page: {text}"
    (prompts / "b/prompt.json").write_text(json.dumps(info))
    done = stage("evaluate", "--prompts", prompts, "--precision", "fp32", "--output-dir", tmp_path / "x")
    assert done.code == 2
    assert f"{prompts}/b: its task about is not that of {prompts}/a (other inputs); rename one of them" in done.err
    # Other training rows do not make another task.
    info["task"] |= {"inputs": json.loads((prompts / "a/prompt.json").read_text())["task"]["inputs"]}
    info["task"]["splits"] |= {"train": "train[:50%]"}
    (prompts / "b/prompt.json").write_text(json.dumps(info))
    limits = ("--model", finished.run / "lm_adapt", "--limit", 4, "--threads", 1, "--no-baselines")
    done = stage("evaluate", "--prompts", prompts, "--precision", "fp32", *limits, "--output-dir", tmp_path / "x")
    assert done.code == 0, done.err


def test_the_split_of_prompts_at_a_path_is_checked_before_the_run(tiny: Tiny, tmp_path: Path) -> None:
    prompts = tiny.run / "prompt_tune"
    said = r"(--split|\S+:\d+: stages\.evaluate\.split): task `about` has no split 'gone'; choose one of train, .*"
    refused(stage("evaluate", "--prompts", prompts, "--split", "gone", "--output-dir", tmp_path / "x"), said)
    assert not (tmp_path / "x").exists()
    tiny.edit("  evaluate: {prompts: prompt_tune, ", f"  evaluate: {{prompts: {prompts}, split: gone, ")
    refused(t5_pipeline("plan", tiny.recipe, "--run-dir", tiny.run), said)


def test_metrics_of_prompts_at_a_path(tiny: Tiny, tmp_path: Path) -> None:
    """Their tasks count as those of the recipe's stages do."""
    prompt = tmp_path / "elsewhere"
    shutil.copytree(tiny.run / "prompt_tune/model=lm_adapt,seed=0/prompt", prompt)
    info = json.loads((prompt / "prompt.json").read_text())
    info["task"]["name"] = "elsewhere"
    (prompt / "prompt.json").write_text(json.dumps(info))
    said = r"(--metrics|\S+:\d+: stages\.evaluate\.metrics\.elsewere): the task `elsewere` is not evaluated here; did you mean `elsewhere`\?"
    typo = ("--prompts", prompt, "--metrics", "elsewere=macro_f1", "--output-dir", tmp_path / "x")
    refused(stage("evaluate", *typo), said)
    (tmp_path / "wording").mkdir()
    (tmp_path / "wording/text_prompt.json").write_text(json.dumps({"task": info["task"]}))
    metrics = "{about: [accuracy], elsewhere: [macro_f1]}"
    more = f"  more: {{uses: evaluate, prompts: prompt_tune, text_prompts: {tmp_path}/wording, metrics: {metrics}}}\n"
    tiny.recipe.write_text(tiny.recipe.read_text() + more)
    planned = t5_pipeline("plan", tiny.recipe, "--run-dir", tiny.run)
    assert planned.code == 0, planned.err


def test_changed_rows_of_prompts_at_a_path_make_the_scores_stale(finished: Tiny, tmp_path: Path) -> None:
    prompt, rows = tmp_path / "prompt", tmp_path / "rows"
    shutil.copytree(finished.run / "prompt_tune/model=lm_adapt,seed=0/prompt", prompt)
    info = json.loads((prompt / "prompt.json").read_text())
    shutil.copytree(info["task"]["data"], rows)
    info["task"]["data"] = str(rows)
    (prompt / "prompt.json").write_text(json.dumps(info))
    flags = ("--model", finished.run / "lm_adapt", "--limit", 4, "--precision", "fp32", "--threads", 1)
    command = ("--prompts", prompt, *flags, "--output-dir", tmp_path / "x")
    done = stage("evaluate", *command)
    assert done.code == 0, done.err
    assert "nothing to do" in stage("evaluate", *command).out
    (test,) = rows.glob("test*")
    test.write_text(test.read_text() + test.read_text().splitlines()[0] + "\n")
    refused(
        stage("evaluate", *command),
        r"\S+/x: contains results with other settings \(data of task about changed\); choose another .*",
    )


def test_a_shift_to_a_task_without_training_rows(finished: Tiny, tmp_path: Path) -> None:
    """Its majority class is that of the scored rows."""
    cell = finished.run / "prompt_tune/model=lm_adapt,seed=0"
    task = json.loads((cell / "prompt/prompt.json").read_text())["task"]
    labels = task["labels"]
    rows = [{"input": f"text {i}", "target": labels[1] if i < 5 else labels[0]} for i in range(8)]
    (tmp_path / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    other = {
        "name": "elsewhere", "data": str(tmp_path), "splits": {"test": "test.jsonl"}, "inputs": "{input}",
        "targets": "{target}", "labels": labels,
    }  # fmt: skip
    (tmp_path / "elsewhere.yaml").write_text(json.dumps(other))
    done = stage(
        "evaluate", "--prompts", cell, "--also-on", tmp_path / "elsewhere.yaml", "--limit", 8, "--precision", "fp32",
        "--threads", 1, "--output-dir", tmp_path / "x",
    )  # fmt: skip
    assert done.code == 0, done.err
    (majority,) = [r for r in scores(tmp_path / "x") if (r["task"], r["method"]) == ("elsewhere", "majority class")]
    assert majority["metrics"]["accuracy"] == 5 / 8
