from __future__ import annotations

from t5_pipeline.data_prep.tasks.counts import RowCounts, Truncated
from t5_pipeline.report.collect import collect
from t5_pipeline.report.sections.data import data_section
from tests.report.conftest import RunBuilder

TRAIN = RowCounts(
    task="kind", split="train", read=1200, dropped={"without text": 3, "without label": 1}, used=1196,
    max_input_length=64, max_target_length=8, inputs=Truncated(texts=40, median=12, most=300), only_target="a <b>",
)  # fmt: skip


def test_counts_of_all_stages_and_warnings(finished: RunBuilder) -> None:
    assert data_section(collect(finished.run_dir.path)) is None
    for cell in finished.recipe.stages["prompt_tune"]:
        manifest = finished.run_dir.manifest(cell)
        assert manifest is not None
        manifest.model_copy(update={"rows": [TRAIN]}).save(finished.run_dir.cell(cell))
    found = data_section(collect(finished.run_dir.path))
    assert found is not None
    assert found.count("<tr") == 2  # the seeds of a matrix read the same rows
    assert 'prompt_tune</td><td class="n">1,200</td><td class="n">3 without text<br>1 without label</td>' in found
    assert '40<br><small>to 64 tokens; 12 cut in the median, 300 at most</small></td><td class="n">0</td>' in found
    assert "all 1,196 rows of split &#x27;train&#x27; have the target &#x27;a &lt;b&gt;&#x27;, so training" in found
