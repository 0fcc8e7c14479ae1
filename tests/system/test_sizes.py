"""The recipes of the paper in all sizes, and the table of their costs."""

from __future__ import annotations

import pytest

from benchmarks.sizes import PAGE, PUBLISHED, RECIPES, page_with_table
from t5_pipeline.config.overrides import parse_override
from t5_pipeline.config.recipe import load_recipe
from t5_pipeline.config.soft_prompt import PromptTuneConfig
from t5_pipeline.data_prep.tasks.formats import SUPERGLUE
from t5_pipeline.modeling.presets import PRESETS, SIZES


def test_the_page_has_the_current_table() -> None:
    page = PAGE.read_text(encoding="utf-8")
    assert page == page_with_table(page), "run python -m benchmarks.sizes"
    assert PUBLISHED.keys() <= SIZES.keys()


@pytest.mark.parametrize("size", SIZES)
def test_superglue_in_each_size(size: str) -> None:
    recipe = load_recipe(RECIPES / "superglue.yaml", [parse_override(f"size={size}")])
    assert recipe.name == f"superglue-{size}"
    prompts = [cell for cell in recipe.cells() if isinstance(cell.settings, PromptTuneConfig)]
    assert PRESETS[str(prompts[0].inputs["model"].path)] is SIZES[size]
    assert len({str(cell.inputs["model"].path) for cell in prompts}) == 1
    assert sorted(cell.settings.task.format for cell in prompts) == sorted(3 * SUPERGLUE)
    for c in (cell.settings for cell in prompts):
        assert (c.prompt_length, c.steps, c.batch_size, c.prompt_init) == (100, 30_000, 32, "class_labels")
        assert c.optimizer_step_offset == 1_100_000
        assert c.task.labels or c.init_labels


@pytest.mark.parametrize("size", SIZES)
def test_lm_adaptation_in_each_size(size: str) -> None:
    recipe = load_recipe(RECIPES / "t5-v1_1-lm100k.yaml", [parse_override(f"size={size}")])
    assert recipe.name == f"t5-v1_1-{size}-lm100k"
    outside = {str(ref.path) for cell in recipe.cells() for ref in cell.inputs.values() if ref.stage is None}
    assert outside - {"allenai/c4"} == {f"google/t5-v1_1-{size}"}
