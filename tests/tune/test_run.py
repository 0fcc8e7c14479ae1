"""`t5-pipeline tune`, from rows to a tested prompt."""

from __future__ import annotations

from pathlib import Path

import pytest

from t5_pipeline.methods.soft_prompt import Prompt
from tests.serving.five_prompts import Place, write_five_prompts, write_lines
from tests.tiny_run import Outcome, command, documentation, t5_pipeline, write_rows


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    return write_five_prompts(tmp_path_factory.mktemp("five_prompts"))


def test_tune_then_predict(place: Place, tmp_path: Path) -> None:
    """Three seeds on held-out rows; then two of them, the best one, and again to see that nothing runs."""
    texts = [text for _, text in documentation("textwrap")][:10]
    rows = [{"doc": {"text": text}, "kind": kind} for text in texts for kind in ("a", "b")]
    write_rows(tmp_path / "train.jsonl", rows)
    given = [
        "tune", "--model", place.model, "--train", tmp_path / "train.jsonl", "--inputs", "say: {doc.text}",
        "--targets", "{kind}", "--labels", "a, b", "--steps", 2, "--prompt-length", 3, "--batch-size", 4,
        "--precision", "fp32", "--max-input-length", 16, "--threads", 1, "--scoring", "likelihood", "--seed", 4,
        "--seeds", 2, "--output-dir", tmp_path / "letters",
    ]  # fmt: skip
    voters = tmp_path / "letters" / "prompts"
    assert Outcome.forked(command(*given, "--vote", "--seeds", 3)).code == 0
    assert sorted(path.name for path in voters.iterdir()) == ["letters-4", "letters-5", "letters-6"]

    said = Outcome.forked(command(*given, "--vote"))
    assert said.code == 0, said.err
    assert "train: 13 rows, train.jsonl[:80%, stratified=0]" in said.err
    assert "letters: scores × 100 on 2 test rows\n" in said.out
    assert [line.split()[0] for line in said.out.splitlines()[2:7]] == ["seed", "seed", "majority", "no", "majority"]
    assert '    {"prompt": ["letters-4", "letters-5"]}\n' in said.out
    assert sorted(path.name for path in voters.iterdir()) == ["letters-4", "letters-5"]
    assert f"    t5-pipeline predict --model {place.model} --prompts {voters} --input" in said.out
    prompts = {name: Prompt.load(voters / name).info for name in ("letters-4", "letters-5")}
    assert [info.seed for info in prompts.values()] == [4, 5]

    said = Outcome.forked(command(*given))
    assert (said.code, "nothing to do: all 2 stages" in said.err) == (0, True), said.err
    out = tmp_path / "letters"
    assert (out / "superseded" / "prompts" / "letters-6" / "earlier" / "prompt.json").is_file()
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
    (["--launch", "nowhere.yaml"], "--launch: nowhere.yaml does not exist; check the path"),
    (["--steps", "-1"], "--steps: "),
    (["--prompt-init", "text"], "tune: `--prompt-init text` and `--init-text` go together"),
    (["--validation", "train.jsonl[:0]"], "--validation: split 'validation' ("),
    (["--inputs", "text"], "--inputs: 'text' contains no field"),
    (["--inputs", "{txt}"], "train.jsonl:1: has no field 'txt' (only text, kind); add it to the row, or fix `--inputs`"),
    (["--labels", "x,x"], "--labels: ['x', 'x'] is empty or has duplicates"),
    (["--labels", "b"], "train.jsonl:1: target 'a' is not a label of out (b); fix the row, add it to `--labels`"),
    (["--metrics", "f1"], "--metrics: `f1` needs the task's `labels`"),
    (["--model", "no/such/model"], "--model: no/such/model does not exist"),
    (["--vote"], "--vote: a single prompt cannot vote"),
    (["--sweep", "{seed: [1, 2]}"], "--sweep: each prompt of `tune` has one seed; remove `seed`"),
    (["--seeds", "2", "--select", "last"], "--seeds: --select last gives no validation scores"),
    (["--seeds", "2"], "--seeds: the rows are too few to hold some out"),
    (["--select", "best"], "--select: the rows are too few to hold some out"),
])  # fmt: skip
def test_tune_rejects_bad_input_before_writing(
    place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flags: list[str], words: str
) -> None:
    """Errors name flags, not the keys of the recipe that tune writes."""
    monkeypatch.chdir(tmp_path)
    write_rows(tmp_path / "train.jsonl", [{"text": "x", "kind": "a"}])
    given = ["--model", place.model, "--train", tmp_path / "train.jsonl", "--inputs", "{text}", "--targets", "{kind}"]
    said = t5_pipeline("tune", *given, "--output-dir", tmp_path / "out", *flags)
    assert said.code == 2
    assert words in said.err
    assert "tasks." not in said.err
    assert "stages." not in said.err
    assert not (tmp_path / "out").exists()


def test_tune_on_two_rows(place: Place, tmp_path: Path) -> None:
    """Nothing is held out: the last step is published, and there is no score."""
    write_rows(tmp_path / "train.jsonl", [{"text": "x", "kind": "a"}, {"text": "y", "kind": "b"}])
    given = ["--model", place.model, "--train", tmp_path / "train.jsonl", "--inputs", "{text}", "--targets", "{kind}"]
    small = ["--labels", "a,b", "--prompt-length", 2, "--steps", 2, "--batch-size", 2, "--threads", 1]
    said = t5_pipeline("tune", *given, *small, "--output-dir", tmp_path / "out")
    assert said.code == 0, said.err
    assert "The rows are too few to hold some out" in said.err
    assert "▶ prompt_tune: 1 cell\n" in said.err
    published = Prompt.load(tmp_path / "out/prompt").info
    assert (published.step, published.scores) == (2, {})


def test_tune_leaves_nothing_if_the_stage_fails(place: Place, tmp_path: Path) -> None:
    write_rows(tmp_path / "train.jsonl", [{"text": "x", "kind": "a"}])
    given = ["--train", tmp_path / "train.jsonl", "--inputs", "{text}", "--targets", "{kind}"]
    assert t5_pipeline("tune", "--model", tmp_path / "no", *given, "--output-dir", tmp_path / "out").code == 2
    assert not (tmp_path / "out").exists()
