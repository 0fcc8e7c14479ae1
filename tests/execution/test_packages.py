"""Packages beyond the dependencies are missed before the first stage of a run, not after days."""

from __future__ import annotations

import importlib.metadata
from pathlib import Path

import pytest

from t5_pipeline.config.recipe import load_recipe
from t5_pipeline.core.errors import InputError
from t5_pipeline.execution.packages import check_packages
from tests.tiny_run import ROOT, Tiny, listing, refused, t5_pipeline

RECIPE = """\
name: small
tasks:
  tone: {data: rows, inputs: "{text}", targets: "{label}", labels: [good, bad]}
  free: {data: rows, inputs: "{text}", targets: "{label}", metrics: [rougeL, exact_match]}
stages:
  prepare: {corpus: text, ray: local}
  lm_adapt: {model: t5-small, tokens: t, trackers: [wandb]}
  lora: {uses: peft_tune, model: t5-small, task: tone, method: lora}
  prompt_tune: {model: t5-small, task: free, prompt_init: vocabulary}
  last: {uses: prompt_tune, model: t5-small, task: free, prompt_init: vocabulary, select: last}
  model_tune: {model: t5-small, tasks: [tone]}
  evaluate: {adapters: lora}
  scores: {uses: evaluate, prompts: last}
"""


@pytest.fixture
def missing(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """Names of packages that are taken for missing."""
    names, version = set[str](), importlib.metadata.version

    def found(name: str) -> str:
        if name in names:
            raise importlib.metadata.PackageNotFoundError(name)
        return version(name)

    monkeypatch.setattr(importlib.metadata, "version", found)
    return names


@pytest.mark.parametrize(
    ("stage", "message"),
    [
        ("prepare", r":6: stages.prepare.ray: ray is not installed; pip install 't5-pipeline\[ray\]'"),
        ("lm_adapt", r":7: stages.lm_adapt.trackers: wandb is not installed; pip install 't5-pipeline\[trackers\]'"),
        ("lora", r":8: stages.lora.method: peft is not installed; pip install 't5-pipeline\[peft\]'"),
        ("prompt_tune", r":9: stages.prompt_tune.task: rouge_score is not installed; pip install 't5-pipeline\[metrics\]'"),
        ("last", None),
        ("model_tune", None),
        ("evaluate", r":12: stages.evaluate.adapters: peft is not installed"),
        ("scores", r":13: stages.scores.metrics: rouge_score is not installed"),
    ],
)  # fmt: skip
def test_the_setting_that_needs_a_package_is_named(
    missing: set[str], tmp_path: Path, stage: str, message: str | None
) -> None:
    (tmp_path / "small.yaml").write_text(RECIPE)
    (cell,) = load_recipe(tmp_path / "small.yaml").stages[stage]
    missing |= {"ray", "wandb", "peft", "rouge_score"}
    if message is None:
        check_packages(cell.settings)
    else:
        with pytest.raises(InputError, match=message):
            check_packages(cell.settings)


def test_a_run_checks_the_packages_of_stages_that_have_to_run(missing: set[str], tiny: Tiny) -> None:
    missing |= {"tensorboard", "deepspeed"}
    before = listing(tiny.run)
    zero2 = ROOT / "accelerate_configs" / "cpu_zero2.yaml"
    later, adamw = "prompt_tune.trackers=[tensorboard]", "prompt_tune.optimizer=adamw"
    for sets, message in (
        ([later, "pretrain.seed=8"], r"--set: stages.prompt_tune.trackers: tensorboard is not installed; .*"),
        ([f"prompt_tune.launch={zero2}", adamw], r"--set: stages.prompt_tune.launch: deepspeed is not installed; .*"),
    ):
        flags = [word for override in sets for word in ("--set", override)]
        refused(t5_pipeline("run", tiny.recipe, "--run-dir", tiny.run, *flags), message)
        assert t5_pipeline("plan", tiny.recipe, "--run-dir", tiny.run, *flags).code == 0
    assert listing(tiny.run) == before
    assert t5_pipeline("run", tiny.recipe, "--run-dir", tiny.run, "--set", later).code == 0
