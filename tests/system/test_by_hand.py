"""Stages run by hand, with flags and --output-dir, publish the same results as the runner."""

from __future__ import annotations

import importlib.util
import json
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from t5_pipeline.artifacts.manifest import read
from t5_pipeline.config.command_line import flag
from t5_pipeline.config.registry import STAGES
from t5_pipeline.core.checksums import tensors_digest
from tests.tiny_run import ROOT, Outcome, Tiny, listing, metrics, refused, scores, script, stage


def as_flags(tiny: Tiny, name: str) -> list[object]:
    """A stage's settings as flags, without inputs and matrix."""
    entry = yaml.safe_load(tiny.recipe.read_text())["stages"][name]
    kind = entry.pop("uses", name)
    words: list[object] = [] if "seed" in entry.get("matrix", ()) else ["--seed", 3]
    for key, value in entry.items():
        if key not in ("matrix", "task", "decontaminate", *STAGES[kind].inputs()):
            for field, inner in (
                {f"{key}.{k}": v for k, v in value.items()}.items() if isinstance(value, dict) else [(key, value)]
            ):
                words += [flag(field), inner]
    return words


@pytest.fixture(scope="module")
def about(finished: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The task in its own file."""
    path = tmp_path_factory.mktemp("task") / "about.yaml"
    path.write_text(yaml.safe_dump(yaml.safe_load(finished.recipe.read_text())["tasks"]["about"]))
    return path


def test_from_text_to_scores_without_a_recipe(finished: Tiny, tmp_path: Path, about: Path) -> None:
    """Each stage reads the previous one's output by path and publishes the same digests as the runner."""

    def run(kind: str, name: str, *more: object) -> Path:
        output = tmp_path / name
        ended = stage(kind, *as_flags(finished, name), *more, "--output-dir", output)
        assert ended.code == 0, ended.err
        assert read(output) is not None
        return output

    text = run("prepare", "prepare", "--decontaminate", about)
    pretrained = run("span_corrupt", "pretrain", "--tokens", text)
    adapted = run("lm_adapt", "lm_adapt", "--model", pretrained, "--tokens", text, "--keep-steps", 4)
    sentinel = run("sentinel", "sentinel", "--model", pretrained)
    for name, artifact in (("prepare", "tokens"), ("pretrain", "model"), ("lm_adapt", "model"), ("sentinel", "model")):
        mine, theirs = read(tmp_path / name), read(finished.run / name)
        assert mine is not None
        assert theirs is not None
        assert mine.outputs[artifact] == theirs.outputs[artifact], name
        assert {step: of.digest for step, of in mine.steps_published.items()} == {
            step: of.digest for step, of in theirs.steps_published.items()
        }
    for name in ("pretrain", "lm_adapt"):
        assert metrics(tmp_path / name) == metrics(finished.run / name)

    # A prompt trained alone draws other dropout masks; test_prompt_tune.py compares both ways without dropout.
    prompt = run("prompt_tune", "prompt_tune", "--model", adapted / "steps/000004/model", "--task", about, "--seed", 1)
    assert json.loads((prompt / "prompt" / "prompt.json").read_text())["base_model"] == str(
        adapted / "steps/000004/model"
    )
    flags = ("--limit", 8, "--precision", "fp32", "--threads", 1, "--scoring", "likelihood")
    assert (
        stage("evaluate", "--prompts", finished.run / "prompt_tune", *flags, "--output-dir", tmp_path / "scores").code
        == 0
    )
    for mine, theirs in zip(
        *(sorted(scores(path), key=_identity) for path in (tmp_path / "scores", finished.run / "evaluate")), strict=True
    ):
        assert {**mine, "cell": None, "source": None} == {**theirs, "cell": None, "source": None}
    assert stage("evaluate", "--prompts", prompt, *flags, "--output-dir", tmp_path / "mine").code == 0
    assert [row["method"] for row in scores(tmp_path / "mine")] == ["no prompt", "majority class", "prompt tuning"]
    assert tensors_digest(sentinel / "model") == tensors_digest(pretrained / "model")


def _identity(row: dict[str, Any]) -> tuple[str, ...]:
    return tuple(str(row.get(key)) for key in ("task", "model", "method", "seed"))


def test_rows_of_the_metrics_log(finished: Tiny) -> None:
    rows = [json.loads(line) for line in (finished.run / "lm_adapt" / "metrics.jsonl").read_text().splitlines()]
    trained = [row for row in rows if "split" not in row]
    assert [row["step"] for row in trained] == [2, 4, 6, 8]
    assert [row["step"] for row in rows if row.get("split") == "validation"] == [0, 4, 8]
    for row in trained:
        assert {"step", "loss", "learning_rate", "tokens_per_second", "elapsed_s"} <= row.keys()
        assert row["learning_rate"] == 0.02
        assert 0 < row["loss"] < 20
        assert row["tokens_per_second"] > 0
    for job in (finished.run / "prompt_tune" / "jobs").iterdir():
        cells = list(json.loads((job / "job.json").read_text())["cells"])
        logged = [json.loads(line) for line in (job / "metrics.jsonl").read_text().splitlines()]
        rows = [row for row in logged if "split" not in row]
        assert [row["step"] for row in rows] == [2, 4, 6]
        assert [list(row["scores"]) for row in logged if row.get("split") == "validation"] == [cells] * 3
        for row in rows:
            assert list(row["losses"]) == cells
            assert row["examples_per_second"] > 0
            assert row["loss"] == pytest.approx(sum(row["losses"].values()) / len(cells))


def test_a_second_run_with_the_same_and_other_settings(finished: Tiny, tmp_path: Path) -> None:
    def run(*more: object) -> Outcome:
        return stage("sentinel", "--model", finished.run / "pretrain", "--threads", 1, "--output-dir", output, *more)

    output = tmp_path / "out"
    assert run().code == 0
    before = listing(output)
    again = run()
    assert (again.code, again.out) == (0, "sentinel: nothing to do, up to date\n")
    assert listing(output / "model") == {
        name: of for name, of in before.items() if name.startswith(str(output / "model"))
    }

    before = listing(tmp_path)
    again = run("--variant", "both")
    assert again.code == 2
    assert again.err == (
        f"error: {output}: contains results with other settings (variant: targets → both);"
        " choose another --output-dir, or pass --overwrite to move them\n"
    )
    assert {n: of for n, of in listing(tmp_path).items() if "/.state/" not in n} == {
        n: of for n, of in before.items() if "/.state/" not in n
    }

    old = {path.name: path.read_bytes() for path in (output / "model").iterdir()}
    assert run("--variant", "both", "--overwrite").code == 0
    (aside,) = (path for path in tmp_path.iterdir() if path != output)
    assert aside.name.startswith("out.superseded-")
    assert {path.name: path.read_bytes() for path in (aside / "model").iterdir()} == old
    assert json.loads((output / "model" / "t5_pipeline.json").read_text())["sentinel"] == "both"
    assert run("--variant", "both").out.startswith("sentinel: nothing to do")


def test_more_steps_by_hand_resume(finished: Tiny, tmp_path: Path) -> None:
    def run(steps: int, output: Path) -> dict[str, Any]:
        inputs = ("--model", finished.run / "pretrain", "--tokens", finished.run / "prepare")
        ended = stage("lm_adapt", *as_flags(finished, "lm_adapt"), *inputs, "--steps", steps, "--output-dir", output)
        assert ended.code == 0, ended.err
        made = read(output)
        assert made is not None
        return made.model_dump()["outputs"]

    run(5, tmp_path / "pieces")
    assert run(8, tmp_path / "pieces") == run(8, tmp_path / "whole")
    assert metrics(tmp_path / "pieces") == metrics(tmp_path / "whole")
    # Fewer steps are recomputed; the old results are kept.
    assert run(5, tmp_path / "whole")
    assert {path.name for path in (tmp_path / "whole").iterdir()} >= {"model", "steps"}


@pytest.mark.parametrize("kind", STAGES)
def test_help_of_every_script(kind: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """As in `python stages/KIND.py --help`; tests/config/test_command_line.py checks every field."""
    monkeypatch.setattr(sys, "argv", [str(ROOT / "stages" / f"{kind}.py"), "--help"])
    with pytest.raises(SystemExit) as left:
        runpy.run_path(sys.argv[0], run_name="__main__")
    assert left.value.code == 0
    said = capsys.readouterr().out
    assert said.startswith(f"usage: {kind}.py ")
    assert "--output-dir DIR" in said
    assert "--seed" in said


def test_under_accelerate_launch_from_anywhere(finished: Tiny, tmp_path: Path) -> None:
    """Relative paths start at the working directory; the result equals the runner's."""
    (tmp_path / "made").symlink_to(finished.run)
    configuration = ROOT / "accelerate_configs" / "cpu.yaml"
    words = [
        sys.executable,
        "-m",
        "accelerate.commands.launch",
        "--config_file",
        configuration,
        *script("lm_adapt")[1:],
    ]
    words += [*as_flags(finished, "lm_adapt"), "--model", "made/pretrain/model", "--tokens", "made/prepare"]
    words += ["--output-dir", "out"]
    done = subprocess.run(list(map(str, words)), cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "lm_adapt  step 8/8  loss " in done.stderr
    made, theirs = read(tmp_path / "out"), read(finished.run / "lm_adapt")
    assert made is not None
    assert theirs is not None
    assert made.outputs == theirs.outputs
    assert (tmp_path / "out" / "log.txt").read_text().count("published model") == 1


def test_trackers_receive_every_row(finished: Tiny, tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    adapt = ("--model", finished.run / "pretrain", "--tokens", finished.run / "prepare", "--steps", 4, "--log-every", 2)
    adapt += ("--segment-length", 48, "--batch-size", 4, "--precision", "fp32", "--threads", 1)
    made = stage("lm_adapt", *adapt, "--trackers", "tensorboard", "--output-dir", tmp_path / "tracked")
    assert made.code == 0, made.err
    events = EventAccumulator(str(tmp_path / "tracked" / "trackers" / "t5-pipeline")).Reload()
    rows = [row for row in metrics(tmp_path / "tracked") if row.get("split", "train") == "train"]
    assert [event.step for event in events.Scalars("train/loss")] == [row["step"] for row in rows] == [2, 4]
    assert np.allclose([event.value for event in events.Scalars("train/loss")], [row["loss"] for row in rows])
    assert len(events.Scalars("validation/loss")) == 1


@pytest.mark.skipif(importlib.util.find_spec("wandb") is not None, reason="wandb is installed")
def test_a_tracker_that_is_not_installed(finished: Tiny, tmp_path: Path) -> None:
    adapt = (
        "--model",
        finished.run / "pretrain",
        "--tokens",
        finished.run / "prepare",
        "--output-dir",
        tmp_path / "out",
    )
    refused(
        stage("lm_adapt", *adapt, "--trackers", "wandb"),
        r"--trackers: wandb is not installed; pip install 't5-pipeline\[trackers\]'",
    )
    assert not (tmp_path / "out").exists()
