"""Every prompt initialization, through the stage, at the shortest and at long lengths."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from t5_pipeline.data_prep.tokenizer.vocabulary import Vocabulary
from t5_pipeline.methods.soft_prompt import Prompt
from t5_pipeline.modeling.load import load_t5
from tests.tiny_run import Outcome, Tiny, stage


def tune(tiny: Tiny, output: Path, length: int, *more: object) -> Outcome:
    task = Prompt.load(next((tiny.run / "prompt_tune").glob("*/prompt"))).info.task
    (output.parent / "task.yaml").write_text(task.model_dump_json())
    return stage(
        "prompt_tune", "--model", tiny.run / "lm_adapt", "--task", output.parent / "task.yaml", "--prompt-length", length,
        "--batch-size", 4, "--max-input-length", 32, "--precision", "fp32", "--threads", 1, "--output-dir", output, *more,
    )  # fmt: skip


def rows_of(output: Path) -> torch.Tensor:
    return Prompt.load(output / "prompt").rows_PD


def start(tiny: Tiny, output: Path, length: int, *more: object) -> torch.Tensor:
    ended = tune(tiny, output, length, "--steps", 0, *more)
    assert ended.code == 0, ended.err
    return rows_of(output)


@pytest.mark.parametrize("length", [1, 512])
@pytest.mark.parametrize("init", ["uniform", "vocabulary"])
def test_any_length_trains(finished: Tiny, tmp_path: Path, length: int, init: str) -> None:
    begun = start(finished, tmp_path / "start", length, "--prompt-init", init)
    ended = tune(finished, tmp_path / "end", length, "--prompt-init", init, "--steps", 2)
    assert ended.code == 0, ended.err
    found = rows_of(tmp_path / "end")
    assert begun.shape == found.shape == (length, 32)
    assert (found != begun).any(1).all()
    assert found.isfinite().all()


def test_vocabulary_rows_exclude_sentinels_and_padding(finished: Tiny, tmp_path: Path) -> None:
    """The default population (5,000) is larger than the vocabulary."""
    model = finished.run / "lm_adapt" / "model"
    vocabulary, table_VD = Vocabulary.load(model), load_t5(model).shared.weight.detach()
    pieces = vocabulary.size - vocabulary.sentinels
    rows = start(finished, tmp_path / "start", pieces, "--prompt-init", "vocabulary")
    nearest = torch.cdist(rows, table_VD).argmin(1)
    assert sorted(nearest.tolist()) == list(range(pieces))


def test_labels_then_vocabulary_and_a_warning_for_labels_without_a_row(finished: Tiny, tmp_path: Path) -> None:
    model = finished.run / "lm_adapt" / "model"
    vocabulary, table_VD = Vocabulary.load(model), load_t5(model).shared.weight.detach()
    rows = start(finished, tmp_path / "start", 5, "--prompt-init", "class_labels")
    for row, label in zip(rows, ("files", "numbers"), strict=False):
        torch.testing.assert_close(row, table_VD[vocabulary.encode(label)].mean(0))
    few = start(finished, tmp_path / "few", 1, "--prompt-init", "class_labels")
    assert "2 labels but only 1 prompt rows" in (tmp_path / "few/log.txt").read_text()
    assert torch.equal(few, rows[:1])


def test_init_labels_replace_the_labels(finished: Tiny, tmp_path: Path) -> None:
    """As in the paper's code for ReCoRD and WSC, whose targets are not classes."""
    model = finished.run / "lm_adapt" / "model"
    vocabulary, table_VD = Vocabulary.load(model), load_t5(model).shared.weight.detach()
    words = ("reading", "comprehension")
    flags = ("--prompt-init", "class_labels", "--init-labels", *words)
    rows = start(finished, tmp_path / "start", 3, *flags)
    for row, word in zip(rows, words, strict=False):
        torch.testing.assert_close(row, table_VD[vocabulary.encode(word)].mean(0))
    ended = tune(finished, tmp_path / "other", 3, "--prompt-init", "vocabulary", "--init-labels", *words)
    assert ended.code == 2
    assert "--init-labels: has no effect without `--prompt-init class_labels`" in ended.err


def test_init_text(finished: Tiny, tmp_path: Path) -> None:
    model = finished.run / "lm_adapt" / "model"
    ids = Vocabulary.load(model).encode("the name of the file")
    rows = start(
        finished, tmp_path / "text", len(ids) + 2, "--prompt-init", "text", "--init-text", "the name of the file"
    )
    assert torch.equal(rows[: len(ids)], load_t5(model).shared.weight.detach()[ids])


def test_a_prompt_starts_from_another_tasks_prompt(finished: Tiny, tmp_path: Path) -> None:
    """Transfer: the rows of a trained prompt, of the same length."""
    ended = tune(finished, tmp_path / "first", 4, "--prompt-init", "vocabulary", "--steps", 3)
    assert ended.code == 0, ended.err
    flags = ("--prompt-init", "prompt", "--init-prompt", tmp_path / "first")
    assert torch.equal(start(finished, tmp_path / "second", 4, *flags), rows_of(tmp_path / "first"))
    ended = tune(finished, tmp_path / "longer", 7, *flags, "--steps", 1)
    assert ended.code == 2
    assert "has 4 rows of width 32, but the new prompt has 7 rows of width 32; set prompt_length to 4" in ended.err
