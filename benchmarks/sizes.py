"""The table of sizes in recipes/README.md: the paper's scores, and what `t5-pipeline plan` says that each size costs.

python -m benchmarks.sizes          write the table
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from t5_pipeline.artifacts.run_dir import RunDir
from t5_pipeline.config.overrides import parse_override
from t5_pipeline.config.recipe import load_recipe
from t5_pipeline.core.atomic_files import write_output
from t5_pipeline.cost.plan import Rate, StageCost, plan
from t5_pipeline.cost.plan_text import count_text, hours_text, size_text
from t5_pipeline.modeling.presets import SIZES

RECIPES = Path(__file__).parent.parent / "recipes"
PAGE = RECIPES / "README.md"
BEGIN, END = "<!-- table of sizes: python -m benchmarks.sizes -->\n", "<!-- end of the table of sizes -->\n"
LAUNCH = str(RECIPES.parent / "accelerate_configs/gpu.yaml")
RATE, DEVICE = 4e14, 80 * 2**30  # of one GPU: --rate 400T --memory 80G

# Table 3 of the paper: the mean of five prompts on the validation rows. For the other sizes it has only Figure 1.
PUBLISHED = {"xxl": "90.5"}


def costs(recipe: str, size: str, stages: Sequence[str]) -> list[StageCost]:
    """The stages' rows of `t5-pipeline plan RECIPE --set size=SIZE --set launch=accelerate_configs/gpu.yaml …`."""
    overrides = [f"size={size}", f"launch={LAUNCH}"]
    found = load_recipe(RECIPES / recipe, map(parse_override, overrides))
    made = plan(found, RunDir(Path("runs/none")), Rate(RATE), memory=DEVICE)
    return [row for row in made.stages if row.name.split(" ")[0] in stages]


def table() -> str:
    """The table, in Markdown."""
    lines = [
        "| size | parameters | a prompt | SuperGLUE in the paper | 24 prompts: FLOPs | time | peak | on 80 GB"
        " | adaptation: FLOPs | time | peak | on 80 GB |",
        "|---" * 12 + "|",
    ]
    for size, shape in SIZES.items():
        prompts = costs("superglue.yaml", size, ("prompt_tune", "record", "wsc"))
        adapted = costs("t5-v1_1-lm100k.yaml", size, ("lm_adapt",))
        cells = [size, count_text(shape.parameters), size_text(4 * 100 * shape.d_model), PUBLISHED.get(size, "–")]
        lines.append("| " + " | ".join([*cells, *_of(prompts), *_of(adapted)]) + " |")
    return "\n".join(lines) + "\n"


def _of(rows: Sequence[StageCost]) -> list[str]:
    """FLOPs and hours in all, the largest peak, and whether it fits."""
    flops, hours = sum(row.flops or 0 for row in rows), sum(row.hours or 0 for row in rows)
    largest = max((row.fit for row in rows if row.fit), key=lambda fit: fit.needs)
    fits = "fits" if largest.fits else largest.remedy or "does not fit"
    return [f"{flops:.1e}", hours_text(hours), size_text(largest.needs), fits]


def page_with_table(page: str) -> str:
    """The page with the current table between its markers."""
    return re.sub(f"(?s)(?<={re.escape(BEGIN)}).*?(?={re.escape(END)})", lambda _: table(), page)


if __name__ == "__main__":
    write_output(PAGE, page_with_table(PAGE.read_text(encoding="utf-8")).encode())
