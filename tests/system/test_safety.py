"""No input can run code: a pickle that would leave a trace is placed wherever files are read.

Each command rejects it with a one-line error or never reads it. A separate test shows that `Bomb` works when unpickled.
"""

from __future__ import annotations

import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

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
