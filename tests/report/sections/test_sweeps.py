"""Section on sweeps."""

from __future__ import annotations

from dataclasses import replace

from t5_pipeline.report.collect import collect
from t5_pipeline.report.sections.sweeps import sweeps_section
from tests.report.conftest import RunBuilder


def test_without_rungs_the_best_prompt_is_published(finished: RunBuilder) -> None:
    """With `halving: 0`, all prompts train to the end, so none is the last one that remains."""
    run = collect(finished.run_dir.path)
    job = next(job for job in run.jobs if job.stage == "prompt_tune")
    prompts = {name: {"step": 10, "score": score, "loss": 1.0} for name, score in (("a", 0.5), ("b", 0.7))}
    manifest = job.manifests[0].model_copy(
        update={"facts": {"sweep": {"winner": "b", "settings": {}, "prompts": prompts}}}
    )
    section = sweeps_section(replace(run, jobs=[replace(job, cells=[replace(job.cells[0], manifest=manifest)])]))
    assert section is not None
    page = str(section.markup)
    assert page.index("published</td>") < page.index("trained to the end</td>")
    assert "Of those that trained to the end, the one with the best score is published." in page
