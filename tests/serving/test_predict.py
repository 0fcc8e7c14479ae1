"""Many prompts on one frozen T5 in mixed batches, as a stream of lines; answers equal those of single prompts."""

from __future__ import annotations

import io
import json
import os
import select
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
import torch

from t5_pipeline.artifacts.kinds import artifact_digest, locate, named_prompts
from t5_pipeline.core.errors import InputError
from t5_pipeline.data_prep.tasks.config import TaskConfig
from t5_pipeline.data_prep.tasks.counts import Truncated
from t5_pipeline.data_prep.tokenizer.vocabulary import Vocabulary
from t5_pipeline.methods.soft_prompt import Prompt, PromptInfo
from t5_pipeline.modeling.config import T5Config
from t5_pipeline.modeling.load import init_t5, load_t5
from t5_pipeline.modeling.model_dir import ModelMetadata, write_model
from t5_pipeline.modeling.prompt_bank import PromptBank, PromptedT5
from t5_pipeline.serving.engine import Engine
from tests.tiny_run import CORPUS, Outcome, Tiny, command, documentation, t5_pipeline, write_rows

# name: rows, sentinel variant, labels, template. Two label sets of two, which are scored together, and one of three.
PROMPTS: dict[str, tuple[int, Any, list[str] | None, str]] = {
    "tone": (3, "none", ["good", "bad news"], "tone: {text}"),
    "truth": (7, "both", ["yes", "the answer is no"], "is it true that {claim.text}"),
    "topic": (5, "targets", ["files", "numbers", "text of a file"], "{text} about {what}"),
    "words": (1, "none", None, "words: {text}"),
    "gap": (9, "targets", None, "gap: {text}"),
}


@dataclass(frozen=True)
class Place:
    """A model directory, a folder of prompts, and what is in them."""

    model: Path
    prompts: Path
    loaded: dict[str, Prompt]
    vocabulary: Vocabulary

    def given(self, *arguments: object) -> list[object]:
        given = ("--model", self.model, "--prompts", self.prompts, "--precision", "fp32", "--threads", 1)
        return ["predict", *given, *arguments]

    def run(self, *arguments: object) -> Outcome:
        return t5_pipeline(*self.given(*arguments))

    def predict(self, *arguments: object) -> list[dict[str, Any]]:
        said = self.run(*arguments)
        assert said.code == 0, said.err
        return [json.loads(line) for line in said.out.splitlines()]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    directory = tmp_path_factory.mktemp("serve")
    vocabulary = Vocabulary.train((text for module in CORPUS[:8] for _, text in documentation(module)), 300)
    shape = T5Config(
        vocab_size=vocabulary.rows, d_model=32, d_kv=8, d_ff=48, num_layers=2, num_decoder_layers=2, num_heads=4,
        relative_attention_num_buckets=8, relative_attention_max_distance=20,
    )  # fmt: skip
    t5 = init_t5(shape, seed=5)
    with torch.no_grad():  # larger than at the start, so that different prompts give different answers
        for name, parameter in t5.named_parameters():
            parameter.mul_(1.5 if "norm" not in name else 1.0)
    (directory / "model").mkdir()
    write_model(directory / "model", t5, vocabulary, ModelMetadata())
    loaded = {}
    for index, (name, (rows, sentinel, labels, inputs)) in enumerate(PROMPTS.items()):
        info = PromptInfo(
            base_model="model", base_model_digest=artifact_digest("model", directory / "model"),
            tokenizer_digest=vocabulary.digest, sentinel=sentinel, prompt_length=rows, width=32, max_input_length=24,
            max_target_length=6, prompt_init="uniform", seed=index, step=10,
            task=TaskConfig(name=name, data="none.jsonl", inputs=inputs, targets="{label}", labels=labels),
        )  # fmt: skip
        loaded[name] = Prompt(torch.randn(rows, 32, generator=torch.Generator().manual_seed(index)) * 2, info)
        # Half of them as a stage leaves them: NAME/prompt.
        loaded[name].save(directory / "prompts" / name / ("prompt" if index % 2 else ""))
    return Place(directory / "model", directory / "prompts", loaded, vocabulary)


LINES: list[dict[str, Any]] = [
    {"prompt": "topic", "text": "Return the number of lines.", "what": 3},
    {"prompt": "tone", "text": "A file that does not exist."},
    {"prompt": "gap", "text": "the name of"},
    {"prompt": "truth", "claim": {"text": "a list is sorted?"}},
    {"prompt": "words", "text": "Parse the arguments, one after another, until there are none."},
    {"prompt": "tone", "input": "tone: A file that does not exist."},
    {"prompt": "gap", "input": ""},
    {"prompt": "topic", "text": "Open it. " * 12, "what": "files"},
    {"prompt": "truth", "claim": {"text": "x"}, "label": "ignored"},
    {"prompt": "words", "text": "End."},
]


def write_lines(directory: Path, lines: list[dict[str, Any]] = LINES) -> Path:
    write_rows(directory / "mixed.jsonl", lines)
    return directory / "mixed.jsonl"


def same(a: list[dict[str, Any]], b: list[dict[str, Any]]) -> None:
    assert [(row["prompt"], row["output"], list(row.get("scores", ()))) for row in a] == [
        (row["prompt"], row["output"], list(row.get("scores", ()))) for row in b
    ]
    for one, other in zip(a, b, strict=True):
        assert list(one.get("scores", {}).values()) == pytest.approx(list(other.get("scores", {}).values()), abs=1e-4)


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
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(source.read_bytes())))
    piped = place.predict()
    assert place.predict("--input", source, "--output", tmp_path / "out.jsonl") == []
    assert [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()] == piped
    assert place.predict("--input", write_lines(tmp_path, [])) == []


def test_a_single_prompt_is_optional_in_lines(place: Place, tmp_path: Path) -> None:
    one = Place(place.model, place.prompts / "tone", place.loaded, place.vocabulary)
    (tmp_path / "rows.csv").write_text("id,text\n1,A file that does not exist.\n")
    assert one.predict("--input", tmp_path / "rows.csv")[0]["prompt"] == "tone"
    named = [line for line in LINES if line["prompt"] == "tone"]
    same(one.predict("--input", tmp_path / "rows.csv"), place.predict("--input", write_lines(tmp_path, named[:1])))


def test_prompts_are_named_by_their_directories(place: Place, tmp_path: Path) -> None:
    assert list(named_prompts(str(place.prompts), "--prompts")) == sorted(PROMPTS)
    (tmp_path / "mine").symlink_to(place.prompts / "truth" / "prompt")
    (tmp_path / ".tone.1234.tmp").symlink_to(place.prompts / "tone")
    assert list(named_prompts(str(tmp_path), "--prompts")) == ["mine"], "a link has its own name, a leftover has none"
    assert locate("prompt", str(place.prompts / "truth"), "x") == [place.prompts / "truth" / "prompt"]


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ({"prompt": "ton", "text": "x"}, "no prompt 'ton'; did you mean `tone`? prompts (named after their directories): gap,"),
        ({"prompt": [["tone"]], "text": "x"}, "no prompt ['tone']"),
        ({"text": "x"}, "names no prompt"),
        ({"prompt": "tone", "txt": "x"}, "has no field 'text' (only prompt, txt)"),
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
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))
    assert (said.code, place.run().out) == (1, said.out)
    rows = [json.loads(line) for line in said.out.splitlines()]
    assert [row.get("line") for row in rows] == [1, None, 3, 4, None]
    assert "not JSON" in rows[0]["error"]


@pytest.mark.parametrize(("name", "content", "words"), [
    ("rows.txt", "A fine film.\n", "has no rows below its header line"),
    ("rows.tsv", "text\n", "has no rows below its header line"),
    ("rows.txt", "A fine film.\nA dull one.\n", "none of its columns (A fine film.) is `input` or a field of a prompt"),
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


def _no_rows(model: Path, prompts: Path) -> None:
    (prompts / "tone" / "prompt.safetensors").unlink()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (_other_weights, "prompt `gap` was trained on another T5"),
        (_fewer_sentinels, "prompt `gap` was trained on another T5"),
        (_no_rows, "prompt.safetensors: does not exist"),
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


@pytest.mark.parametrize(("flags", "words"), [
    (["--output", "nowhere/out.jsonl"], "cannot write nowhere/out.jsonl"),
    (["--input", "nowhere.jsonl"], "nowhere.jsonl does not exist"),
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


# ---------------------------------------------------------------------------------------------- streams and resuming


def test_answers_arrive_while_input_is_still_coming(
    place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reading, writing = os.pipe()
    stdin = os.fdopen(reading)
    monkeypatch.setattr(sys, "stdin", stdin)
    os.mkfifo(tmp_path / "out")
    answers = os.open(tmp_path / "out", os.O_RDWR)
    ended: list[Outcome] = []
    thread = Thread(target=lambda: ended.append(place.run("--output", tmp_path / "out")), daemon=True)
    thread.start()
    with os.fdopen(writing, "wb") as lines:
        for line in LINES[:3]:
            lines.write(json.dumps(line).encode() + b"\n")
            lines.flush()
            assert select.select([answers], [], [], 60)[0], "no answer before the next line"
            assert json.loads(os.read(answers, 65536))["prompt"] == line["prompt"]
    thread.join(60)
    stdin.close()
    os.close(answers)
    assert ended[0].code == 0


def test_a_killed_command_resumes_with_the_same_bytes(place: Place, tmp_path: Path) -> None:
    source = write_lines(
        tmp_path, [{**line, "prompt": line.get("prompt", "")} for line in LINES] * 60 + [{"text": "no"}]
    )
    flags = ("--input", source, "--batch-size", 1, "--temperature", 2, "--output")
    assert place.run(*flags, tmp_path / "whole.jsonl").code == 1
    killed = subprocess.Popen(command(*place.given(*flags, tmp_path / "out.jsonl")), stderr=subprocess.DEVNULL)
    while not (partial := list(tmp_path.glob("out.jsonl.*.partial"))) or partial[0].read_bytes().count(b"\n") < 32:
        assert killed.poll() is None
        time.sleep(0.002)
    killed.kill()
    killed.wait()
    assert not (tmp_path / "out.jsonl").exists()
    with partial[0].open("ab") as file:
        file.write(b'{"prompt": "to')
    resumed = place.run(*flags, tmp_path / "out.jsonl")
    assert resumed.code == 1
    assert "resuming after " in resumed.err
    assert "1 of 601 rows have no answer" in resumed.err
    assert (tmp_path / "out.jsonl").read_bytes() == (tmp_path / "whole.jsonl").read_bytes()
    assert list(tmp_path.glob("*.partial")) == []


def test_beams_and_samples_do_not_depend_on_batches(place: Place, tmp_path: Path) -> None:
    text = [line for line in LINES if line["prompt"] in ("gap", "words")] * 3
    source = write_lines(tmp_path, text)
    found = {}
    for name, flags in {
        "greedy": (), "beams": ("--beams", 4, "--length-penalty", 3),
        "seed 0": ("--temperature", 1.5), "seed 1": ("--temperature", 1.5, "--seed", 1), "top p": ("--top-p", 0.5),
    }.items():  # fmt: skip
        found[name] = [row["output"] for row in place.predict("--input", source, *flags)]
        again = [row["output"] for row in place.predict("--input", source, *flags, "--batch-size", 5)]
        assert found[name] == again
    assert len(set(map(tuple, found.values()))) == len(found)
    assert found["greedy"][:4] == found["greedy"][4:8]
    assert found["seed 0"][:4] != found["seed 0"][4:8], "equal rows have their own draws"
    refused = place.run("--input", source, "--beams", 4, "--top-p", 0.5)
    assert (refused.code, refused.err.count("\n")) == (2, 1)


def test_tune_then_predict(place: Place, tmp_path: Path) -> None:
    """Two seeds on held-out rows; then the same run again, once for the best seed and once to see that nothing runs."""
    texts = [text for _, text in documentation("textwrap")][:10]
    rows = [{"doc": {"text": text}, "kind": kind} for text in texts for kind in ("a", "b")]
    write_rows(tmp_path / "train.jsonl", rows)
    given = [
        "tune", "--model", place.model, "--train", tmp_path / "train.jsonl", "--inputs", "say: {doc.text}",
        "--targets", "{kind}", "--labels", "a, b", "--steps", 2, "--prompt-length", 3, "--batch-size", 4,
        "--precision", "fp32", "--max-input-length", 16, "--threads", 1, "--scoring", "likelihood", "--seed", 4,
        "--seeds", 2, "--output-dir", tmp_path / "letters",
    ]  # fmt: skip
    said = t5_pipeline(*given, "--vote")
    assert said.code == 0, said.err
    assert "train: 13 rows, train.jsonl[:80%, stratified=0]" in said.err
    assert "letters: scores × 100 on 2 test rows\n" in said.out
    assert [line.split()[0] for line in said.out.splitlines()[2:7]] == ["seed", "seed", "majority", "no", "majority"]
    assert '    {"prompt": ["letters-4", "letters-5"]}\n' in said.out
    voters = tmp_path / "letters" / "prompts"
    assert f"    t5-pipeline predict --model {place.model} --prompts {voters} --input" in said.out
    prompts = {name: Prompt.load(voters / name).info for name in ("letters-4", "letters-5")}
    assert [info.seed for info in prompts.values()] == [4, 5]

    said = t5_pipeline(*given)
    assert (said.code, "nothing to do: all 2 stages" in said.err) == (0, True), said.err
    out = tmp_path / "letters"
    assert (out / "superseded" / "prompts" / "earlier" / "letters-4" / "prompt.json").is_file()
    assert not voters.exists()
    info = Prompt.load(out / "prompt").info
    assert (info.task.name, info.task.labels) == ("letters", ["a", "b"])
    best = max(prompts.values(), key=lambda info: (info.scores["accuracy"], -info.seed))
    assert (info.seed, info.scores) == (best.seed, best.scores)
    assert f"seed {info.seed} (kept)" in said.out
    assert "on 2 rows" in (out / "prompt" / "README.md").read_text()
    before = (out / "prompt").stat().st_ino
    assert t5_pipeline(*given).out == said.out
    assert (out / "prompt").stat().st_ino == before, "an equal package stays"

    tuned = Place(place.model, out, {}, place.vocabulary)
    (answer,) = tuned.predict("--input", write_lines(tmp_path, [{"doc": {"text": "Wrap it."}}]))
    assert answer["prompt"] == "letters"
    assert answer["output"] in ("a", "b")
    assert t5_pipeline("report", out).code == 0


def test_tune_does_not_replace_another_run(place: Place, tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("name: other\nstages: {sentinel: {model: m}}\n")
    write_rows(tmp_path / "train.jsonl", [{"text": "x", "kind": "a"}] * 10)
    said = t5_pipeline("tune", "--model", place.model, "--train", tmp_path / "train.jsonl", "--inputs", "{text}",
                       "--targets", "{kind}", "--output-dir", tmp_path)  # fmt: skip
    assert (said.code, "--output-dir: " in said.err, "contains another run" in said.err) == (2, True, True), said.err
    assert recipe.read_text().startswith("name: other")


@pytest.mark.parametrize(("flags", "words"), [
    (["--train", "nowhere.jsonl"], "--train: nowhere.jsonl does not exist"),
    (["--validation", "nowhere.jsonl"], "--validation: nowhere.jsonl does not exist"),
    (["--launch", "nowhere.yaml"], "nowhere.yaml: does not exist; check the path"),
    (["--steps", "-1"], "--steps: "),
    (["--prompt-init", "text"], "`prompt_init: text` and `init_text` go together"),
    (["--vote"], "--vote: a single prompt cannot vote"),
    (["--seeds", "2", "--select", "last"], "--seeds: --select last gives no validation scores"),
    ([], "--train: 1 rows are too few"),
])  # fmt: skip
def test_tune_rejects_bad_input_before_writing(place: Place, tmp_path: Path, flags: list[str], words: str) -> None:
    write_rows(tmp_path / "train.jsonl", [{"text": "x", "kind": "a"}])
    given = ["--model", place.model, "--train", tmp_path / "train.jsonl", "--inputs", "{text}", "--targets", "{kind}"]
    said = t5_pipeline("tune", *given, "--output-dir", tmp_path / "out", *flags)
    assert said.code == 2
    assert words in said.err
    assert not (tmp_path / "out").exists()


def test_tune_leaves_nothing_if_the_stage_fails(place: Place, tmp_path: Path) -> None:
    write_rows(tmp_path / "train.jsonl", [{"text": "x", "kind": "a"}])
    given = ["--train", tmp_path / "train.jsonl", "--inputs", "{text}", "--targets", "{kind}"]
    assert t5_pipeline("tune", "--model", tmp_path / "no", *given, "--output-dir", tmp_path / "out").code == 2
    assert not (tmp_path / "out").exists()


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


def test_neighbours_of_a_prompt_made_of_vocabulary_rows(place: Place, tmp_path: Path) -> None:
    """A row that is a piece's own embedding, larger, is nearest to that piece."""
    table = load_t5(place.model).shared.weight.detach()
    info = place.loaded["tone"].info.model_copy(update={"prompt_length": 2})
    Prompt(3 * table[[40, 77]], info).save(tmp_path / "mine")
    said = t5_pipeline("prompts", "neighbours", tmp_path / "mine", "--model", place.model, "--top", 2, "--json")
    (rows,) = json.loads(said.out).values()
    names = place.vocabulary.names()
    assert [row[0] for row in rows] == [[names[40], 1.0], [names[77], 1.0]]
    plain = t5_pipeline("prompts", "neighbours", tmp_path / "mine", "--model", place.model)
    assert plain.out.splitlines()[1].split()[:3] == ["1", names[40], "1.000"]
