"""A method that the library does not know, from its settings to the report.

Output-bias tuning: p(y | x) ∝ exp(logits + b), where b ∈ R^V is the log frequency of each token in the training targets.
"""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from t5_pipeline.artifacts.artifact import Artifact
from t5_pipeline.artifacts.run_dir import RunDir
from t5_pipeline.config.command_line import parser
from t5_pipeline.config.recipe import load_recipe
from t5_pipeline.config.registry import METHOD_STAGES, STAGES, stage_kinds
from t5_pipeline.config.tuning import OneTaskConfig
from t5_pipeline.core.errors import InputError
from t5_pipeline.core.records import Record
from t5_pipeline.core.schema import Sentinel, setting
from t5_pipeline.cost.plan import plan
from t5_pipeline.cost.plan_text import as_text
from t5_pipeline.data_prep.tasks.config import TaskConfig
from t5_pipeline.data_prep.tasks.encode import encode_task
from t5_pipeline.data_prep.tasks.task import Task
from t5_pipeline.execution.context import Stage
from t5_pipeline.execution.stage_process import run
from t5_pipeline.methods.base import Candidate
from t5_pipeline.methods.registry import METHODS
from t5_pipeline.modeling.config import T5Config
from t5_pipeline.modeling.load import load_t5
from t5_pipeline.modeling.prompt_bank import BareT5
from t5_pipeline.report.collect import collect
from t5_pipeline.report.page import render
from t5_pipeline.stages.evaluate import evaluate
from t5_pipeline.stages.prepare import prepare
from t5_pipeline.stages.span_corrupt import span_corrupt
from tests.tiny_run import RECIPE, scores, write_data

# ------------------------------------------------------------------------- one config class, one module, one stage


class BiasTuneConfig(OneTaskConfig):
    kind: ClassVar[str] = "bias_tune"
    summary: ClassVar[str] = "learn a bias of the logits"
    outputs: ClassVar[tuple[str, ...]] = ("bias",)
    scored_as: ClassVar[tuple[str, str] | None] = ("biases", "biases: a bias_tune stage, or a directory")

    strength: float = setting(1.0, "factor of the log frequencies", gt=0)

    def trained_parameters(self, shape: T5Config) -> int | None:
        return shape.vocab_size


class BiasInfo(Record):
    file_name: ClassVar[str] = "bias.json"
    what: ClassVar[str] = "a bias"
    repair: ClassVar[str] = "run bias_tune again to rebuild it"

    base_model: str
    base_model_digest: str
    tokenizer_digest: str
    sentinel: Sentinel
    task: TaskConfig
    max_input_length: int
    max_target_length: int
    format: Literal[1] = 1


class BiasedT5(BareT5):
    bias_V: Tensor

    @classmethod
    def load(cls, bias: Path, t5: Path) -> BiasedT5:
        model = cls(load_t5(t5))
        model.register_buffer("bias_V", load_file(bias / "bias.safetensors")["bias"])
        return model

    def logits(self, hidden_RTD: Tensor) -> Tensor:
        return super().logits(hidden_RTD) + self.bias_V


def candidates(artifact: Artifact) -> Iterator[Candidate]:
    info = BiasInfo.load(artifact.path)
    load_model = partial(BiasedT5.load, artifact.path)
    yield Candidate.of("bias tuning", artifact, info, {}, load_model=load_model)


def bias_tune(stage: Stage[BiasTuneConfig]) -> None:
    c, loaded = stage.config, stage.model_source()
    lengths = {"max_input_length": c.max_input_length, "max_target_length": c.max_target_length}
    rows = encode_task(Task.load(c.task), "train", loaded.reading(**lengths), training=True)
    shape = T5Config.from_config(json.loads((stage.input("model").path / "config.json").read_text()))
    counts_V = np.bincount(np.concatenate(rows.targets), minlength=shape.vocab_size) + 1
    bias_V = c.strength * torch.from_numpy(np.log(counts_V / counts_V.sum())).float()
    info = BiasInfo(**loaded.identity, task=c.task, **lengths)

    def write(directory: Path) -> None:
        save_file({"bias": bias_V}, directory / "bias.safetensors")
        info.save(directory)

    stage.publish("bias", write)


# ------------------------------------------------------------------------------------------ one line in each table

KINDS = stage_kinds(*METHOD_STAGES, BiasTuneConfig)
BODIES: dict[str, Any] = {
    "prepare": prepare,
    "span_corrupt": span_corrupt,
    "bias_tune": bias_tune,
    "evaluate": partial(evaluate, methods=METHODS | {"bias": candidates}),
}
TAIL = """\
  bias_tune: {model: pretrain, task: about, max_input_length: 32, threads: 1, matrix: {strength: [0.5, 1.0]}}
  evaluate: {biases: bias_tune, limit: 8, precision: fp32, threads: 1}
"""


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """prepare → span_corrupt → bias_tune → evaluate, each run in this process."""
    directory = tmp_path_factory.mktemp("toy")
    write_data(directory)
    path = directory / "toy.yaml"
    path.write_text((RECIPE.partition("  lm_adapt:")[0] + TAIL).replace("DATA", str(directory)))
    return path


def run_stages(recipe: Path) -> list[str]:
    """Run every stage; returns what it printed."""
    printed = []
    for name, cells in load_recipe(recipe, kinds=KINDS).stages.items():
        kind = cells[0].settings.kind
        arguments = ["--recipe", str(recipe), "--stage", name, "--run-dir", str(recipe.parent / "run")]
        with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(io.StringIO()) as err:
            code = run(BODIES[kind], KINDS[kind], arguments, f"{kind}.py", KINDS)
        assert code == 0, err.getvalue()
        printed.append(out.getvalue())
    return printed


def test_toy_method_runs_from_prepare_to_report(recipe: Path) -> None:
    run_dir = RunDir(recipe.parent / "run")
    parsed = load_recipe(recipe, kinds=KINDS)
    (planned,) = [line for line in as_text(plan(parsed, run_dir)).splitlines() if line.startswith("bias_tune ×")]
    assert "512" in planned.split(), "a bias for each embedding row of the tiny vocabulary"

    run_stages(recipe)
    rows = scores(run_dir.path / "evaluate")
    assert [row["method"] for row in rows] == ["no prompt", "majority class", "bias tuning", "bias tuning"]
    assert [row["cell"] for row in rows[2:]] == ["strength=0.5", "strength=1.0"]
    assert all(set(row["metrics"]) == {"accuracy", "macro_f1"} for row in rows)
    assert all("nothing to do" in line for line in run_stages(recipe))

    (run_dir.path / "recipe.yaml").write_text(parsed.text())
    page = render(collect(run_dir.path, KINDS))
    assert "Bias tuning" in page
    assert "Learn a bias of the logits" in page


def test_toy_method_is_an_input_of_evaluate_only_if_registered(recipe: Path) -> None:
    assert "--biases" in parser(KINDS["evaluate"], "evaluate.py").format_help()
    assert "--biases" not in parser(STAGES["evaluate"], "evaluate.py").format_help()
    with pytest.raises(InputError, match="there is no stage kind `bias_tune`"):
        load_recipe(recipe)
