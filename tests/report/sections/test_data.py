from __future__ import annotations

import re

from t5_pipeline.data_prep.tasks.counts import RowCounts, Truncated
from t5_pipeline.report.collect import collect
from t5_pipeline.report.sections.data import data_section
from t5_pipeline.report.sections.notes import notes
from tests.report.conftest import RunBuilder

TRAIN = RowCounts(
    task="kind", split="train", read=1200, dropped={"without text": 3, "without label": 1}, used=1196,
    max_input_length=64, max_target_length=8, inputs=Truncated(texts=40, median=12, most=300), unknown_inputs=1021,
    unknown_targets=2, only_target="a <b>",
)  # fmt: skip


def test_counts_of_all_stages_and_warnings(finished: RunBuilder) -> None:
    assert data_section(collect(finished.run_dir.path)) is None
    for cell in finished.recipe.stages["prompt_tune"]:
        manifest = finished.run_dir.manifest(cell)
        assert manifest is not None
        manifest.model_copy(update={"rows": [TRAIN]}).save(finished.run_dir.cell(cell))
    run = collect(finished.run_dir.path)
    found = data_section(run)
    assert found is not None
    (row,) = re.findall(r"<tr><th scope=\"row\".*?</tr>", found.markup)  # the seeds of a matrix read the same rows
    assert re.findall(r">([^<>]+)</t[dh]>", row) == [
        "kind", "train", "prompt_tune", "1,200", "4", "3 without text, 1 without label", "40", "12", "300", "0",
        "1,021", "2",
    ]  # fmt: skip
    (note,) = notes(run)
    assert "all 1,196 rows of split &#x27;train&#x27; have the target &#x27;a &lt;b&gt;&#x27;, so training" in note
