"""`predict` with rows, files, prompts and models that it cannot use."""

from __future__ import annotations

import json
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from t5_pipeline.core.errors import InputError
from t5_pipeline.data_prep.tokenizer.vocabulary import Vocabulary
from t5_pipeline.methods.soft_prompt import Prompt
from t5_pipeline.modeling.load import init_t5, load_t5
from t5_pipeline.modeling.model_dir import write_model
from t5_pipeline.modeling.model_metadata import ModelMetadata
from t5_pipeline.serving.engine import Engine
from tests.serving.five_prompts import LINES, Place, same, write_lines
from tests.tiny_run import t5_pipeline


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ({"prompt": "ton", "text": "x"}, "no prompt 'ton'; did you mean `tone`? prompts (named after their directories): gap,"),
        ({"prompt": [["tone"]], "text": "x"}, "no prompt ['tone']"),
        ({"text": "x"}, "names no prompt"),
        ({"prompt": None, "text": "x"}, "names no prompt"),
        ({"prompt": [], "text": "x"}, "names no prompt"),
        ({"prompt": "tone", "txt": "x"}, "has no field 'text' (only prompt, txt); add it, or give the finished text as `input`"),
        ({"prompt": "truth", "claim": {}}, "no field 'claim.text'"),
        ({"prompt": "tone", "text": None}, "field 'text' is empty (null)"),
        ({"prompt": "tone", "input": 7}, "`input` must be text, not int"),
        ({"prompt": "topic", "input": "x", "text": "y"}, "has `input` and text, but not what; give all fields"),
        ({"prompt": "tone", "input": "\ud800"}, "half of a surrogate pair"),
    ],
)  # fmt: skip
def test_a_row_without_an_answer_has_its_line_and_the_reason(
    place: Place, tmp_path: Path, line: dict[str, Any], words: str
) -> None:
    source = write_lines(tmp_path, [LINES[0], line, LINES[1]])
    source.write_text("\n" + source.read_text())
    said = place.run("--input", source)
    assert said.code == 1
    assert said.err.splitlines()[-1].startswith("1 of 3 rows have no answer")
    first, bad, last = [json.loads(line) for line in said.out.splitlines()]
    assert [first["prompt"], last["prompt"]] == ["topic", "tone"]
    assert bad["line"] == 3
    assert bad["error"].startswith(words) or words in bad["error"]
    assert str(source) not in bad["error"]


def test_lines_that_are_not_json_objects(place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    good = json.dumps(LINES[1]).encode()
    content = b"\n".join([b"{oops", good, b'"text"', b'{"text": "\xff"}', good])
    (tmp_path / "in.jsonl").write_bytes(content)
    said = place.run("--input", tmp_path / "in.jsonl")
    with (tmp_path / "in.jsonl").open() as stdin:
        monkeypatch.setattr(sys, "stdin", stdin)
        assert (said.code, place.run().out) == (1, said.out)
    monkeypatch.setattr(sys, "stdin", None)  # as of a process that was started with <&-
    assert (place.run().code, "--input: standard input is closed; give a file" in place.run().err) == (2, True)
    rows = [json.loads(line) for line in said.out.splitlines()]
    assert [row.get("line") for row in rows] == [1, None, 3, 4, None]
    assert "not JSON" in rows[0]["error"]


@pytest.mark.parametrize(("name", "content", "words"), [
    ("rows.txt", "A fine film.\n", "has no rows below its header line"),
    ("rows.tsv", "text\n", "has no rows below its header line"),
    ("rows.txt", "A fine film.\nA dull one.\n", "none of its columns (A fine film.) is `input` or a field of a prompt"),
    ("rows.csv", "text,input\nA fine film.,\nA dull one.,\n", "rows.csv:2: neither this row nor any other names its prompt; add"),
    ("rows.csv", "prompt,text\n,A fine film.\n", "rows.csv:2: neither this row nor any other names its prompt; add"),
    ("rows.jsonl", '{oops\n{"text": "x"}\n{"text": "y"}\n', "rows.jsonl:2: neither this row nor any other names its prompt; add"),
    ("rows.csv", 'prompt,text\ntone,"A fine\n', "rows.csv:2: not CSV"),
    ("rows.xlsx", "PK", ".xlsx is not a known format of rows"),
])  # fmt: skip
def test_files_that_cannot_be_read_are_rejected(
    place: Place, tmp_path: Path, name: str, content: str, words: str
) -> None:
    (tmp_path / name).write_text(content)
    said = place.run("--input", tmp_path / name, "--output", tmp_path / "out.jsonl")
    assert said.code == 2
    assert words in said.err
    assert said.err.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == [name]


def _other_weights(model: Path, prompts: Path) -> None:
    t5 = init_t5(load_t5(model).shape, seed=6)
    write_model(model, t5, Vocabulary.load(model), ModelMetadata())


def _fewer_sentinels(model: Path, prompts: Path) -> None:
    config = model / "tokenizer_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"extra_ids": 90}))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (_other_weights, "prompt `gap` was trained on another T5"),
        (_fewer_sentinels, "prompt `gap` was trained on another T5"),
    ],
)
def test_prompts_of_another_model_are_rejected(
    place: Place, tmp_path: Path, change: Callable[[Path, Path], None], words: str
) -> None:
    for directory in (place.model, place.prompts):
        shutil.copytree(directory, tmp_path / directory.name)
    change(tmp_path / "model", tmp_path / "prompts")
    source = tmp_path / "mixed.jsonl"
    source.write_text("\n" + json.dumps(LINES[1]) + "\n")
    said = t5_pipeline(
        "predict", "--model", tmp_path / "model", "--prompts", tmp_path / "prompts", "--input", source,
        "--output", tmp_path / "out.jsonl",
    )  # fmt: skip
    assert said.code == 2
    assert words in said.err
    assert not (tmp_path / "out.jsonl").exists()


def test_unused_prompts_may_belong_to_another_model(place: Place, tmp_path: Path) -> None:
    shutil.copytree(place.prompts, tmp_path / "prompts")
    info = place.loaded["gap"].info.model_copy(update={"base_model_digest": "00" * 32})
    Prompt(place.loaded["gap"].rows_PD, info).save(tmp_path / "prompts" / "gap")
    asked = [line for line in LINES if line["prompt"] != "gap"]
    other = Place(place.model, tmp_path / "prompts", place.loaded, place.vocabulary)
    assert len(other.predict("--input", write_lines(tmp_path, asked))) == len(asked)
    said = other.run("--input", write_lines(tmp_path, [{"prompt": "gap", "input": "x"}]))
    assert said.code == 1
    assert "prompt `gap` was trained on another T5" in said.out


def test_only_rows_that_name_a_damaged_prompt_fail(place: Place, tmp_path: Path) -> None:
    shutil.copytree(place.prompts, tmp_path / "prompts")
    (tmp_path / "prompts/tone/prompt.safetensors").unlink()
    (tmp_path / "prompts/truth/prompt/prompt.json").write_text("{")
    damaged = Place(place.model, tmp_path / "prompts", place.loaded, place.vocabulary)
    said = damaged.run("--input", write_lines(tmp_path))
    assert said.code == 1
    expected = place.predict("--input", write_lines(tmp_path))
    for line, answer, whole in zip(LINES, map(json.loads, said.out.splitlines()), expected, strict=True):
        if line["prompt"] == "tone":
            assert "tone/prompt.safetensors: does not exist" in answer["error"]
        elif line["prompt"] == "truth":
            assert "truth/prompt/prompt.json: " in answer["error"]
        else:
            same([answer], [whole])
    for name in ("gap", "topic", "words"):
        shutil.rmtree(tmp_path / "prompts" / name)
    said = damaged.run("--input", write_lines(tmp_path))
    assert said.code == 2
    assert re.fullmatch(
        r"error: --prompts: \S+: 2 of 2 prompts cannot be used: `tone` \(.+\), `truth` \(.+\); repair or move them\n",
        said.err,
    )


def test_an_error_lists_some_of_many_prompts(place: Place, tmp_path: Path) -> None:
    for index in range(23):
        place.loaded["tone"].save(tmp_path / "prompts" / f"tone-{index:02}")
    many = Place(place.model, tmp_path / "prompts", place.loaded, place.vocabulary)
    source = write_lines(tmp_path, [{"prompt": "gone", "text": "x"}, {"text": "x"}])
    unknown, unnamed = [json.loads(line)["error"] for line in many.run("--input", source).out.splitlines()]
    assert unknown.endswith("tone-18, tone-19 and 3 more")
    assert unnamed.endswith("tone-18, tone-19 and 3 more")


@pytest.mark.parametrize(("flags", "words"), [
    (["--output", "nowhere/out.jsonl"], "cannot write nowhere/out.jsonl"),
    (["--input", "nowhere.jsonl"], "nowhere.jsonl does not exist"),
    (["--input", "nowhere"], "nowhere does not exist"),
    (["--input", "tests"], "tests: is a directory; give a .jsonl"),
    (["--input", "LICENSE"], "LICENSE: has no suffix; give a .jsonl"),
    (["--prompts", "nowhere"], "nowhere does not exist"),
    (["--prompts", "tests"], "no prompt in tests"),
    (["--model", "runs/nowhere"], "than runs/nowhere (a hub model, as there is no such directory)"),
])  # fmt: skip
def test_missing_paths(place: Place, tmp_path: Path, flags: list[str], words: str) -> None:
    said = place.run("--input", write_lines(tmp_path), *flags)
    assert said.code == 2
    assert words in said.err


def test_rows_of_another_width_are_refused(place: Place, tmp_path: Path) -> None:
    info = place.loaded["tone"].info.model_copy(update={"width": 16})
    Prompt(torch.ones(3, 16), info).save(tmp_path / "tone")
    with pytest.raises(InputError, match=r"has rows of width 16, but .* has width 32"):
        Engine.load(str(place.model), str(tmp_path))


def test_a_prompt_votes_once(place: Place, tmp_path: Path) -> None:
    said = place.run("--input", write_lines(tmp_path, [{"prompt": ["tone", "tone"], "text": "x"}, LINES[1]]))
    row, other = map(json.loads, said.out.splitlines())
    assert row == {"line": 1, "error": "prompt `tone` would vote more than once; name each prompt once"}
    assert (said.code, other["prompt"]) == (1, "tone")


def _with_template(place: Place, inputs: str, *to: Path) -> Place:
    """The prompt `tone` with another template, in directories of their own; the last one is given."""
    info = place.loaded["tone"].info
    task = info.task.model_copy(update={"inputs": inputs})
    for directory in to:
        Prompt(place.loaded["tone"].rows_PD, info.model_copy(update={"task": task})).save(directory)
    return Place(place.model, to[-1].parent, place.loaded, place.vocabulary)


def test_a_field_named_prompt_is_not_the_name_of_a_prompt(place: Place, tmp_path: Path) -> None:
    """Rows of {"prompt": …, "completion": …} name no prompt."""
    one = _with_template(place, "tone: {prompt}", tmp_path / "one" / "mine")
    texts = [{"prompt": "A file that does not exist."}, {"prompt": "mine"}]
    lines = [*texts, {"prompt": "mine", "input": "tone: A file that does not exist."}]
    answers = one.predict("--input", write_lines(tmp_path, lines))
    expected = [{"prompt": "tone", "text": text} for text in ("A file that does not exist.", "mine")]
    found = place.predict("--input", write_lines(tmp_path, [*expected, expected[0]]))
    same(answers, [row | {"prompt": "mine"} for row in found])

    two = _with_template(place, "tone: {prompt}", tmp_path / "two" / "mine", tmp_path / "two" / "other")
    asked = [{"prompt": "mine", "text": "x"}, {"prompt": "mine", "input": "tone: mine"}, {"prompt": "x"}]
    said = two.run("--input", write_lines(tmp_path, asked))
    bad, good, unknown = [json.loads(line) for line in said.out.splitlines()]
    assert bad["error"].startswith(
        "the template of `mine` has a field `prompt`, but `prompt` is the name of the prompt"
    )
    same([good], [found[1] | {"prompt": "mine"}])
    assert unknown["error"].startswith("there is no prompt 'x'")


def test_a_missing_field_beside_one_named_input(place: Place, tmp_path: Path) -> None:
    one = _with_template(place, "{instruction}: {input}", tmp_path / "one" / "mine")
    said = one.run("--input", write_lines(tmp_path, [{"input": "Say yes."}]))
    assert json.loads(said.out)["error"] == "has no field 'instruction' (only input); add it"
