"""Documentation and the code it refers to: paths, tests, and the paper's defaults."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from t5_pipeline.config.adaptation import LMAdaptConfig, SpanCorruptConfig
from t5_pipeline.config.recipe import load_recipe
from t5_pipeline.config.soft_prompt import PromptTuneConfig
from t5_pipeline.config.tuning import ModelTuneConfig
from t5_pipeline.data_prep.tasks.config import TaskConfig

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGE = (DOCS / "fidelity.md").read_text(encoding="utf-8")
RECIPE = ROOT / "recipes" / "t5-v1_1-lm100k.yaml"


@pytest.mark.parametrize(
    "page", ["README.md", "CONTRIBUTING.md", *(f"docs/{path.name}" for path in sorted(DOCS.glob("*.md")))]
)
def test_every_path_and_link_exists(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    paths = re.findall(r"`((?:pipeline|data_prep|stages|tests|docs|benchmarks|accelerate_configs)/[\w./-]*)`", text)
    links = [link.partition("#")[0] for link in re.findall(r"\]\(([^)\s]+)\)", text) if "://" not in link]
    placeholders = {name for name in paths if re.search(r"[A-Z]{3}", name)}  # pipeline/methods/NAME.py
    missing = [name for name in paths if name not in placeholders and not (ROOT / name).exists()]
    missing += [link for link in links if link and not ((ROOT / page).parent / link).exists()]
    assert not missing


def test_every_test_and_file_named_here_exists() -> None:
    named = re.findall(r"`([\w./-]+/[\w.-]+\.(?:py|yaml|md))(?:::(\w+))?`", PAGE)
    assert len(named) > 80
    for path, test in named:
        assert (ROOT / path).is_file(), path
        if test:
            tree = ast.parse((ROOT / path).read_text(encoding="utf-8"))
            assert test in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}, f"{path}::{test}"


def test_every_row_names_a_test_or_says_that_there_is_none() -> None:
    rows = [line for line in PAGE.splitlines() if line.startswith("| ") and not line.startswith("| source")]
    assert len(rows) > 50
    for row in rows:
        *_, test, _ = re.split(r"(?<!\\)\|", row)
        assert "::test_" in test or (test.strip() == "–" and re.search(r"\*\*deviation\*\*|\bnot\b", row)), row


def test_defaults_of_lm_adaptation() -> None:
    c = LMAdaptConfig(model="google/t5-v1_1-base", tokens="tokens")
    assert (c.objective, c.prefix_density, c.segment_length) == ("prefix_lm", 0.5, 512)
    assert c.batch_size * c.segment_length == 2**20
    assert c.steps * c.batch_size * c.segment_length == pytest.approx(104.9e9, rel=1e-3)
    assert (c.optimizer, c.weight_decay, c.dropout, c.z_loss) == ("adafactor", 0, 0, 1e-4)
    assert (c.schedule, c.learning_rate, c.warmup_steps, c.step_offset) == ("rsqrt", 1.0, 10_000, 1_000_000)


def test_defaults_of_span_corruption() -> None:
    c = SpanCorruptConfig(model="google/t5-v1_1-base", tokens="tokens", steps=1)
    assert (c.input_length, c.noise_density, c.mean_span_length) == (512, 0.15, 3.0)
    assert (c.schedule, c.learning_rate, c.warmup_steps, c.step_offset) == ("rsqrt", 1.0, 10_000, 0)


def test_defaults_of_prompt_tuning() -> None:
    task = TaskConfig(name="t", data="rows", inputs="{text}", targets="{label}", labels=["a", "b"])
    c = PromptTuneConfig(model="google/t5-base-lm-adapt", task=task)
    assert (c.prompt_length, c.prompt_init, c.init_population) == (100, "class_labels", 5000)
    assert (c.batch_size, c.steps) == (32, 30_000)
    assert (c.optimizer, c.schedule, c.learning_rate, c.warmup_steps) == ("adafactor", "constant", 0.3, 0)
    assert (c.weight_decay, c.z_loss, c.dropout) == (1e-5, 1e-4, 0.1)
    assert c.optimizer_step_offset == 0
    assert (c.max_input_length, c.precision) == (512, "bf16")


def test_defaults_of_model_tuning() -> None:
    c = ModelTuneConfig(
        model="google/t5-base-lm-adapt", tasks=[TaskConfig(name="t", data="d", inputs="{a}", targets="{b}")]
    )
    assert (c.optimizer, c.schedule, c.learning_rate, c.select) == ("adafactor", "constant", 1e-3, "best")
    assert c.batch_size * c.max_input_length == 2**16
    assert (c.mixing, c.mixing_limit) == ("proportional", 2**19)


def test_the_papers_recipe_counts_packed_rows() -> None:
    c = load_recipe(RECIPE).stages["lm_adapt"][0].settings
    assert isinstance(c, LMAdaptConfig)
    assert (c.objective, c.batch_unit, c.batch_size, c.segment_length) == ("prefix_lm", "rows", 2048, 512)
    assert c.batch_size * c.segment_length == 2**20


def test_the_papers_recipe_compares_its_snapshots() -> None:
    cells = load_recipe(RECIPE).stages["prompt_tune"]
    steps = {cell.inputs["model"].step for cell in cells if cell.inputs["model"].stage == "lm_adapt"}
    others = {cell.inputs["model"].stage or cell.inputs["model"].path for cell in cells}
    assert steps == {10_000, 50_000, None}
    assert others == {"google/t5-v1_1-base", "sentinel", "lm_adapt"}
    assert {cell.settings.seed for cell in cells} == {0, 1, 2}
    assert {cell.settings.optimizer_step_offset for cell in cells} == {1_100_000}
    for cell in cells:  # the hub's class labels read as their names, so nothing is left to translate
        assert isinstance(cell.settings, PromptTuneConfig)
        assert (cell.settings.task.values, cell.settings.task.labels) == ({}, ["negative", "positive"])
