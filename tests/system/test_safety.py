"""No input can run code: a pickle that would leave a trace is placed wherever files are read.

Each command rejects it with a one-line error or never reads it. A separate test shows that `Bomb` works when unpickled.
"""

from __future__ import annotations

import json
import pickle
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from tests.tiny_run import Outcome, Tiny, stage, t5_pipeline


class Bomb:
    """Creates a file when unpickled."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return Path.touch, (self.trace,)


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    return tmp_path / "it went off"


def plant(path: Path, trace: Path) -> None:
    """Replace or create a file with the pickle."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(pickle.dumps(Bomb(trace)))


def plant_torch(path: Path, trace: Path) -> None:
    torch.save({"weight": torch.zeros(2), "bomb": Bomb(trace)}, path)


def test_the_bomb_is_real(tmp_path: Path, trace: Path) -> None:
    plant(tmp_path / "a.pkl", trace)
    assert not trace.exists()
    pickle.loads((tmp_path / "a.pkl").read_bytes())
    assert trace.exists()
    trace.unlink()
    plant_torch(tmp_path / "b.bin", trace)
    torch.load(tmp_path / "b.bin", weights_only=False)
    assert trace.exists()


def adapt(tiny: Tiny, **given: object) -> Outcome:
    flags = {
        "model": tiny.run / "pretrain", "tokens": tiny.run / "prepare", "steps": 2, "batch-size": 4, "threads": 1,
        "segment-length": 48, "precision": "fp32", "validation-batches": 1, "output-dir": tiny.run.parent / "adapted",
    } | given  # fmt: skip
    return stage("lm_adapt", *(word for name, value in flags.items() for word in (f"--{name}", value)))


def safe(said: Outcome, trace: Path, *, code: int) -> None:
    assert not trace.exists(), "code was run"
    assert said.code == code, said
    assert "Traceback" not in said.err


@pytest.fixture
def model(tiny: Tiny, tmp_path: Path) -> Path:
    """A model from outside, without a manifest."""
    shutil.copytree(tiny.run / "pretrain" / "model", tmp_path / "model")
    return tmp_path / "model"


@pytest.mark.parametrize(
    "name", ["model.safetensors", "config.json", "t5_pipeline.json", "spiece.model", "tokenizer_config.json"]
)
def test_a_file_of_a_model(tiny: Tiny, model: Path, trace: Path, name: str) -> None:
    plant(model / name, trace)
    said = stage("sentinel", "--model", model, "--threads", 1, "--output-dir", tiny.run.parent / "out")
    safe(said, trace, code=2)


def test_pickled_weights(tiny: Tiny, model: Path, trace: Path) -> None:
    """They are ignored if there are safetensors, and otherwise rejected."""
    for name in ("pytorch_model.bin", "training_args.bin", "optimizer.bin", "model.pt"):
        plant_torch(model / name, trace)
    safe(adapt(tiny, model=model), trace, code=0)
    (model / "model.safetensors").unlink()
    said = adapt(tiny, model=model, **{"output-dir": tiny.run.parent / "other"})
    safe(said, trace, code=2)


def test_a_model_that_brings_code(tiny: Tiny, model: Path, trace: Path) -> None:
    """transformers would run it with trust_remote_code; nothing here does."""
    (model / "modeling_own.py").write_text(f"open({str(trace)!r}, 'w')\nclass Own: pass\n")
    config = json.loads((model / "config.json").read_text())
    auto = {"auto_map": {"AutoConfig": "modeling_own.Own", "AutoModelForSeq2SeqLM": "modeling_own.Own"}}
    (model / "config.json").write_text(json.dumps(config | auto))
    safe(adapt(tiny, model=model), trace, code=0)


@pytest.mark.parametrize("name", ["checkpoint", "target.encoder.encoder_norm.scale/0.0", "target.x/.zarray"])
def test_a_t5x_checkpoint(tiny: Tiny, tmp_path: Path, trace: Path, name: str) -> None:
    plant(tmp_path / "t5x" / "checkpoint_3" / "checkpoint", trace)
    plant(tmp_path / "t5x" / "checkpoint_3" / name, trace)
    safe(adapt(tiny, model=tmp_path / "t5x"), trace, code=2)


@pytest.mark.parametrize("name", ["tokens.json", "tokenizer/spiece.model", "shard-00000/train.tokens"])
def test_token_shards(tiny: Tiny, tmp_path: Path, trace: Path, name: str) -> None:
    shutil.copytree(tiny.run / "prepare" / "tokens", tmp_path / "tokens")
    plant(tmp_path / "tokens" / name, trace)
    safe(adapt(tiny, tokens=tmp_path / "tokens"), trace, code=2)


@pytest.mark.parametrize("name", ["docs.jsonl", "docs.txt", "docs.parquet", "docs.jsonl.gz", "docs.jsonl.zst"])
def test_a_corpus(tmp_path: Path, trace: Path, name: str) -> None:
    plant(tmp_path / "corpus" / name, trace)
    (tmp_path / "corpus" / "corpus.py").write_text(f"open({str(trace)!r}, 'w')\n")  # a loading script, as of old
    said = stage("prepare", "--corpus", tmp_path / "corpus", "--threads", 1, "--output-dir", tmp_path / "out")
    safe(said, trace, code=2)


@pytest.mark.parametrize("name", ["train.jsonl", "train.csv", "train.parquet", "train.json", "train.pkl"])
def test_rows_of_a_task(tiny: Tiny, tmp_path: Path, trace: Path, name: str) -> None:
    plant(tmp_path / "rows" / name, trace)
    task = {"data": str(tmp_path / "rows"), "inputs": "{text}", "targets": "{label}", "labels": ["a", "b"]}
    (tmp_path / "task.yaml").write_text(json.dumps(task | {"metrics": ["accuracy"]}))
    said = stage(
        "prompt_tune", "--model", tiny.run / "lm_adapt", "--task", tmp_path / "task.yaml", "--steps", 1,
        "--select", "last", "--output-dir", tmp_path / "out",
    )  # fmt: skip
    safe(said, trace, code=2)


def test_checkpoints_of_a_run(tiny: Tiny, trace: Path) -> None:
    """A checkpoint with a pickle in place of a file is skipped; additional pickles are ignored."""
    more = ("--recipe", tiny.recipe, "--run-dir", tiny.run, "--steps")
    checkpoints = tiny.run / "lm_adapt" / "checkpoints"
    for name in ("optimizer.bin", "random_states_0.pkl", "scheduler.bin", ".metadata", "mp_rank_00_model_states.pt"):
        plant(checkpoints / "step-00000008" / name, trace)
    safe(stage("lm_adapt", *more, 9), trace, code=0)
    for step, name in ((9, "rank-00000.safetensors"), (8, "state.json")):
        plant(checkpoints / f"step-{step:08d}" / name, trace)
    said = stage("lm_adapt", *more, 10)
    safe(said, trace, code=2)
    assert "all checkpoints are damaged" in said.err


@pytest.mark.parametrize("name", ["manifest.json", "started.json"])
def test_records_of_a_run(tiny: Tiny, trace: Path, name: str) -> None:
    plant(tiny.run / "lm_adapt" / name, trace)
    safe(t5_pipeline("plan", tiny.recipe, "--run-dir", tiny.run), trace, code=2)
    safe(stage("lm_adapt", "--recipe", tiny.recipe, "--run-dir", tiny.run), trace, code=2)


def test_caches_of_a_run(tiny: Tiny, trace: Path) -> None:
    """Unreadable digests, logs and exit codes are recomputed or ignored."""
    plant(tiny.run / ".state" / "digests.json", trace)
    plant(tiny.run / ".state" / "lm_adapt.exit", trace)
    plant(tiny.run / "lm_adapt" / "metrics.jsonl", trace)
    safe(t5_pipeline("plan", tiny.recipe, "--run-dir", tiny.run), trace, code=0)
    safe(t5_pipeline("status", tiny.run), trace, code=0)


@pytest.mark.parametrize("name", ["prompt.safetensors", "prompt.json"])
def test_a_prompt(tiny: Tiny, tmp_path: Path, trace: Path, name: str) -> None:
    source = next((tiny.run / "prompt_tune").glob("model=lm_adapt,*/prompt"))
    shutil.copytree(source, tmp_path / "prompts" / "one")
    plant(tmp_path / "prompts" / "one" / name, trace)
    (tmp_path / "in.jsonl").write_text('{"text": "hello"}\n')
    said = t5_pipeline(
        "predict", "--model", tiny.run / "lm_adapt", "--prompts", tmp_path / "prompts", "--input",
        tmp_path / "in.jsonl", "--output", tmp_path / "out.jsonl",
    )  # fmt: skip
    safe(said, trace, code=2)
    safe(t5_pipeline("prompts", "verify", tmp_path / "prompts"), trace, code=2)


def test_prompts_from_elsewhere(tiny: Tiny, tmp_path: Path, trace: Path) -> None:
    (tmp_path / "task.yaml").write_text('{data: x, inputs: "{text}", targets: "{label}", metrics: [accuracy]}')
    np.save(tmp_path / "object.npy", np.array([Bomb(trace)], dtype=object), allow_pickle=True)
    plant(tmp_path / "plain.npy", trace)
    (tmp_path / "adapter").mkdir()
    plant_torch(tmp_path / "adapter" / "adapter_model.bin", trace)
    (tmp_path / "adapter" / "adapter_config.json").write_text('{"peft_type": "PROMPT_TUNING"}')
    for file, kind in (("object.npy", "npy"), ("plain.npy", "npy"), ("adapter", "peft")):
        said = t5_pipeline(
            "prompts", "import", tmp_path / file, "--from", kind, "--model", tiny.run / "lm_adapt", "--task",
            tmp_path / "task.yaml", "--output", tmp_path / "imported",
        )  # fmt: skip
        safe(said, trace, code=2)


def test_yaml(tiny: Tiny, tmp_path: Path, trace: Path) -> None:
    """Recipes, tasks and launch configurations are read without YAML's object tags."""
    bomb = f"!!python/object/apply:pathlib.Path.touch [!!python/object/apply:pathlib.Path [{str(trace)!r}]]"
    (tmp_path / "recipe.yaml").write_text(f"name: {bomb}\nstages: {{}}\n")
    safe(t5_pipeline("plan", tmp_path / "recipe.yaml"), trace, code=2)
    (tmp_path / "launch.yaml").write_text(f"distributed_type: {bomb}\n")
    launch = f"lm_adapt.launch={tmp_path / 'launch.yaml'}"
    said = t5_pipeline("run", tiny.recipe, "--run-dir", tiny.run, "--set", launch, "--set", "lm_adapt.steps=9")
    safe(said, trace, code=2)
    (tmp_path / "task.yaml").write_text(f"data: {bomb}\n")
    said = stage(
        "prompt_tune", "--model", tiny.run / "lm_adapt", "--task", tmp_path / "task.yaml", "--output-dir",
        tmp_path / "out",
    )  # fmt: skip
    safe(said, trace, code=2)


# ------------------------------------------------------------------------------------------------- nothing is deleted


@pytest.fixture
def victim(tmp_path: Path) -> Iterator[Path]:
    """A directory that must not change."""
    (tmp_path / "victim" / "model").mkdir(parents=True)
    (tmp_path / "victim" / "model" / "thesis.txt").write_text("years of work")
    before = tree(tmp_path / "victim")
    yield tmp_path / "victim"
    assert tree(tmp_path / "victim") == before


def tree(directory: Path) -> dict[str, bytes]:
    """Every file below a directory, without exit codes and locks."""
    return {
        str(path): path.read_bytes() if path.is_file() else b""
        for path in sorted(directory.rglob("*"))
        if ".state" not in path.parts
    }


def sentinel(model: Path, output: Path, *more: object) -> Outcome:
    return stage("sentinel", "--model", model, "--threads", 1, "--output-dir", output, *more)


@pytest.mark.parametrize("more", [(), ("--overwrite",)])
def test_a_foreign_directory_is_not_replaced(tiny: Tiny, victim: Path, more: tuple[str, ...]) -> None:
    said = sentinel(tiny.run / "pretrain", victim, *more)
    assert said.code == 2, said
    assert f"{victim / 'model'}: already exists and has no manifest of this program; choose" in said.err
    shutil.rmtree(tiny.run / "sentinel")
    shutil.copytree(victim, tiny.run / "sentinel")
    before = tree(tiny.run)
    said = t5_pipeline("run", tiny.recipe, "--run-dir", tiny.run)
    assert said.code == 2, said
    assert f"{tiny.run / 'sentinel' / 'model'}: already exists" in said.err
    assert tree(tiny.run) == before


def test_a_foreign_directory_in_a_started_cell_is_not_replaced(tiny: Tiny, victim: Path) -> None:
    """The stage was stopped before it wrote its model."""
    cell = tiny.run / "sentinel"
    for name in ("manifest.json", "working.json"):
        (cell / name).unlink()
    shutil.rmtree(cell / "model")
    shutil.copytree(victim / "model", cell / "model")
    before = tree(tiny.run)
    said = t5_pipeline("run", tiny.recipe, "--run-dir", tiny.run)
    assert said.code == 2, said
    assert f"{cell / 'model'}: already exists" in said.err
    assert tree(tiny.run) == before


def test_files_of_others_in_a_result_are_moved_not_deleted(tiny: Tiny) -> None:
    """Beside a damaged model that is rebuilt, and beside one that more steps replace."""
    (tiny.run / "sentinel" / "model" / "thesis.txt").write_text("years of work")
    (tiny.run / "sentinel" / "model" / "model.safetensors").unlink()
    (tiny.run / "lm_adapt" / "model" / "thesis.txt").write_text("years of work")
    here = ("--recipe", tiny.recipe, "--run-dir", tiny.run)
    for said in (stage("sentinel", *here), stage("lm_adapt", *here, "--steps", 9)):
        assert said.code == 0, said
        assert "thesis.txt, which is not of this program; moved to" in said.err
    for name in ("sentinel", "lm_adapt"):
        assert (tiny.run / name / "model.superseded" / "thesis.txt").read_text() == "years of work"
        assert not (tiny.run / name / "model" / "thesis.txt").exists()


def test_a_foreign_report_is_not_replaced(tiny: Tiny) -> None:
    page = tiny.run / "report.html"
    page.write_text("<p>mine")
    for command in (("run", tiny.recipe, "--run-dir", tiny.run), ("report", tiny.run)):
        said = t5_pipeline(*command)
        assert (said.code, said.err) == (
            2, f"error: {page}: already exists and was not written by this program; move it away\n"
        )  # fmt: skip
    assert page.read_text() == "<p>mine"


def test_other_files_in_an_output_directory_are_kept(tiny: Tiny, tmp_path: Path) -> None:
    (tmp_path / "out" / ".cache.tmp").mkdir(parents=True)
    for name in ("notes.txt", ".cache.tmp/x"):
        (tmp_path / "out" / name).write_text("kept")
    assert sentinel(tiny.run / "pretrain", tmp_path / "out").code == 0
    for name in ("notes.txt", ".cache.tmp/x"):
        assert (tmp_path / "out" / name).read_text() == "kept"


@pytest.mark.parametrize("more", [(), ("--overwrite",)])
@pytest.mark.parametrize("place", ["", "model"])
def test_an_input_is_not_inside_the_output(tiny: Tiny, tmp_path: Path, place: str, more: tuple[str, ...]) -> None:
    out = tmp_path / "out"
    assert sentinel(tiny.run / "pretrain", out).code == 0
    before = tree(tmp_path)
    said = sentinel(out / place, out, "--variant", "both", *more)
    assert said.code == 2, said
    assert f"--model: {out / place} is inside {out}, which this stage writes; choose" in said.err
    assert tree(tmp_path) == before


def test_a_recipe_beside_the_results_is_not_replaced(tiny: Tiny, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    shutil.copy(tiny.recipe, tmp_path / "mine" / "recipe.yaml")
    before = tree(tmp_path / "mine")
    said = t5_pipeline("run", tmp_path / "mine" / "recipe.yaml", "--run-dir", tmp_path / "mine")
    assert said.code == 2, said
    assert "recipe.yaml: already exists and was not written by a run" in said.err
    assert tree(tmp_path / "mine") == before


@pytest.mark.parametrize("path", ["../../victim", "VICTIM", "link", "."])
def test_paths_in_a_manifest_stay_inside(tiny: Tiny, victim: Path, path: str) -> None:
    cell = tiny.run / "sentinel"
    if path == "link":
        (cell / "link").symlink_to(victim)
    path = path.replace("VICTIM", str(victim))
    manifest = json.loads((cell / "manifest.json").read_text())
    manifest["outputs"]["model"]["path"] = path
    manifest["files"] = {f"{path}/model/thesis.txt": {"size": 1, "mtime_ns": 1, "blocks": ["0"]}}
    (cell / "manifest.json").write_text(json.dumps(manifest))
    for command in (("run", tiny.recipe, "--run-dir", tiny.run), ("verify", tiny.run), ("report", tiny.run)):
        said = t5_pipeline(*command)
        assert (said.code, said.err.count("\n")) == (2, 1), said
        assert str(cell / "link" if path == "link" else cell / "manifest.json") in said.err
    assert (cell / "model").is_dir()


@pytest.mark.parametrize("name", ["sentinel", "sentinel/checkpoints", "sentinel/log.txt", ".state", "superseded"])
def test_links_out_of_a_run_are_not_followed(tiny: Tiny, victim: Path, name: str) -> None:
    for place in (tiny.run / "sentinel" / "manifest.json", tiny.run / name):
        shutil.rmtree(place) if place.is_dir() else place.unlink(missing_ok=True)
    (tiny.run / name).symlink_to(victim / "model" / "thesis.txt" if name.endswith(".txt") else victim)
    said = stage("sentinel", "--recipe", tiny.recipe, "--run-dir", tiny.run, "--variant", "both")
    assert (said.code, said.err.count("\n")) == (2, 1), said
    assert f"{tiny.run / name} is a link that leads out of {tiny.run}" in said.err


@pytest.mark.parametrize("name", ["../../victim", "/tmp/victim", "superseded", "x" * 300, "a\\b"])
def test_names_in_a_recipe(tiny: Tiny, victim: Path, name: str) -> None:
    for key in ["name", "stages"][name == "superseded" :]:
        content = yaml.safe_load(tiny.recipe.read_text())
        if key == "name":
            content["name"] = name
        else:
            content["stages"] = {name: {"uses": "prepare", "corpus": "stdlib-docs"}}
        recipe = tiny.recipe.with_name("named.yaml")
        recipe.write_text(yaml.safe_dump(content))
        said = t5_pipeline("run", recipe)
        assert (said.code, said.err.count("\n")) == (2, 1), said
        assert "; choose another name" in said.err


def test_a_damaged_log_does_not_stop_training(tiny: Tiny) -> None:
    log = tiny.run / "lm_adapt" / "metrics.jsonl"
    log.write_bytes(b'{"step": \xff\n' + log.read_bytes())
    said = stage("lm_adapt", "--recipe", tiny.recipe, "--run-dir", tiny.run, "--steps", 9)
    assert said.code == 0, said
    assert "metrics.jsonl: 1 damaged lines were moved to metrics.jsonl.damaged" in said.err
    assert (log.parent / "metrics.jsonl.damaged").read_bytes() == b'{"step": \xff\n'


def test_the_report_goes_where_it_is_asked_to(tiny: Tiny, tmp_path: Path) -> None:
    said = t5_pipeline("report", tiny.run, "--output", "-")
    assert (said.code, said.out.startswith("<!doctype html>")) == (0, True)
    assert t5_pipeline("report", tiny.run, "--output", "/dev/null").code == 0
    assert Path("/dev/null").is_char_device()
    assert t5_pipeline("report", tiny.run, "--output", tmp_path).code == 2
