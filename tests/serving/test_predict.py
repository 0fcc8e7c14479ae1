"""Many prompts on one frozen T5 in mixed batches; answers equal those of single prompts."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from t5_pipeline.artifacts.kinds import locate, named_prompts
from t5_pipeline.data_prep.tasks.counts import Truncated
from t5_pipeline.data_prep.tokenizer.vocabulary import Vocabulary
from t5_pipeline.methods.soft_prompt import Prompt
from t5_pipeline.modeling.load import load_t5
from t5_pipeline.modeling.prompt_bank import PromptBank, PromptedT5
from t5_pipeline.serving.engine import Engine
from t5_pipeline.serving.predict import Predict
from tests.serving.five_prompts import LINES, PROMPTS, Place, same, write_lines
from tests.tiny_run import Tiny, write_rows


@pytest.mark.parametrize("batch_size", [2, 3, 64])
def test_a_mixed_batch_equals_one_at_a_time(place: Place, tmp_path: Path, batch_size: int) -> None:
    source = write_lines(tmp_path)
    together = place.predict("--input", source, "--batch-size", batch_size)
    alone = [place.predict("--input", write_lines(tmp_path, [line]))[0] for line in LINES]
    same(together, alone)
    assert [row["prompt"] for row in together] == [line["prompt"] for line in LINES]


def expected(place: Place, name: str, text: str) -> dict[str, Any]:
    """An answer by ordinary forward passes: one prompt in the bank, one target at a time, ids put together by hand."""
    prompt, vocabulary = place.loaded[name], place.vocabulary
    model = PromptedT5(load_t5(place.model), PromptBank([prompt.rows_PD])).eval()
    _, sentinel, labels, _ = PROMPTS[name]
    first, last = [vocabulary.sentinel(0)], [vocabulary.eos]
    after = first if sentinel == "both" else []
    ids = [*vocabulary.encode(text)[: 24 - 1 - len(after)], *after, *last]

    @torch.no_grad()
    def log_p(target: list[int]) -> torch.Tensor:
        return model(torch.tensor([0]), torch.tensor([ids]), torch.tensor([target]))[0].log_softmax(-1)

    if labels:
        found = {}
        for label in labels:
            target = [*(first if sentinel != "none" else []), *vocabulary.encode(label), *last]
            found[label] = float(log_p(target)[range(len(target)), target].sum())
        return {"prompt": name, "output": max(found, key=found.__getitem__), "scores": found}
    target = []
    while len(target) < 6 and vocabulary.eos not in target:
        target.append(int(log_p([*target, 0])[-1].argmax()))
    stripped = target[1:] if sentinel != "none" and target[0] == first[0] else target
    return {"prompt": name, "output": vocabulary.decode(stripped)}


def test_answers_are_those_of_ordinary_forward_passes(place: Place, tmp_path: Path) -> None:
    texts = [
        "Return the number of lines. about 3", "tone: A file that does not exist.", "gap: the name of",
        "is it true that a list is sorted?", "words: Parse the arguments, one after another, until there are none.",
        "tone: A file that does not exist.", "", "Open it. " * 12 + " about files", "is it true that x", "words: End.",
    ]  # fmt: skip
    said = place.run("--input", write_lines(tmp_path))
    assert said.code == 0, said.err
    rooms = [24 - 1 - (PROMPTS[line["prompt"]][1] == "both") for line in LINES]
    cut = Truncated.of(len(place.vocabulary.encode(t)) - room for t, room in zip(texts, rooms, strict=True))
    assert f"predict: 10 rows; inputs truncated: {cut}\n" in said.err
    assert cut.texts > 1
    answers = [json.loads(line) for line in said.out.splitlines()]
    same(answers, [expected(place, line["prompt"], text) for line, text in zip(LINES, texts, strict=True)])
    assert answers[1] == answers[5], "fields and ready text read the same"
    assert len({row["output"] for row in answers}) > 4, "the answers are worth comparing"


def test_free_text_ends_at_the_maximum_length(place: Place, tmp_path: Path) -> None:
    source = write_lines(tmp_path)
    whole = [row["output"] for row in place.predict("--input", source)]
    short = [row["output"] for row in place.predict("--input", source, "--max-output-length", 2)]
    words = [i for i, line in enumerate(LINES) if line["prompt"] == "words"]
    assert all(whole[i].startswith(short[i]) and len(short[i]) < len(whole[i]) for i in words)


def test_the_template_is_filled_if_a_line_has_its_fields(place: Place, tmp_path: Path) -> None:
    fields: list[dict[str, Any]] = [{"prompt": "tone", "text": "A file."}, {"prompt": "truth", "claim": {"text": "x"}}]
    both = [{**line, "input": "something else"} for line in fields]
    only_input = [
        {"prompt": "tone", "text": None, "input": "tone: A file."},
        {"prompt": "truth", "input": "is it true that x"},
    ]
    found = place.predict("--input", write_lines(tmp_path, fields + both + only_input))
    for start in (2, 4):
        same(found[start : start + 2], found[:2])


def test_standard_input_and_output(place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = write_lines(tmp_path)
    with source.open() as stdin:
        monkeypatch.setattr(sys, "stdin", stdin)
        piped = place.predict()
    assert place.predict("--input", source, "--output", tmp_path / "out.jsonl") == []
    assert [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()] == piped
    before = source.read_bytes()
    (tmp_path / "link.jsonl").symlink_to(source)
    refused = place.run("--input", source, "--output", tmp_path / "link.jsonl")
    assert (refused.code, "link.jsonl is the input file; choose another one" in refused.err) == (2, True)
    assert source.read_bytes() == before
    assert place.predict("--input", write_lines(tmp_path, [])) == []


def test_a_single_prompt_is_optional_in_lines(place: Place, tmp_path: Path) -> None:
    one = Place(place.model, place.prompts / "tone", place.loaded, place.vocabulary)
    (tmp_path / "rows.csv").write_text("id,text,prompt\n1,A file that does not exist.,\n")
    assert one.predict("--input", tmp_path / "rows.csv")[0]["prompt"] == "tone"
    named = [line for line in LINES if line["prompt"] == "tone"]
    same(one.predict("--input", tmp_path / "rows.csv"), place.predict("--input", write_lines(tmp_path, named[:1])))


def test_prompts_are_named_by_their_directories(place: Place, tmp_path: Path) -> None:
    assert list(named_prompts(str(place.prompts), "--prompts")) == sorted(PROMPTS)
    (tmp_path / "mine").symlink_to(place.prompts / "truth" / "prompt")
    (tmp_path / ".tone.1234.tmp").symlink_to(place.prompts / "tone")
    assert list(named_prompts(str(tmp_path), "--prompts")) == ["mine"], "a link has its own name, a leftover has none"
    assert locate("prompt", str(place.prompts / "truth"), "x") == [place.prompts / "truth" / "prompt"]


def test_predict_scores_as_evaluate_does(finished: Tiny, tmp_path: Path) -> None:
    """The same prompts on the same rows: the log p of every label."""
    file = finished.run / "evaluate" / "scores" / "predictions.jsonl"
    lines = [line for line in map(json.loads, file.read_text().splitlines()) if line["method"] == "prompt tuning"]
    assert len(lines) == 6 * 8
    for model in ("lm_adapt", "sentinel"):
        mine = [line for line in lines if line["cell"].startswith(f"model={model},")]
        source = write_lines(tmp_path, [{"prompt": line["cell"], "input": line["input"]} for line in mine])
        there = Place(
            finished.run / model, finished.run / "prompt_tune", {}, Vocabulary.load(finished.run / model / "model")
        )
        answers = there.predict("--input", source, "--batch-size", 5)
        assert len(answers) == 16
        for line, answer in zip(mine, answers, strict=True):
            assert answer["scores"] == pytest.approx(line["scores"], abs=1e-4)
            assert answer["output"] == max(answer["scores"], key=answer["scores"].__getitem__)


def test_prompts_of_the_same_labels_vote(place: Place, tmp_path: Path) -> None:
    """The vote is made of what each answers alone, in lines that are mixed with others."""
    for copy, seed in (("tone2", 3), ("tone3", 4)):
        rows = torch.randn(5, 32, generator=torch.Generator().manual_seed(seed))
        info = place.loaded["tone"].info.model_copy(update={"prompt_length": 5})
        Prompt(rows, info).save(tmp_path / "prompts" / copy)
    for name in PROMPTS:
        shutil.copytree(place.prompts / name, tmp_path / "prompts" / name)
    voters = ["tone", "tone2", "tone3"]
    texts = [f"number {i} of {i * i}" for i in range(12)]
    lines = [{"prompt": voters, "text": text} for text in texts] + [{"prompt": "words", "text": texts[0]}]
    write_rows(tmp_path / "lines.jsonl", lines)
    write_rows(tmp_path / "alone.jsonl", [{"prompt": name, "text": text} for text in texts for name in voters])
    there = Place(place.model, tmp_path / "prompts", place.loaded, place.vocabulary)
    *voted, _ = there.predict("--input", tmp_path / "lines.jsonl")
    alone = there.predict("--input", tmp_path / "alone.jsonl")
    for i, line in enumerate(voted):
        own = [answer["output"] for answer in alone[3 * i : 3 * i + 3]]
        assert line["votes"] == {label: own.count(label) for label in line["votes"]}
        assert (line["prompt"], line["output"]) == (voters, max(set(own), key=own.count))

    write_rows(tmp_path / "other.jsonl", [{"prompt": ["tone", "truth"], "text": "x", "claim": {"text": "y"}}])
    said = there.run("--input", tmp_path / "other.jsonl")
    assert said.code == 1
    assert "prompts `tone` and `truth` have different labels and cannot vote" in said.out


def test_compiled_and_other_answers_do_not_resume_each_other(place: Place, tmp_path: Path) -> None:
    source = write_lines(tmp_path)
    engines = [
        Engine.load(str(place.model), str(place.prompts), compiled=compiled) for compiled in (False, True, False)
    ]
    names = [Predict()._partial(engine, source, tmp_path / "out.jsonl") for engine in engines]
    assert names[0] == names[2] != names[1]


def test_a_row_of_a_broken_prompt_gets_an_error_line(place: Place, tmp_path: Path) -> None:
    expected = place.predict("--input", write_lines(tmp_path))
    engine = Engine.load(str(place.model), str(place.prompts), precision="fp32")
    for name in ("tone", "gap"):  # labels, free text
        engine.prompts[name].prompts[0].fill_(float("nan"))
    counts = Predict(batch_size=4)(engine, str(write_lines(tmp_path)), str(tmp_path / "answers.jsonl"))
    found = [json.loads(line) for line in (tmp_path / "answers.jsonl").read_text().splitlines()]
    assert (counts.rows, counts.bad) == (10, 4)
    for number, (line, answer, alone) in enumerate(zip(LINES, found, expected, strict=True), 1):
        if line["prompt"] in ("tone", "gap"):
            assert answer["line"] == number
            assert answer["error"].startswith(f"prompt `{line['prompt']}`: log probabilities are not finite, so there")
        else:
            same([answer], [alone])
