"""The Python API."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import t5_pipeline
from t5_pipeline.artifacts.kinds import artifact_digest
from t5_pipeline.data_prep.corpora.row import Row
from t5_pipeline.methods.soft_prompt import Prompt
from t5_pipeline.serving.engine import Engine
from tests.forked import call
from tests.serving.served_world import TEXTS, write_world


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_world(tmp_path_factory.mktemp("api"))


@pytest.fixture(scope="module")
def t5(world: Path) -> t5_pipeline.PromptedModel:
    return t5_pipeline.load(world / "model", world / "prompts")


@pytest.fixture(scope="module")
def engine(world: Path) -> Engine:
    return Engine.load(str(world / "model"), str(world / "prompts"), precision="fp32")


def answer(engine: Engine, name: str, text: str) -> str:
    return engine.answer([engine.question([name], Row({"text": text}, "t"))])[0].output


def test_public_names_are_few_and_import_no_torch_until_used() -> None:
    assert t5_pipeline.__all__ == ["Classification", "InputError", "PromptedModel", "__version__", "load"]
    code = "import sys, t5_pipeline; assert 'torch' not in sys.modules; t5_pipeline.load; assert 'torch' in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
    with pytest.raises(AttributeError, match="no attribute 'lode'"):
        t5_pipeline.lode  # noqa: B018


def test_classify_and_generate_equal_predict(t5: t5_pipeline.PromptedModel, engine: Engine) -> None:
    """One prompt for all inputs, one for each, and ready texts next to fields."""
    assert t5.prompts == ["free", "labels", "labels-2", "long"]
    found = t5.classify([{"text": text} for text in TEXTS], prompt="labels")
    assert [one.label for one in found] == [answer(engine, "labels", text) for text in TEXTS]
    assert all(sum(one.probabilities.values()) == pytest.approx(1) for one in found)
    names = ["labels", "free", "labels-2", "long"]
    assert t5.generate([{"text": text} for text in TEXTS], prompt=names) == [
        answer(engine, name, text) for name, text in zip(names, TEXTS, strict=True)
    ]
    assert t5.classify(["say: x"], prompt="labels") == t5.classify([{"text": "x"}], prompt="labels")


def test_a_text_is_finished_although_the_template_has_a_field_input(world: Path, tmp_path: Path) -> None:
    prompt = Prompt.load(world / "prompts" / "labels")
    task = prompt.info.task.model_copy(update={"inputs": "{instruction} {input}"})
    Prompt(prompt.rows_PD, prompt.info.model_copy(update={"task": task})).save(tmp_path / "mine")
    t5 = t5_pipeline.load(world / "model", tmp_path / "mine")
    (text, fields) = t5.classify(["say this", {"instruction": "say", "input": "this"}])
    assert text.probabilities == pytest.approx(fields.probabilities)


def test_votes(t5: t5_pipeline.PromptedModel) -> None:
    for names in ("labels+labels-2", [["labels", "labels-2"]]):
        (vote,) = t5.classify([{"text": "x"}], prompt=names)
        one, two = (t5.classify([{"text": "x"}], prompt=name)[0] for name in ("labels", "labels-2"))
        assert vote.votes is not None
        assert sum(vote.votes.values()) == 2
        assert vote.probabilities["a"] == pytest.approx((one.probabilities["a"] + two.probabilities["a"]) / 2)


def test_a_prompt_votes_once(t5: t5_pipeline.PromptedModel) -> None:
    for names in ("labels+labels-2+labels", ["labels", ["labels-2", "labels-2"]]):
        with pytest.raises(
            t5_pipeline.InputError, match=r"^inputs\[\d\]: prompt `labels\S*` would vote more than once; "
        ):
            t5.classify(["x"] * (1 if isinstance(names, str) else 2), prompt=names)


def test_a_prompt_whose_name_contains_a_plus_is_not_a_vote(world: Path) -> None:
    t5 = t5_pipeline.load(world / "model", world / "prompts", precision="fp32")
    t5.add("labels+labels-2", world / "prompts/labels-2")
    assert t5.classify(["x"], "labels+labels-2") == t5.classify(["x"], ["labels-2"])


def test_stream_gives_the_text_of_generate(t5: t5_pipeline.PromptedModel) -> None:
    for text in TEXTS:
        pieces = list(t5.stream({"text": text}, "long"))
        assert ["".join(pieces)] == t5.generate([{"text": text}], "long")
        sampled = "".join(t5.stream({"text": text}, "long", temperature=2.0, seed=3))
        assert [sampled] == t5.generate([{"text": text}], "long", temperature=2.0, seed=3)
    with pytest.raises(t5_pipeline.InputError, match="cannot be streamed"):
        t5.stream({"text": "x"}, "labels")  # at once, not when the first piece is asked for
    with pytest.raises(t5_pipeline.InputError, match="there is no prompt 'lung'"):
        t5.stream({"text": "x"}, "lung")


@pytest.mark.parametrize(
    ("inputs", "prompt", "message"),
    [
        (["x"], None, "name a prompt, one of: free, labels"),
        (["x"], "lables", "did you mean `labels`"),
        (["x"], "free", "has no labels; use generate"),
        ([{"txt": "x"}], "labels", r"inputs\[0\]: has no field 'text'"),
        ([{"text": np.ones(2)}], "labels", r"inputs\[0\]: field 'text' is a ndarray, .*; convert it to text"),
        (["x", "y"], ["labels"], "^prompt: 1 for 2 inputs"),
        ("x", "labels", "^inputs: must be a list .*; put a single input in brackets"),
        (["x"], "labels+free", "different labels"),
        ([5], "labels", r"inputs\[0\]: must be a text or fields, not 5"),
        (["x"], [[]], r"^prompt\[0\]: is empty, but an input needs a prompt"),
        (["x"], 5, r"^prompt: must be a name, or .* not 5; change it"),
        (["x"], [5], r"^prompt\[0\]: must be a name, or a list of names, not 5"),
        (["x"], [["labels", None]], r"^prompt\[0\]: must be a name, or a list of names"),
        (None, "labels", "^inputs: must be a list of texts or fields"),
    ],
)
def test_wrong_inputs(t5: t5_pipeline.PromptedModel, inputs: Any, prompt: Any, message: str) -> None:
    with pytest.raises(t5_pipeline.InputError, match=message):
        t5.classify(inputs, prompt)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"temperature": -1.0}, "temperature: must be at least 0"),
        ({"beams": 2, "temperature": 1.0}, "beams: cannot be combined with temperature"),
        ({"max_tokens": -1}, "max_tokens: must be at least 0, not -1"),
        ({"batch_size": 0}, "batch_size: must be at least 1, not 0"),
        ({"batch_size": "8"}, "batch_size: must be an integer, not '8'"),
        ({"batch_size": True}, "batch_size: must be an integer, not True"),
        ({"beams": 1.5}, "beams: must be an integer, not 1.5"),
        ({"max_tokens": None}, "max_tokens: must be an integer, not None"),
        ({"seed": -1}, "seed: must be at least 0, not -1"),
        ({"temperature": "hot"}, "temperature: must be a number, not 'hot'"),
        ({"temperature": float("nan")}, "temperature: must be at least 0, not nan"),
        ({"top_p": [0.9]}, "top_p: must be a number"),
    ],
)
def test_wrong_settings(t5: t5_pipeline.PromptedModel, settings: Any, message: str) -> None:
    with pytest.raises(t5_pipeline.InputError, match=f"^{message}"):
        t5.generate(["x"], "free", **settings)
    if not {"batch_size", "beams"} & settings.keys():
        with pytest.raises(t5_pipeline.InputError, match=f"^{message}"):
            t5.stream("x", "free", **settings)


def test_numbers_of_numpy_are_numbers(t5: t5_pipeline.PromptedModel) -> None:
    settings: Any = {"batch_size": np.int64(2), "temperature": np.float32(0.5), "seed": np.int64(3)}
    assert t5.generate(["x"], "free", **settings) == t5.generate(["x"], "free", temperature=0.5, seed=3)
    fields = [{"text": 3.8}, {"text": 3}]
    assert t5.classify([{"text": np.float32(3.8)}, {"text": np.int64(3)}], "labels") == t5.classify(fields, "labels")


@pytest.mark.parametrize("device", ["gpu", "", "cuda:99", 5.0, torch.device("cuda:99")])
def test_a_device_that_torch_does_not_have(world: Path, device: Any) -> None:
    with pytest.raises(
        t5_pipeline.InputError, match=r"^device: .* is not a device that torch can use here; use cpu, or"
    ):
        t5_pipeline.load(world / "model", device=device)


def test_parameters_of_other_types(t5: t5_pipeline.PromptedModel, world: Path) -> None:
    examples: Any = [("x", "y")]
    calls: list[tuple[str, Callable[..., Any], tuple[Any, ...], dict[str, Any]]] = [
        ("model", t5_pipeline.load, (None,), {}),
        ("model: is empty", t5_pipeline.load, ("",), {}),
        ("prompts", t5_pipeline.load, (world / "model", 3), {}),
        ("name", t5.tune, (examples,), {"name": 5}),
        ("inputs", t5.tune, (examples,), {"name": "new", "inputs": None}),
        ("targets", t5.tune, (examples,), {"name": "new", "targets": ["{target}"]}),
        ("output_dir", t5.tune, (examples,), {"name": "new", "output_dir": 5}),
        ("labels", t5.tune, (examples,), {"name": "new", "labels": "good"}),
        ("examples", t5.tune, (None,), {"name": "new"}),
        ("path", t5.add, ("new", None), {}),
        ("name", t5.add, (None, world / "prompts/free"), {}),
        ("directory", t5.save, ("free", None), {}),
        ("name", t5.save, (["free"], world / "saved"), {}),
        ("to", t5.push, ("free", None), {}),
        ("name", t5.push, (["free"], "saved"), {}),
    ]
    for name, call_, given, named in calls:
        with pytest.raises(t5_pipeline.InputError, match=f"^{name}"):
            call_(*given, **named)


def test_a_table_is_not_read_as_the_names_of_its_columns(t5: t5_pipeline.PromptedModel) -> None:
    table = pytest.importorskip("pandas").DataFrame({"text": ["x"], "target": ["y"]})
    for ask in (t5.classify, t5.generate):
        with pytest.raises(t5_pipeline.InputError, match=r"^inputs: must be a list, not a table; .*to_dict"):
            ask(table, "labels")
    with pytest.raises(t5_pipeline.InputError, match=r"^examples: must be a list, not a table"):
        t5.tune(table, name="new")
    assert t5.classify(table.to_dict("records"), "labels") == t5.classify([{"text": "x"}], "labels")
    assert t5.classify(table.text, "labels") == t5.classify(["x"], "labels")


def test_wrong_precision_and_output_dir(t5: t5_pipeline.PromptedModel, world: Path, tmp_path: Path) -> None:
    with pytest.raises(t5_pipeline.InputError, match=r"^precision: must be fp32 or bf16, not 'fp16'"):
        t5_pipeline.load(world / "model", precision="fp16")
    (tmp_path / "file").touch()
    with pytest.raises(t5_pipeline.InputError, match=r"^output_dir: .*file is a file"):
        t5.tune([("x", "y")], name="new", output_dir=tmp_path / "file")
    with pytest.raises(t5_pipeline.InputError, match=r"^examples\[1\]: character \d+ is half of a surrogate pair"):
        t5.tune([("x", "y"), ("\ud800", "y")], name="new", output_dir=tmp_path / "new")


def test_errors_name_parameters_instead_of_flags(t5: t5_pipeline.PromptedModel, world: Path, tmp_path: Path) -> None:
    def raises(beginning: str) -> Any:
        return pytest.raises(t5_pipeline.InputError, match=f"^{beginning}(?!.*--)")

    def tune(place: str = "run", **settings: Any) -> None:
        t5.tune([("x", "y")], name="new", output_dir=tmp_path / place, **settings)

    for prompts in (None, world / "prompts"):
        with raises("model: .*/absent"):
            t5_pipeline.load(tmp_path / "absent", prompts)
    with raises("prompts: .*/absent"):
        t5_pipeline.load(world / "model", tmp_path / "absent")
    with raises("prompt_length: "):
        tune(prompt_length="long")
    with raises("prompt_lenght: unknown key; did you mean `prompt_length`"):
        tune(prompt_lenght=3)
    with raises("labels: has the single label `a b`; put commas"):
        tune(labels=["a b"])
    (tmp_path / "other/new").mkdir(parents=True)
    (tmp_path / "other/new/recipe.yaml").write_text("stages: {prepare: {}}")
    with raises("output_dir: .*/new contains another run"):
        tune("other", steps=1)
    with raises("to: .*/other already exists"):
        t5.push("labels", str(tmp_path / "other"))
    with raises("directory: .*/other already exists"):
        t5.save("labels", tmp_path / "other")


@pytest.mark.parametrize(
    ("examples", "more", "message"),
    [
        (["a fine film", "a bad film"], {}, "examples[0]: must be a pair of input and target, or a dictionary, not 'a fine film'"),
        ("train.jsonl", {}, "examples[0]: must be a pair of input and target, or a dictionary, not 't'"),
        ([("x", "y"), ("x",)], {}, "examples[1]: must be a pair"),
        ([("x", "y", "z")], {}, "examples[0]: must be a pair"),
        ([("x", object())], {}, "examples[0]: must consist of texts and numbers"),
        ([], {}, "examples: is empty; give at least one example"),
        ([("x", "y")], {"validation": []}, "validation: is empty"),
        ([("x", "y")], {"validation": ["yes"]}, "validation[0]: must be a pair"),
        ([("x", "y")], {"name": ""}, "name: is empty; name the prompt"),
        ([("x", "y")], {"name": "a/b"}, "name: must not contain /"),
    ],
)  # fmt: skip
def test_wrong_examples_end_before_anything_is_written(
    t5: t5_pipeline.PromptedModel, tmp_path: Path, examples: Any, more: dict[str, Any], message: str
) -> None:
    with pytest.raises(t5_pipeline.InputError, match=f"^{re.escape(message)}"):
        t5.tune(examples, **{"name": "new", "output_dir": tmp_path / "run", **more})
    assert not (tmp_path / "run").exists()


def test_tune_adds_a_prompt_that_can_be_saved_and_loaded(world: Path, tmp_path: Path) -> None:
    """In a fork, whose stages are forks (tests/forked.py)."""
    call(tune_save_and_load, world, tmp_path)


def tune_save_and_load(world: Path, tmp_path: Path) -> None:
    t5 = t5_pipeline.load(world / "model")
    assert t5.prompts == []
    examples = [(f"sum of {i}", "numbers") for i in range(8)] + [(f"path {i}", "files") for i in range(8)]
    prompt = t5.tune(
        examples, name="about", labels=["files", "numbers"], inputs="about: {text}", steps=2, prompt_length=3,
        batch_size=4, max_input_length=16, precision="fp32",
    )  # fmt: skip
    assert prompt.rows_PD.shape == (3, 32)
    before = t5.classify([{"text": "sum of 3"}, {"text": "path"}])
    t5.save("about", tmp_path / "saved" / "about")
    with pytest.raises(t5_pipeline.InputError, match="already exists"):
        t5.save("about", tmp_path / "saved" / "about")
    digest = t5.push("about", f"file://{tmp_path}/pushed/about")
    for folder in ("saved", "pushed"):
        assert artifact_digest("prompt", tmp_path / folder / "about") == digest
        assert (tmp_path / folder / "about" / "adapter_model.safetensors").is_file()
    again = t5_pipeline.load(world / "model", tmp_path / "saved")
    assert again.classify([{"text": "sum of 3"}, {"text": "path"}]) == before
    assert torch.equal(prompt.rows_PD, t5.tune(examples, name="again", labels=np.array(["files", "numbers"]),
        inputs="about: {text}", steps=2, prompt_length=3, batch_size=4, max_input_length=16, precision="fp32").rows_PD)  # fmt: skip


def test_inputs_that_are_cut_are_reported(t5: t5_pipeline.PromptedModel) -> None:
    with pytest.warns(UserWarning, match="1 of 2 inputs were longer than in training and were cut, by up to"):
        t5.classify([{"text": "x"}, {"text": "word " * 90}], prompt="labels")
    with pytest.warns(UserWarning, match="1 of 1 inputs"):
        t5.generate(["word " * 90], prompt="free")


def test_a_broken_prompt_has_no_answer(tmp_path: Path) -> None:
    world = write_world(tmp_path)
    t5 = t5_pipeline.load(world / "model", world / "prompts")
    for one in t5._engine.prompts.values():
        one.prompts[0].fill_(float("nan"))
    message = "log probabilities are not finite, so there is no answer"
    with pytest.raises(t5_pipeline.InputError, match=f"^prompt `labels`: {message}"):
        t5.classify(["x"], "labels")
    with pytest.raises(t5_pipeline.InputError, match=f"^prompt `labels-2`: {message}"):
        t5.generate(["x"], "labels-2")
    with pytest.raises(t5_pipeline.InputError, match=f"^prompt `free`: {message}"):
        t5.generate(["x"], "free", beams=2)
    with pytest.raises(t5_pipeline.InputError, match=f"^prompt `free`: {message}"):
        list(t5.stream("x", "free"))
