"""Text prompts: demonstrations, truncation, placeholders."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from t5_pipeline.core.errors import InputError
from t5_pipeline.data_prep.tasks.config import TaskConfig
from t5_pipeline.data_prep.tokenizer.vocabulary import Vocabulary
from t5_pipeline.methods.text_prompt import TextPrompt, demonstrations
from tests.tiny_run import Tiny

ROWS = [(f"row {i}", "yes" if i % 3 == 0 else "no") for i in range(30)]


def prompt(**more: object) -> TextPrompt:
    task = TaskConfig(name="t", data="d", inputs="{a}", targets="{b}")
    values = {
        "base_model": "m", "base_model_digest": "d", "tokenizer_digest": "t", "task": task, "sentinel": "none",
        "template": "{input} Answer:", "demonstrations": ["one yes", "two no"], "separator": " ", "seed": 0,
        "max_input_length": 40, "max_target_length": 8,
    }  # fmt: skip
    return TextPrompt.model_validate({**values, **more})


def test_demonstrations_alternate_labels_and_depend_on_seed() -> None:
    shown = demonstrations(ROWS, ["no", "yes"], 4, 1, "{input}?", "{input} {target}")
    assert [text.rpartition(" ")[2] for text in shown] == ["no", "yes", "no", "yes"]
    assert all(text.partition("?")[0] in dict(ROWS) for text in shown)
    assert shown == demonstrations(ROWS, ["no", "yes"], 4, 1, "{input}?", "{input} {target}")
    assert shown != demonstrations(ROWS, ["no", "yes"], 4, 2, "{input}?", "{input} {target}")
    every = demonstrations(ROWS, ["no", "yes"], 99, 1, "{input}", "{input} {target}")
    assert Counter(every) == Counter(f"{a} {b}" for a, b in ROWS)
    assert demonstrations(ROWS, None, 3, 1, "{input}", "{target}: {input}")[0].partition(": ")[0] in ("yes", "no")


def test_braces_in_texts_are_kept() -> None:
    rows = [("a {target} and {input}", "{input}")]
    assert demonstrations(rows, None, 1, 0, "<{input}>", "{input} -> {target}") == [
        "<a {target} and {input}> -> {input}"
    ]
    assert prompt(demonstrations=[]).word("say {input}") == "say {input} Answer:"


def test_demonstrations_are_dropped_before_input_is_truncated(finished: Tiny) -> None:
    vocabulary = Vocabulary.load(finished.run / "lm_adapt" / "model")

    def length(text: str) -> int:
        return len(vocabulary.encode(text)) + 1

    whole, one, none = (prompt().word("an input", shown) for shown in (2, 1, 0))
    for text in (whole, one, none):
        (ids,) = prompt(max_input_length=length(text)).encode(["an input"], vocabulary).ids
        assert ids.tolist() == [*vocabulary.encode(text), 1]
    (cut,) = prompt(max_input_length=length(none) - 2).encode(["an input"], vocabulary).ids
    assert cut.tolist() == [*vocabulary.encode(none)[:-2], 1]
    (both,) = prompt(sentinel="both").encode(["an input"], vocabulary).ids
    assert both.tolist()[-2:] == [vocabulary.sentinel(0), 1]


def test_round_trip_and_damage(tmp_path: Path) -> None:
    prompt().save(tmp_path)
    assert TextPrompt.load(tmp_path) == prompt()
    (tmp_path / "text_prompt.json").write_text('{"format": 1}')
    with pytest.raises(InputError, match=r"text_prompt\.json: base_model: is missing"):
        TextPrompt.load(tmp_path)
    (tmp_path / "text_prompt.json").write_text("{")
    with pytest.raises(InputError, match="not valid JSON"):
        TextPrompt.load(tmp_path)
    with pytest.raises(InputError, match="does not exist"):
        TextPrompt.load(tmp_path / "nowhere")
