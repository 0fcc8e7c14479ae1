"""Bad input gives a one-line error and exit code 2; nothing is written or lost."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from t5_pipeline.artifacts.run_dir import RunDir, lock
from t5_pipeline.data_prep.tokenizer.vocabulary import Vocabulary
from tests.tiny_run import Outcome, Tiny, listing, refused, stage, write_rows


@pytest.fixture(params=["by recipe", "by hand"])
def tell(request: pytest.FixtureRequest, tiny: Tiny, tmp_path: Path) -> Callable[..., Outcome]:
    """Run a stage in a new directory, with a recipe or by hand."""

    def run(kind: str, name: str, *flags: object) -> Outcome:
        if request.param == "by hand":
            return stage(kind, *flags, "--threads", 1, "--output-dir", tmp_path / "out")
        shutil.rmtree(tiny.run / name, ignore_errors=True)
        return stage(kind, "--recipe", tiny.recipe, "--stage", name, "--run-dir", tiny.run, *flags)

    return run


@pytest.mark.parametrize(
    ("content", "pattern"),
    [
        (
            "",
            r"--corpus: (stages.prepare.corpus: )?\S+corpus.jsonl contains no text to train a vocabulary on; give one that does",
        ),
        (
            '{"text": "fine"}\n{"body": "x"}\n',
            r"\S+corpus.jsonl:2: has no field 'text' \(only body\); set `text_field`",
        ),
        ('{"text": "fine"}\n{"text": \n', r"\S+corpus.jsonl:2: not JSON \(.*\); write one object per line"),
        (
            '{"text": "Hello world."}\n',
            r"--vocabulary-size: (stages.prepare.vocabulary_size: )?the corpus is too small for 300 pieces; set it to at most \d+",
        ),
    ],
    ids=["empty", "without its field", "not JSON", "too small"],
)
def test_a_bad_corpus(
    tiny: Tiny, tmp_path: Path, tell: Callable[..., Outcome], content: str, pattern: str, unchanged: Callable[[], None]
) -> None:
    (tmp_path / "corpus.jsonl").write_text(content)
    shutil.rmtree(tiny.run / "prepare")
    unchanged()
    refused(tell("prepare", "prepare", "--corpus", tmp_path / "corpus.jsonl", "--vocabulary-size", 300), pattern)
    unchanged()


def test_a_folder_without_text(
    tiny: Tiny, tmp_path: Path, tell: Callable[..., Outcome], unchanged: Callable[[], None]
) -> None:
    (tmp_path / "empty").mkdir()
    shutil.rmtree(tiny.run / "prepare")
    unchanged()
    refused(
        tell("prepare", "prepare", "--corpus", tmp_path / "empty"),
        r"corpus \S+/empty: contains no \.txt, \.jsonl, .*",
    )
    unchanged()


ROWS = {
    "a row without its field": ({"txt": "x", "label": "files"}, r"\S+train.jsonl:2: has no field 'text' \(only txt, label\); .*"),
    "a label that is not in the task": (
        {"text": "x", "label": "file"}, r"\S+train.jsonl:2: target 'file' is not a label of about \(files, numbers\); .*",
    ),
    "a field that is not text": ({"text": None, "label": "files"}, r"\S+train.jsonl:2: field 'text' is empty \(null\), .*"),
}  # fmt: skip


@pytest.mark.parametrize("what", ROWS)
def test_a_bad_row(
    tiny: Tiny, tmp_path: Path, tell: Callable[..., Outcome], what: str, unchanged: Callable[[], None]
) -> None:
    row, pattern = ROWS[what]
    write_rows(tmp_path / "train.jsonl", [{"text": "fine", "label": "files"}, row])
    task = tmp_path / "about.yaml"
    task.write_text(
        f'data: {tmp_path}/train.jsonl\ninputs: "about: {{text}}"\ntargets: "{{label}}"\nlabels: [files, numbers]\n'
        "splits: {train: train, validation: train}\n"
    )
    shutil.rmtree(tiny.run / "prompt_tune")
    unchanged()
    refused(tell("prompt_tune", "prompt_tune", "--model", tiny.run / "lm_adapt", "--task", task, "--steps", 2), pattern)
    unchanged()


def test_an_unknown_field_in_a_task_file(tiny: Tiny, tmp_path: Path, unchanged: Callable[[], None]) -> None:
    task = tmp_path / "about.yaml"
    task.write_text('data: x.jsonl\ninputs: "{text}"\ntarget: "{label}"\n')
    unchanged()
    said = stage("prompt_tune", "--model", tiny.run / "lm_adapt", "--task", task, "--output-dir", tmp_path / "out")
    refused(said, r"\S+about.yaml:3: target: unknown key; did you mean `targets`\?")
    unchanged()


def test_a_vocabulary_that_does_not_fit_the_model(
    tiny: Tiny, tmp_path: Path, tell: Callable[..., Outcome], unchanged: Callable[[], None]
) -> None:
    """Another vocabulary of equal size, and one with more ids than the model has rows."""
    other = tmp_path / "tokens"
    made = stage(
        "prepare",
        "--corpus",
        tiny.data / "rows" / "train.jsonl",
        "--vocabulary-size",
        300,
        "--threads",
        1,
        "--output-dir",
        other,
    )
    assert made.code == 0, made.err
    shutil.rmtree(tiny.run / "lm_adapt")
    model = tiny.run / "pretrain"
    unchanged()
    refused(
        tell("lm_adapt", "lm_adapt", "--model", model, "--tokens", other, "--steps", 4),
        r"\S+/model: the text was tokenized with another vocabulary than \S+spiece.model; prepare it again with `vocabulary: \S+`",
    )
    unchanged()


def test_more_ids_than_rows(tiny: Tiny, tmp_path: Path, unchanged: Callable[[], None]) -> None:
    model = tmp_path / "model"  # from elsewhere: beside its manifest the change itself would be found
    shutil.copytree(tiny.run / "lm_adapt" / "model", model)
    config = model / "tokenizer_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"extra_ids": 1000}))
    assert Vocabulary.load(config.parent).size == 1300
    unchanged()
    refused(
        stage("sentinel", "--model", model, "--threads", 1, "--output-dir", tmp_path / "out"),
        r"\S+: has 512 embedding rows, but the vocabulary has 1,300 ids; use the vocabulary that the model was trained with",
    )
    unchanged()


@pytest.mark.parametrize(
    ("damage", "pattern"),
    [
        (
            lambda model: (model / "model.safetensors").unlink(),
            r"\S+: contains a config.json but no weights; .*",
        ),
        (
            lambda model: (model / "model.safetensors").rename(model / "pytorch_model.bin"),
            r"\S+: contains only pickled weights \(pytorch_model.bin\), which are never read; .*convert them once: .*",
        ),
        (
            lambda model: os.truncate(model / "model.safetensors", 5000),
            r"\S+model.safetensors: is damaged or not a safetensors file; .*",
        ),
        (
            lambda model: (model / "config.json").unlink(),
            r"--model: (stages.sentinel.model: )?no model in \S+ \(config.json is missing\); check the path",
        ),
        (
            lambda model: [path.unlink() for path in (model / "spiece.model", *model.glob("tokenizer*"))],
            r"\S+: contains no .*; .*spiece.model.*",
        ),
        (lambda model: (model / "config.json").write_text("{}"), r"\S+config.json: .*"),
    ],
    ids=["no weights", "pickled weights", "weights cut short", "no config", "no vocabulary", "an empty config"],
)
def test_a_damaged_model(
    tiny: Tiny,
    tmp_path: Path,
    tell: Callable[..., Outcome],
    damage: Callable[[Path], None],
    pattern: str,
    unchanged: Callable[[], None],
) -> None:
    shutil.copytree(tiny.run / "lm_adapt" / "model", tmp_path / "broken")
    damage(tmp_path / "broken")
    shutil.rmtree(tiny.run / "sentinel")
    unchanged()
    refused(tell("sentinel", "sentinel", "--model", tmp_path / "broken"), pattern)
    unchanged()


def test_checkpoints_of_another_recipe(
    tiny: Tiny, finished: Tiny, tmp_path: Path, unchanged: Callable[[], None]
) -> None:
    """They replace those of an unfinished stage."""
    shutil.copytree(finished.run / "pretrain" / "checkpoints", tmp_path / "other")
    (tiny.run / "lm_adapt" / "manifest.json").unlink()
    shutil.rmtree(tiny.run / "lm_adapt" / "checkpoints")
    shutil.copytree(tmp_path / "other", tiny.run / "lm_adapt" / "checkpoints")
    checkpoints = listing(tiny.run / "lm_adapt" / "checkpoints")
    refused(
        stage("lm_adapt", "--recipe", tiny.recipe, "--run-dir", tiny.run),
        r"\S+step-00000008: this checkpoint belongs to other settings \(fingerprint \w+, now \w+\); use another .*",
    )
    assert listing(tiny.run / "lm_adapt" / "checkpoints") == checkpoints


def test_archived_results_are_restored_after_bad_input(
    tiny: Tiny, tmp_path: Path, unchanged: Callable[[], None]
) -> None:
    """With a recipe and by hand, the previous results are back in place and up to date."""
    task = tmp_path / "about.yaml"
    for split in ("train", "validation"):
        write_rows(tmp_path / f"{split}.jsonl", [{"text": "x", "label": "none"}])
    settings = f'name: about\ndata: {tiny.data}/rows\ninputs: "about: {{text}}"\ntargets: "{{label}}"\nlabels: [files, numbers]\n'
    task.write_text(settings)
    flags = (
        "--model",
        tiny.run / "lm_adapt",
        "--task",
        task,
        "--steps",
        2,
        "--threads",
        1,
        "--output-dir",
        tmp_path / "out",
    )
    assert stage("prompt_tune", *flags).code == 0
    os.utime(task, (0, 0))
    unchanged()

    task.write_text(settings.replace(f"{tiny.data}/rows", f"{tmp_path}/train.jsonl"))
    said = r"\S+train.jsonl:1: target 'none' is not a label of about \(files, numbers\); fix the row, .*"
    by_recipe = ("--recipe", tiny.recipe, "--run-dir", tiny.run)
    refused(stage("prompt_tune", *by_recipe, "--set", f"prompt_tune.task={task}"), said)
    refused(stage("prompt_tune", *flags, "--overwrite"), said)
    task.write_text(settings)
    os.utime(task, (0, 0))
    unchanged()
    for again in (by_recipe, flags):
        assert stage("prompt_tune", *again).out.startswith("prompt_tune: nothing to do")
    assert not list(tmp_path.glob("*superseded*"))


# ----------------------------------------------------------------------------------------------------------- in use


def test_a_directory_in_use(tiny: Tiny, tmp_path: Path, unchanged: Callable[[], None]) -> None:
    output = tmp_path / "out"
    flags = ("--model", tiny.run / "pretrain", "--threads", 1, "--output-dir", output)
    assert stage("sentinel", *flags).code == 0
    with lock(RunDir(output).state / "sentinel.lock", output):
        unchanged()
        said = stage("sentinel", *flags, "--variant", "both", "--overwrite")
        refused(said, rf"{output}: is in use by process {os.getpid()} on \S+ since [\d: -]+; wait for it, .*")
        unchanged()


def test_missing_inputs(tiny: Tiny, unchanged: Callable[[], None]) -> None:
    shutil.rmtree(tiny.run / "pretrain")
    unchanged()
    said = stage("lm_adapt", "--recipe", tiny.recipe, "--run-dir", tiny.run)
    refused(
        said,
        rf"{tiny.run}: lm_adapt needs the output of prepare, pretrain, which is missing or stale; run .*",
    )
    unchanged()


@pytest.mark.parametrize(
    ("flags", "pattern"),
    [
        (
            ["--model", "x", "--toekns", "y", "--output-dir", "o"],
            r"lm_adapt.py: unknown flag --toekns; did you mean `--tokens`\?",
        ),
        (["--model", "x", "--output-dir", "o"], r"--tokens: is required; give a value"),
        (["--model", "x", "--tokens", "y"], r"lm_adapt.py: give either --recipe FILE, or the stage's settings and .*"),
        (
            ["--model", "x", "--tokens", "y", "--steps", "ten", "--output-dir", "o"],
            r"--steps: must be an integer.*",
        ),
        (
            ["--model", "x", "--tokens", "/no/y", "--output-dir", "o"],
            r"--tokens: /no/y does not exist; check the path",
        ),
        (["--recipe", "RECIPE", "--stage", "lm"], r"--stage lm: is not a stage of kind lm_adapt in \S+; .*"),
        (
            ["--recipe", "RECIPE", "--steps", "-1"],
            r"--steps: stages.lm_adapt.steps: must be at least 0.*",
        ),
    ],
)
def test_wrong_flags(
    finished: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flags: list[str], pattern: str
) -> None:
    monkeypatch.chdir(tmp_path)
    refused(stage("lm_adapt", *(str(finished.recipe) if word == "RECIPE" else word for word in flags)), pattern)
    assert list(tmp_path.iterdir()) == []


def test_the_runner_passes_on_an_error_of_a_stage(tiny: Tiny, tmp_path: Path) -> None:
    """The error is printed once; the runner exits with the stage's code and starts no other stage."""
    write_rows(tmp_path / "docs.jsonl", [])
    tiny.edit(f"corpus: {tiny.data}/corpus", f"corpus: {tmp_path}/docs.jsonl")
    fresh = Tiny(tiny.data, tiny.recipe, tmp_path / "fresh")
    said = fresh.start()
    assert said.code == 2
    assert [line.split(":")[0] for line in said.err.splitlines() if line.startswith(("error", "▶"))] == [
        "▶ prepare",
        "error",
    ]
    # The file and line of the recipe, not of the run's own copy, in which a correction would be lost.
    line = 1 + fresh.recipe.read_text().splitlines().index(f"    corpus: {tmp_path}/docs.jsonl")
    where = f"{fresh.recipe}:{line}: stages.prepare.corpus"
    assert f"\nerror: {where}: {tmp_path}/docs.jsonl contains no text" in said.err
    assert "Traceback" not in said.err
    assert not fresh.run.exists()
