"""Section on sizes."""

from __future__ import annotations

from dataclasses import replace

from t5_pipeline.report.collect import ModelSize, PromptSize, collect
from t5_pipeline.report.sections.run import sizes_section
from tests.report.conftest import RunBuilder


def test_the_smallest_prompt_is_compared_with_its_own_t5(finished: RunBuilder) -> None:
    """The large T5 has a prompt of one token, the small one only a prompt of 20, which is larger."""
    run = collect(finished.run_dir.path)
    shape = finished.shape
    models = {name: ModelSize(name, number, None, shape) for name, number in (("small", 1000), ("large", 5000))}
    prompts = [PromptSize(20, 10, 800, of_t5=1000), PromptSize(1, 50, 200, of_t5=5000), PromptSize(4, 50, 800, 5000)]
    section = sizes_section(replace(run, models=models, prompts=prompts), {})
    assert section is not None
    page = str(section.markup)
    assert "A prompt of 1 token has 50 parameters (200 bytes on disk); its frozen T5 has 5,000, 100 times" in page
    assert "Prompt of 20 tokens of width 10: 200, 800 bytes." in page
    assert "Prompt of 4 tokens of width 50: 200, 800 bytes." in page
