"""A stage that is killed at any moment, or stopped by a signal, resumes with a bit-identical result."""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
from pathlib import Path

import pytest

from tests.forked import Forked
from tests.tiny_run import ROOT, Outcome, Tiny, listing, metrics, scores, script, stage

KILLED = Path(__file__).with_name("killed.py")


def test_killed_at_random_moments(finished: Tiny, tmp_path: Path) -> None:
    """Every stage from text to scores, dozens of SIGKILLs in all; prompt_tune has three jobs of two prompts."""
    tiny = Tiny(finished.data, finished.recipe, tmp_path / "run")
    ended = Outcome.forked(list(map(str, (KILLED, tiny.recipe, tiny.run, 8, 1))))
    assert ended.code == 0, ended.err
    assert "Traceback" not in ended.err
    told = json.loads((tiny.run / "hits.json").read_text())
    hits = told["hits"]
    assert sum(map(len, told["written"].values())) >= 12, told["written"]
    assert set(hits) == {"prepare", "pretrain", "lm_adapt", "sentinel", "prompt_tune", "evaluate"}
    assert all(hits[name] + len(told["written"][name]) >= 3 for name in hits), told
    assert tiny.digests() == finished.digests()
    assert scores(tiny.run / "evaluate") == scores(finished.run / "evaluate")
    for log in finished.run.glob("**/metrics.jsonl"):
        again = metrics(tiny.run / log.parent.relative_to(finished.run))
        assert again == metrics(log.parent) or log.parent.name == "prepare"
    assert not [name for name in listing(tiny.run) if name.endswith((".tmp", ".partial"))]


def test_a_job_killed_after_one_of_its_prompts_finished(finished: Tiny, tiny: Tiny) -> None:
    """Killed between the manifests of two prompts that train together: they resume as one job with the same dropout."""
    cell = tiny.run / "prompt_tune" / "model=lm_adapt,seed=1"
    shutil.rmtree(cell)
    assert stage("prompt_tune", "--recipe", tiny.recipe, "--run-dir", tiny.run).code == 0
    assert tiny.digests() == finished.digests()
    assert len(list((tiny.run / "prompt_tune" / "jobs").iterdir())) == 3


def test_a_job_without_its_record_does_not_give_a_prompt_to_another_cell(tiny: Tiny) -> None:
    """Its checkpoints contain the prompts in the order of the cells, which the recipe has changed since."""
    tiny.edit("seed: [0, 1]", "seed: [1, 0]")
    alone = tiny.copy(tiny.run.parent / "alone")
    shutil.rmtree(alone.run / "prompt_tune")
    for record in (tiny.run / "prompt_tune" / "jobs").glob("*/job.json"):
        record.unlink()
    for seed in (0, 1):
        shutil.rmtree(tiny.run / "prompt_tune" / f"model=sentinel,seed={seed}")
    for one in (tiny, alone):
        assert stage("prompt_tune", "--recipe", one.recipe, "--run-dir", one.run).code == 0
    for seed in (0, 1):
        prompt = f"prompt_tune/model=sentinel,seed={seed}/prompt"
        assert tiny.digests()[prompt] == alone.digests()[prompt]


def test_tokens_published_before_the_manifest_are_reused(finished: Tiny, tiny: Tiny) -> None:
    """Complete shards are reused."""
    (tiny.run / "prepare" / "manifest.json").unlink()
    shards = {name: of for name, of in listing(tiny.run / "prepare" / "tokens").items() if "shard-" in name}
    assert len(shards) > 50
    assert stage("prepare", "--recipe", tiny.recipe, "--run-dir", tiny.run).code == 0
    assert tiny.digests() == finished.digests()
    now = listing(tiny.run / "prepare" / "tokens")
    assert all(now[name] == of for name, of in shards.items())


@pytest.mark.parametrize(("signum", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_stopped_by_a_signal(tiny: Tiny, signum: signal.Signals, code: int) -> None:
    """Between two checkpoints of `python stages/lm_adapt.py`, the current step is finished and saved."""

    def flags(steps: int) -> tuple[object, ...]:
        never = ("--checkpoint-every", 10**6, "--validate-every", 10**6, "--keep-steps")
        return ("--recipe", tiny.recipe, "--run-dir", tiny.run, "--steps", steps, *never)

    running = Forked(script("lm_adapt", *flags(10**6)), ROOT, dict(os.environ))
    log = tiny.run / "lm_adapt" / "metrics.jsonl"
    there = log.stat().st_size
    while log.stat().st_size < there + 1000:
        assert running.poll() is None
        time.sleep(0.01)
    os.kill(running.pid, signum)
    _, said = running.communicate(timeout=300)
    assert running.poll() == code, said
    (step,) = (int(word.replace(",", "")) for word in said.split("after step ")[1].split(", which")[:1])
    assert (
        said.splitlines()[-1]
        == f"stopped by {signum.name} after step {step:,}, which is saved; run the same command to resume"
    )
    assert "Traceback" not in said
    assert json.loads((tiny.run / ".state" / "lm_adapt.exit").read_text())["code"] == code

    assert stage("lm_adapt", *flags(step + 3)).code == 0
    alone = Tiny(tiny.data, tiny.recipe, tiny.run.parent / "alone")
    for made in ("prepare", "pretrain"):
        shutil.copytree(tiny.run / made, alone.run / made)
    assert stage("lm_adapt", "--recipe", tiny.recipe, "--run-dir", alone.run, *flags(step + 3)[4:]).code == 0
    assert tiny.manifests()["lm_adapt"].outputs == alone.manifests()["lm_adapt"].outputs


def test_resume_from_a_chosen_step(finished: Tiny, tiny: Tiny) -> None:
    """There are checkpoints of steps 6 and 8; from 6 the same trajectory is repeated."""
    more = ("--recipe", tiny.recipe, "--run-dir", tiny.run, "--steps", 10)
    there = sorted(path.name for path in (tiny.run / "lm_adapt" / "checkpoints").iterdir())
    assert there == ["step-00000006", "step-00000008"]
    before = listing(tiny.run)
    refused = stage("lm_adapt", *more, "--resume-from", 7)
    assert refused.code == 2
    assert "no checkpoint of step 7; there are: 6, 8" in refused.err
    after = listing(tiny.run / "lm_adapt")
    assert [name for name, of in after.items() if before.get(name) != of] == [str(tiny.run / "lm_adapt" / "log.txt")]

    chosen = stage("lm_adapt", *more, "--resume-from", 6)
    assert chosen.code == 0, chosen.err
    assert [row["step"] for row in metrics(tiny.run / "lm_adapt")] == [0, 2, 4, 4, 6, 8, 8, 10]
    other = finished.copy(tiny.run.parent / "other")
    assert stage("lm_adapt", "--recipe", other.recipe, "--run-dir", other.run, "--steps", 10).code == 0
    assert tiny.manifests()["lm_adapt"].outputs == other.manifests()["lm_adapt"].outputs
    assert metrics(tiny.run / "lm_adapt") == metrics(other.run / "lm_adapt")


def test_an_earlier_step_is_recomputed_without_losing_later_ones(finished: Tiny, tiny: Tiny) -> None:
    """A step that was not kept is recomputed in its own directory; later checkpoints are kept."""
    (tiny.run / "lm_adapt" / "manifest.json").unlink()  # as a run that was stopped has it
    here = ("--recipe", tiny.recipe, "--run-dir", tiny.run)
    made = stage("lm_adapt", *here, "--keep-steps", 2, 4)
    assert made.code == 0, made.err
    manifest = tiny.manifests()["lm_adapt"]
    assert sorted(manifest.steps_published) == [2, 4]
    before = finished.manifests()["lm_adapt"]
    assert manifest.outputs["model"].digest == before.outputs["model"].digest
    assert manifest.steps_published[4].digest == before.steps_published[4].digest
    checkpoints = tiny.run / "lm_adapt" / "checkpoints"
    assert sorted(path.name for path in checkpoints.iterdir()) == ["step-00000006", "step-00000008"]
    assert metrics(tiny.run / "lm_adapt") == metrics(finished.run / "lm_adapt")

    alone = Tiny(tiny.data, tiny.recipe, tiny.run.parent / "alone")
    for name in ("prepare", "pretrain"):
        shutil.copytree(tiny.run / name, alone.run / name)
    changed = ("--set", "prompt_tune.model=sentinel", "--steps", 2)
    assert stage("lm_adapt", "--recipe", tiny.recipe, "--run-dir", alone.run, *changed).code == 0
    assert alone.manifests()["lm_adapt"].outputs["model"].digest == manifest.steps_published[2].digest


def test_an_earlier_step_is_recomputed_from_a_checkpoint_before_it(finished: Tiny, tiny: Tiny) -> None:
    """There are checkpoints of steps 6 and 8: step 6 is published from its own, and step 7 is one step from it."""
    here = ("--recipe", tiny.recipe, "--run-dir", tiny.run)
    made = stage("lm_adapt", *here, "--keep-steps", 2, 6, 7)
    assert made.code == 0, made.err
    cell = tiny.run / "lm_adapt"
    assert sorted(path.name for path in (cell / "checkpoints").iterdir()) == ["step-00000006", "step-00000008"]
    logged = [row["step"] for row in metrics(cell / "steps" / "000007")]
    assert logged == [0, 2]  # 4 and 6 would be here, too, if step 7 had not begun with the checkpoint of step 6
    assert not (cell / "steps" / "000007" / "checkpoints").exists()
    alone = Tiny(tiny.data, tiny.recipe, tiny.run.parent / "alone")
    for name in ("prepare", "pretrain"):
        shutil.copytree(tiny.run / name, alone.run / name)
    again = stage("lm_adapt", "--recipe", tiny.recipe, "--run-dir", alone.run, "--keep-steps", 2, 6, 7)
    assert again.code == 0, again.err
    kept, expected = (one.manifests()["lm_adapt"].steps_published for one in (tiny, alone))
    assert [kept[step].digest for step in (2, 6, 7)] == [expected[step].digest for step in (2, 6, 7)]


def test_more_steps_keep_the_last_one_for_others(finished: Tiny, tiny: Tiny) -> None:
    """The model of the last step so far is published from its checkpoint, before that of the new last step."""
    said = tiny.start("--set", "lm_adapt.steps=10", "--set", "prompt_tune.model=lm_adapt@8", "--until", "prompt_tune")
    assert said.code == 0, said.err
    before = finished.manifests()["lm_adapt"].outputs["model"].digest
    assert tiny.manifests()["lm_adapt"].steps_published[8].digest == before
    assert [row["step"] for row in metrics(tiny.run / "lm_adapt")] == [0, 2, 4, 4, 6, 8, 8, 10]
    assert not (tiny.run / "lm_adapt" / "steps" / "000008" / "metrics.jsonl").exists()


def test_changed_versions_are_logged(tiny: Tiny) -> None:
    started = tiny.run / "lm_adapt" / "started.json"
    more = ("--recipe", tiny.recipe, "--run-dir", tiny.run, "--steps")
    assert "other versions" not in stage("lm_adapt", *more, 9).err
    begun = json.loads(started.read_text())
    started.write_text(json.dumps({**begun, "versions": {**begun["versions"], "numpy": "1.0"}}))
    again = stage("lm_adapt", *more, 10)
    assert again.code == 0
    assert "lm_adapt: was started with other versions: numpy 1.0 → " in again.err


def test_resume_from_an_earlier_step_of_a_finished_stage(finished: Tiny, tiny: Tiny) -> None:
    again = stage("lm_adapt", "--recipe", tiny.recipe, "--run-dir", tiny.run, "--resume-from", 6)
    assert again.code == 0, again.err
    assert "back to step 6" in again.err
    assert tiny.manifests()["lm_adapt"].all_outputs() == finished.manifests()["lm_adapt"].all_outputs()
