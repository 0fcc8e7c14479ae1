"""`t5-pipeline run` with real stages: stale stages rerun or resume, the others are untouched."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
from safetensors.numpy import load_file

from t5_pipeline.artifacts.run_dir import RunDir, lock
from t5_pipeline.config.recipe import Recipe
from t5_pipeline.execution import runner
from t5_pipeline.execution.launcher import ranks
from tests.forked import Forked
from tests.tiny_run import ROOT, Tiny, command, listing, metrics, newest_checkpoint, scores, stage, t5_pipeline

CELLS = [
    f"prompt_tune/model={model},seed={seed}" for model in ("lm_adapt@4", "lm_adapt", "sentinel") for seed in (0, 1)
]


def done(lines: list[str]) -> list[str]:
    return [line.split("  ")[1].strip() for line in lines if line.startswith("up to date")]


def todo(lines: list[str]) -> dict[str, str]:
    """Cell → reason, in the output of `plan`."""
    return {cell: why for act, cell, why in map(_parts, lines) if act != "up to date"}


def _parts(line: str) -> tuple[str, str, str]:
    action, cell, *why = (part.strip() for part in line.split("  ") if part.strip())
    return action, cell, "".join(why)


def test_a_whole_run(finished: Tiny) -> None:
    assert set(finished.manifests()) == {"prepare", "pretrain", "lm_adapt", "sentinel", "evaluate", *CELLS}
    assert (finished.run / "report.html").stat().st_size > 10_000
    methods = [(row["method"], row["model"]) for row in scores(finished.run / "evaluate")]
    for model in ("lm_adapt@4", "lm_adapt", "sentinel"):
        assert methods.count(("prompt tuning", model)) == 2
        assert methods.count(("no prompt", model)) == methods.count(("majority class", model)) == 1


def test_a_second_run_reports_nothing_to_do(finished: Tiny) -> None:
    before = listing(finished.run)
    for left in (".report.html.01ab.tmp", ".state/.digests.json.01ab.tmp"):  # by processes that were killed
        (finished.run / left).write_text("<")
        os.utime(finished.run / left, (0, 0))
    said = t5_pipeline("run", finished.recipe, "--run-dir", finished.run)
    assert (said.code, said.err) == (
        0,
        f"nothing to do: all 6 stages in {finished.run} are up to date\n",
    )
    assert changed(before, listing(finished.run)) <= {".state/lock"}
    assert set(todo(finished.plan())) == set()


def changed(before: dict[str, tuple[int, int]], after: dict[str, tuple[int, int]]) -> set[str]:
    """Files that were created, removed or changed, relative to the run."""
    names = {name for name in before.keys() | after.keys() if before.get(name) != after.get(name)}
    root = min(after, key=len)
    return {os.path.relpath(name, root) for name in names}


def test_a_changed_setting_reruns_its_stage_and_dependents(tiny: Tiny) -> None:
    """After `sentinel.variant` changes, its prompts and the scores rerun; other models and their prompts do not."""
    variant = ("--set", "sentinel.variant=both")
    why = todo(tiny.plan(*variant))
    assert why == {
        "sentinel": "variant: targets → both",
        "prompt_tune [model=sentinel,seed=0]": "depends on sentinel",
        "prompt_tune [model=sentinel,seed=1]": "depends on sentinel",
        "evaluate": "depends on prompt_tune",
    }
    before, files = tiny.digests(), listing(tiny.run)
    said = tiny.start(*variant)
    assert said.code == 0, said.err
    assert [line for line in said.err.splitlines() if line[0] in "▶✓"][:3] == [
        "▶ sentinel",
        "▶ prompt_tune: 2 cells",
        "▶ evaluate",
    ]
    # The job says the reason, also in its log, and nothing else repeats it.
    for reason in ("variant: targets → both", "input model changed", "input prompts changed"):
        assert said.err.count(reason) == 1, said.err
    after = tiny.digests()
    assert {name for name in before if before[name] != after[name]} == {
        "sentinel/model", "prompt_tune/model=sentinel,seed=0/prompt", "prompt_tune/model=sentinel,seed=1/prompt",
    }  # fmt: skip
    untouched = [tiny.run / name for name in ("prepare", "pretrain", "lm_adapt", *CELLS[:4])]
    assert all(files[name] == now for name, now in listing(*untouched).items())
    # The old results are kept in superseded/.
    aside = {
        path.parent.parent.relative_to(tiny.run / "superseded").as_posix()
        for path in (tiny.run / "superseded").rglob("manifest.json")
    }
    assert aside == {"sentinel", *CELLS[4:], "evaluate"}
    assert len(list((tiny.run / "superseded").rglob("model.safetensors"))) == 1
    assert todo(tiny.plan(*variant)) == {}


def test_only_a_new_cell_runs(tiny: Tiny) -> None:
    tiny.edit("seed: [0, 1]", "seed: [0, 1, 2]")
    tiny.edit("model: [lm_adapt@4, lm_adapt, sentinel]", "model: [lm_adapt@4]")
    tiny.edit("  evaluate: {prompts: prompt_tune, limit: 8, precision: fp32, threads: 1, scoring: likelihood}\n", "")
    assert todo(tiny.plan()) == {"prompt_tune [model=lm_adapt@4,seed=2]": "not run yet"}
    before = listing(tiny.run)
    said = tiny.start()
    assert said.code == 0, said.err
    new = "prompt_tune/model=lm_adapt@4,seed=2"
    (job,) = {path.parent for path in (tiny.run / "prompt_tune" / "jobs").glob("*/job.json")} - {
        Path(n).parent for n in before
    }
    own = ("prompt_tune/" + job.name, new, job.relative_to(tiny.run).as_posix(), ".state", "recipe.yaml", "report.html")
    assert all(name.startswith(own) for name in changed(before, listing(tiny.run)))
    assert list(json.loads((job / "job.json").read_text())["cells"]) == ["model=lm_adapt@4,seed=2"]


def test_more_steps_resume_and_match_an_uninterrupted_run(tiny: Tiny, tmp_path: Path) -> None:
    """Model and log are identical."""
    steps = ("--until", "lm_adapt", "--set", "lm_adapt.steps=11")
    assert "has 8 of 11 steps" in todo(tiny.plan(*steps[2:]))["lm_adapt"]
    said = tiny.start(*steps)
    assert said.code == 0, said.err
    assert "step 10/11" in said.err
    assert [row["step"] for row in metrics(tiny.run / "lm_adapt")] == [0, 2, 4, 4, 6, 8, 8, 10]

    alone = Tiny(tiny.data, tiny.recipe, tmp_path / "alone")
    for made in ("prepare", "pretrain"):
        shutil.copytree(tiny.run / made, alone.run / made)
    assert stage("lm_adapt", "--recipe", tiny.recipe, "--run-dir", alone.run, "--steps", 11).code == 0
    one, other = tiny.digests(), alone.digests()
    assert one["lm_adapt/model"] == other["lm_adapt/model"]
    assert one["lm_adapt/steps/000004/model"] == other["lm_adapt/steps/000004/model"]
    assert metrics(tiny.run / "lm_adapt") == metrics(alone.run / "lm_adapt")


def test_a_kept_step_equals_a_run_of_that_many_steps(finished: Tiny, tmp_path: Path) -> None:
    """The schedule is constant, so both take the same four steps."""
    flags = ("--recipe", finished.recipe, "--stage", "lm_adapt", "--steps", 4, "--set", "prompt_tune.model=sentinel")
    for made in ("prepare", "pretrain"):
        shutil.copytree(finished.run / made, tmp_path / "run" / made)
    assert stage("lm_adapt", *flags, "--run-dir", tmp_path / "run").code == 0
    adapted = finished.manifests()["lm_adapt"]
    kept = adapted.steps_published[4]
    assert finished.manifests(tmp_path / "run")["lm_adapt"].outputs["model"].digest == kept.digest
    one, other = (
        load_file(path / "model.safetensors")
        for path in (finished.run / "lm_adapt" / kept.path, tmp_path / "run/lm_adapt/model")
    )
    assert one.keys() == other.keys()
    assert all(np.array_equal(one[name], other[name]) for name in one)
    assert kept.digest != adapted.outputs["model"].digest
    for seed in (0, 1):
        prompt = finished.manifests()[f"prompt_tune/model=lm_adapt@4,seed={seed}"]
        assert [record.digest for record in prompt.inputs["model"]] == [kept.digest]


def test_bad_input_leaves_the_recipe_of_a_run(tiny: Tiny) -> None:
    before = (tiny.run / "recipe.yaml").read_bytes()
    said = tiny.start("--set", 'tasks.about.inputs="{nofield}"')
    assert said.code == 2
    assert "has no field 'nofield'" in said.err
    assert (tiny.run / "recipe.yaml").read_bytes() == before
    assert todo(tiny.plan()) == {}


def test_a_run_directory_whose_name_begins_with_a_dash(
    finished: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The stages get its path on their command line, too."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(finished.run, "-run")
    shutil.rmtree("-run/sentinel")
    said = t5_pipeline("run", finished.recipe, "--run-dir=-run", "--until", "sentinel")
    assert said.code == 0, said.err
    assert Tiny(finished.data, finished.recipe, Path("-run")).digests() == finished.digests()


def test_the_report_follows_the_recipe(tiny: Tiny) -> None:
    """A cell was removed; nothing ran, but the report no longer shows it."""
    report = tiny.run / "report.html"
    report.write_text(report.read_text() if report.exists() else "")
    said = tiny.start("--set", "prompt_tune.matrix.seed=[0]", "--until", "prompt_tune")
    assert said.code == 0
    assert f"✓ report: {report}" in said.err


def test_a_stage_that_became_stale_while_it_ran_is_named(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    """Someone edits the recipe in the run directory, from which the stage reads its settings."""
    launch = runner._launch

    def edit_and_launch(recipe: Recipe, run_dir: RunDir, name: str) -> tuple[int, str]:
        written = run_dir.path / "recipe.yaml"
        written.write_text(written.read_text().replace("limit: 6", "limit: 7"))
        return launch(recipe, run_dir, name)

    monkeypatch.setattr(runner, "_launch", edit_and_launch)
    said = t5_pipeline("run", tiny.recipe, "--run-dir", tiny.run, "--set", "evaluate.limit=6")
    assert said.code == 0, said.err
    assert "warning: evaluate is stale since it ran (limit: 7 → 6); run the same command again\n" in said.err
    monkeypatch.undo()
    again = t5_pipeline("run", tiny.recipe, "--run-dir", tiny.run, "--set", "evaluate.limit=6")
    assert (again.code, "warning" in again.err) == (0, False), again.err


def test_the_report_follows_results_that_seem_older_than_it(tiny: Tiny) -> None:
    """As after a clock was set back, or on another machine whose clock is behind."""
    for path in tiny.run.rglob("*"):
        later = path.stat().st_mtime_ns + 3600 * 10**9
        os.utime(path, ns=(later, later))
    said = tiny.start("--set", "evaluate.limit=6")
    assert said.code == 0, said.err
    assert f"✓ report: {tiny.run / 'report.html'}" in said.err


def test_until_and_from(tiny: Tiny) -> None:
    changed_setting = ("--set", "evaluate.limit=4")
    said = t5_pipeline("run", tiny.recipe, "--run-dir", tiny.run, "--until", "prompt_tune", *changed_setting)
    assert "nothing to do: all 5 stages" in said.err
    said = t5_pipeline("run", tiny.recipe, "--run-dir", tiny.run, "--from", "evaluate", "--until", "prepare")
    assert (said.code, said.err.count("\n")) == (2, 1)
    assert "--until prepare" in said.err


def test_a_second_run_on_a_directory_in_use_is_an_error(tiny: Tiny) -> None:
    with lock(RunDir(tiny.run).state / "lock", tiny.run):
        before = listing(tiny.run)
        said = t5_pipeline("run", tiny.recipe, "--run-dir", tiny.run, "--set", "evaluate.limit=4")
        assert said.code == 2
        assert said.err.startswith(f"error: {tiny.run}: is in use by process {os.getpid()} on ")
        assert said.err.count("\n") == 1
        assert listing(tiny.run) == before
    assert t5_pipeline("run", tiny.recipe, "--run-dir", tiny.run).code == 0


def running(tiny: Tiny, forked: bool = True) -> tuple[Forked | subprocess.Popen[str], psutil.Process]:
    """`t5-pipeline run` at 40 or more steps of an endless lm_adapt, and the stage's process."""
    steps = ("--set", "lm_adapt.steps=100000", "--until", "lm_adapt", "--set", "lm_adapt.checkpoint_every=20")
    words = command("run", tiny.recipe, "--run-dir", tiny.run, *steps)
    runner = tiny.launch(*steps) if forked else subprocess.Popen(words, stderr=subprocess.PIPE, text=True)
    while newest_checkpoint(tiny) < 40:
        assert runner.poll() is None
        time.sleep(0.01)
    (rank,) = ranks(runner.pid, "lm_adapt.py")
    return runner, psutil.Process(rank)


@pytest.mark.parametrize(("signum", "code"), [(signal.SIGKILL, 137), (signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_stopped_stage_is_reported(tiny: Tiny, signum: signal.Signals, code: int) -> None:
    """SIGKILL is sent to the stage; the others to the runner, which forwards them and returns the stage's code."""
    runner, rank = running(tiny, forked=signum != signal.SIGTERM)
    second = t5_pipeline("run", tiny.recipe, "--run-dir", tiny.run)
    assert (second.code, second.err.split(" on ")[0]) == (2, f"error: {tiny.run}: is in use by process {runner.pid}")
    assert "lm_adapt" in next(line for line in t5_pipeline("status", tiny.run).out.splitlines() if " running " in line)
    (rank if signum == signal.SIGKILL else psutil.Process(runner.pid)).send_signal(signum)
    _, said = runner.communicate(timeout=60)
    assert runner.poll() == code, said
    if signum == signal.SIGKILL:
        assert "lm_adapt was killed by signal 9; run the same command to resume from its last checkpoint" in said
    else:
        where = f"after step {newest_checkpoint(tiny):,}, which is saved; run the same command to resume"
        assert f"■ lm_adapt: stopped by {signum.name} {where}" in said
    assert "Traceback" not in said
    assert not rank.is_running()


def test_a_stage_stops_when_its_runner_is_killed(tiny: Tiny) -> None:
    """The stage saves a checkpoint and releases the directory."""
    runner, rank = running(tiny)
    runner.kill()
    rank.wait(timeout=60)
    runner.communicate()
    assert "stopped by SIGTERM" in json.loads((tiny.run / ".state" / "lm_adapt.exit").read_text())["message"]
    steps = newest_checkpoint(tiny) + 1
    again = stage("lm_adapt", "--recipe", tiny.recipe, "--run-dir", tiny.run, "--steps", steps)
    assert again.code == 0, again.err
    assert metrics(tiny.run / "lm_adapt")[-1]["step"] >= steps - 2


def test_the_engine_must_suit_every_cell_of_a_stage(tiny: Tiny) -> None:
    zero2 = ROOT / "accelerate_configs" / "cpu_zero2.yaml"
    tiny.edit("      seed: [0, 1]\n", f"      seed: [0, 1]\n      optimizer: [adamw, adafactor]\n    launch: {zero2}\n")
    line = 1 + tiny.recipe.read_text().splitlines().index("      optimizer: [adamw, adafactor]")
    for words in (("run",), ("plan",)):
        said = t5_pipeline(*words, tiny.recipe, "--run-dir", tiny.run)
        assert said.code == 2
        assert said.err.startswith(
            f"error: {tiny.recipe}:{line}: stages.prompt_tune.matrix.optimizer: adafactor needs whole matrices"
        )


def test_an_unsupported_engine_is_rejected_before_anything_runs(tiny: Tiny) -> None:
    """Otherwise the third stage would fail only after the others have run."""
    sets = ("--set", f"lm_adapt.launch={ROOT / 'accelerate_configs' / 'cpu_zero2.yaml'}", "--set", "prepare.seed=9")
    before = listing(tiny.run)
    for words in (("run",), ("plan",)):
        said = t5_pipeline(*words, tiny.recipe, "--run-dir", tiny.run, *sets)
        assert said.code == 2
        where = rf"{re.escape(str(tiny.recipe))}:\d+: stages.lm_adapt.optimizer"
        assert re.match(rf"error: {where}: adafactor needs whole matrices, which zero2 shards", said.err), said.err
        assert said.err.count("\n") == 1
    assert listing(tiny.run) == before


def test_a_template_that_fits_no_row_is_rejected_before_anything_runs(tiny: Tiny) -> None:
    before = listing(tiny.run)
    for word in ("run", "plan"):
        said = t5_pipeline(
            word, tiny.recipe, "--run-dir", tiny.run, "--set", "tasks.about.targets=a {kind}", "--set", "prepare.seed=9"
        )
        assert said.code == 2
        assert re.match(r"error: \S+train\.jsonl:1: has no field 'kind' .* \(prompt_tune reads it\)\n$", said.err), (
            said.err
        )
    assert listing(tiny.run) == before
