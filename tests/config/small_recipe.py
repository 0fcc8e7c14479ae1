"""A small recipe."""

from __future__ import annotations

from pathlib import Path

from t5_pipeline.config.overrides import parse_override
from t5_pipeline.config.recipe import Recipe, load_recipe

RECIPE = """\
name: small
seed: 7
tasks:
  tone:
    data: rows
    inputs: "{text}"
    targets: "{label}"
    labels: [good, bad]
stages:
  prepare:
    corpus: text
  pretrain:
    uses: span_corrupt
    init: {d_model: 64}
    tokens: prepare
    steps: 10
  lm_adapt:
    model: pretrain
    tokens: prepare
    steps: 20
  prompt_tune:
    task: tone
    matrix:
      model: [pretrain, lm_adapt@10, lm_adapt]
      seed: [0, 1]
  evaluate:
    prompts: prompt_tune
"""


def overridden(recipe: Path, *overrides: str) -> Recipe:
    return load_recipe(recipe, map(parse_override, overrides))
