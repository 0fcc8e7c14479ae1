"""The prompts of a model in the Python API: which are loaded, added, replaced and removed."""

from __future__ import annotations

import shutil
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import t5_pipeline
from t5_pipeline.data_prep.corpora.row import Row
from t5_pipeline.serving.engine import Engine
from tests.serving.served_world import write_prompt, write_world


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_world(tmp_path_factory.mktemp("api"))


def test_a_prompt_is_added_and_replaced(world: Path) -> None:
    t5 = t5_pipeline.load(world / "model", world / "prompts")
    before = t5.classify([{"text": "x"}], prompt="labels")
    t5.add("labels", write_prompt(world, "elsewhere", 88))
    assert t5.classify([{"text": "x"}], prompt="labels") != before
    t5.add("labels+free", world / "prompts" / "labels")  # a name with a +, which is not a vote
    assert t5.classify([{"text": "x"}], prompt="labels+free") == before
    assert t5.classify([{"text": "x"}], prompt=["labels+free"]) == before
    with pytest.raises(t5_pipeline.InputError, match="trained on another T5"):
        t5.add("bad", write_prompt(world, "foreign", 1, base_model_digest="f" * 64))
    with pytest.raises(t5_pipeline.InputError, match=r"^name: is empty; name the prompt$"):
        t5.add("", world / "prompts" / "labels")


def test_prompts_of_other_t5s_are_not_loaded(world: Path, tmp_path: Path) -> None:
    shutil.copytree(world / "prompts" / "labels", tmp_path / "own")
    foreign = write_prompt(world, "of-another-t5", 1, base_model_digest="f" * 64)
    shutil.move(foreign, tmp_path / "foreign")
    with pytest.warns(UserWarning, match="prompt `foreign` was trained on another T5 .*; not loaded"):
        t5 = t5_pipeline.load(world / "model", tmp_path)
    assert t5.prompts == ["own"]
    with pytest.raises(t5_pipeline.InputError, match="prompt `foreign` was trained on another T5"):
        t5.classify([{"text": "x"}], prompt="foreign")
    with pytest.raises(t5_pipeline.InputError, match="prompt `foreign` was trained on another T5"):
        t5_pipeline.load(world / "model", tmp_path / "foreign")


def test_a_prompt_whose_files_have_changed_is_not_saved(world: Path, tmp_path: Path) -> None:
    t5 = t5_pipeline.load(world / "model")
    t5.add("mine", write_prompt(world, "changing", 91))
    write_prompt(world, "changing", 92)
    for send in (t5.save, t5.push):
        with pytest.raises(t5_pipeline.InputError, match="changing: is another prompt now than when `mine` was loaded"):
            send("mine", str(tmp_path / "sent"))
    assert not (tmp_path / "sent").exists()
    t5.add("mine", world / "prompts" / "changing")
    t5.save("mine", tmp_path / "sent")
    t5.add("again", tmp_path / "sent")
    assert t5.push("again", str(tmp_path / "again")) == t5.push("mine", str(tmp_path / "pushed"))


def test_a_stream_continues_while_its_prompt_is_replaced(world: Path) -> None:
    t5 = t5_pipeline.load(world / "model", world / "prompts" / "long")
    (text,) = t5.generate(["say: x"], prompt="long")
    pieces = t5.stream("say: x", "long")
    t5.add("long", write_prompt(world, "other", 89))
    assert "".join(pieces) == text


def test_threads_ask_while_their_prompt_is_replaced(world: Path) -> None:
    t5 = t5_pipeline.load(world / "model", world / "prompts" / "labels")
    one = t5.classify(["say: x"], prompt="labels")
    places = [world / "prompts" / "labels", write_prompt(world, "another", 90)]
    t5.add("labels", places[1])
    two = t5.classify(["say: x"], prompt="labels")
    replaced = threading.Event()

    def ask() -> list[list[t5_pipeline.Classification]]:
        found = []
        while not replaced.is_set():
            found.append(t5.classify(["say: x"], prompt="labels"))
        return found

    with ThreadPoolExecutor(2) as threads:
        asked = [threads.submit(ask) for _ in range(2)]
        for i in range(100):
            t5.add("labels", places[i % 2])
        replaced.set()
        found = [answer for each in asked for answer in each.result()]
    assert one != two
    assert found
    assert all(answer in (one, two) for answer in found)


def test_prompts_that_cannot_be_used_are_left_out_with_a_warning(tmp_path: Path) -> None:
    world = write_world(tmp_path / "world")
    shutil.copytree(world / "prompts", tmp_path / "prompts")
    (tmp_path / "prompts/free/prompt.json").write_text("{")
    (tmp_path / "prompts/long/prompt.safetensors").unlink()
    with pytest.warns(UserWarning, match=r"2 of 4 prompts cannot be used: `free` \(.+\), `long` \(.+\); .*not loaded$"):
        t5 = t5_pipeline.load(world / "model", tmp_path / "prompts")
    assert t5.prompts == ["labels", "labels-2"]
    assert t5.classify(["x"], "labels")[0].label in ("a", "b c")
    with pytest.raises(t5_pipeline.InputError, match=r"free/prompt\.json"):
        t5.generate(["x"], "free")
    t5.add("free", world / "prompts" / "free")
    assert len(t5.generate(["x"], "free")) == 1
    for name in ("labels", "labels-2"):
        shutil.rmtree(tmp_path / "prompts" / name)
    with pytest.raises(t5_pipeline.InputError, match=r"^prompts: \S+: 2 of 2 prompts cannot be used: `free` .*`long` "):
        t5_pipeline.load(world / "model", tmp_path / "prompts")


def test_a_prompt_is_removed(tmp_path: Path) -> None:
    world = write_world(tmp_path)
    t5 = t5_pipeline.load(world / "model", world / "prompts")
    others = {name: t5.generate(["x"], name) for name in ("labels", "labels-2", "free")}
    stream = t5.stream("x", "long")
    first = next(stream)
    whole = "".join(t5.generate(["x"], "long"))
    t5.remove("long")
    assert t5.prompts == ["free", "labels", "labels-2"]
    assert first + "".join(stream) == whole, "an answer that is being computed is not affected"
    assert {name: t5.generate(["x"], name) for name in others} == others
    with pytest.raises(t5_pipeline.InputError, match=r"^there is no prompt 'long'; "):
        t5.remove("long")
    with pytest.raises(t5_pipeline.InputError, match=r"^inputs\[0\]: there is no prompt 'long'; "):
        t5.generate(["x"], "long")
    assert (world / "prompts/long/prompt.json").is_file()
    for name in others:
        t5.remove(name)
    assert t5.prompts == []
    with pytest.raises(t5_pipeline.InputError, match=r"prompts \(named after their directories\): none$"):
        t5.classify(["x"], "labels")
    t5.add("labels", world / "prompts" / "labels")
    assert t5.generate(["x"]) == others["labels"]


@pytest.mark.parametrize("loaded", [False, True])
def test_a_question_is_answered_by_the_prompt_that_had_the_name(tmp_path: Path, loaded: bool) -> None:
    """Another thread may replace or remove it between the two steps of a call, which has read its template."""
    world = write_world(tmp_path)
    engine = Engine.load(str(world / "model"), str(world / "prompts"), precision="fp32")
    questions = [engine.question([name], Row({"text": "x"}, "t")) for name in ("free", "labels", "long")]
    expected = engine.answer(questions) if loaded else None
    engine.remove("free")
    engine.add("labels", world / "prompts" / "labels-2")
    _, texts = engine.stream(questions[0])
    found = engine.answer(questions)
    engine.add("free", world / "prompts" / "free")
    engine.add("labels", world / "prompts" / "labels")
    expected = expected or engine.answer(questions)
    assert found == expected
    assert [*texts][-1] == expected[0].output
