"""DDP, ZeRO-1, -2, -3 and FSDP2 as two real CPU processes: they train like one process with gradient accumulation.

fp32, no dropout, AdamW, unequal lengths, batches that two processes cannot share evenly.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file
from transformers import T5ForConditionalGeneration

from t5_pipeline.training.checkpoints.format import Checkpoint
from t5_pipeline.training.checkpoints.store import Checkpoints
from tests.tiny_run import ROOT, Outcome, Tiny, accelerate_launch, metrics, stage

CONFIGS = ROOT / "accelerate_configs"
SEVERAL = ("ddp", "zero1", "zero2", "zero3", "fsdp2")
STEPS = 20


@pytest.fixture
def configuration(tmp_path: Path) -> Callable[[str], Path]:
    """The launch configuration of an engine on two CPU processes."""

    def write(engine: str) -> Path:
        if not engine.startswith("zero"):
            return CONFIGS / f"cpu_{engine}.yaml"
        content = yaml.safe_load((CONFIGS / "cpu_zero2.yaml").read_text())
        content["deepspeed_config"]["zero_stage"] = int(engine[-1])
        (tmp_path / f"{engine}.yaml").write_text(yaml.safe_dump(content))
        return tmp_path / f"{engine}.yaml"

    return write


def adapt(finished: Tiny, output: Path, steps: int = STEPS) -> list[object]:
    return [
        "--model", finished.run / "pretrain", "--tokens", finished.run / "prepare", "--steps", steps, "--batch-size", 7,
        "--microbatch-size", 3, "--segment-length", 48, "--precision", "fp32", "--threads", 1, "--log-every", 1,
        "--schedule", "constant", "--learning-rate", 0.003, "--weight-decay", 0.001, "--optimizer", "adamw",
        "--warmup-steps", 0, "--validation-batches", 1, "--validate-every", 10, "--checkpoint-every", 8,
        "--keep-steps", 10, "--output-dir", output,
    ]  # fmt: skip


@pytest.fixture(scope="module")
def alone(finished: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same training on one process, in microbatches."""
    output = tmp_path_factory.mktemp("alone")
    assert stage("lm_adapt", *adapt(finished, output, STEPS + 4)).code == 0
    return output


def newest(output: Path) -> Checkpoint:
    folder = output / "checkpoints"
    fingerprint = yaml.safe_load((output / "started.json").read_text())["fingerprint"]
    found = Checkpoints(folder, fingerprint).latest()
    assert found is not None
    return found


def assert_same_trajectory(one: Path, other: Path, tolerance: float = 1e-5) -> None:
    """The same losses at every step, and the same weights at the end."""
    theirs = metrics(other)
    assert len(theirs) == len(metrics(one))
    for mine, their in zip(metrics(one), theirs, strict=True):
        assert (mine["step"], mine.get("split")) == (their["step"], their.get("split"))
        assert their["loss"] == pytest.approx(mine["loss"], rel=tolerance)
    ones, others = (load_file(path / "model" / "model.safetensors") for path in (one, other))
    assert ones.keys() == others.keys()
    for name, weight in ones.items():
        assert (weight - others[name]).norm() <= 1e-3 * weight.norm(), name


@pytest.mark.parametrize("engine", SEVERAL)
def test_two_processes_train_like_one(
    finished: Tiny, alone: Path, tmp_path: Path, configuration: Callable[[str], Path], engine: str
) -> None:
    """Then one process resumes their checkpoint, moments included. The published models are plain."""
    output = tmp_path / "two"
    launched = Outcome.forked(accelerate_launch(configuration(engine), "lm_adapt", *adapt(finished, output)))
    assert launched.code == 0, launched.err
    ranks = {path.name for path in newest(output).path.glob("rank-*.safetensors")}
    assert ranks == {"rank-00000.safetensors", "rank-00001.safetensors"}
    for place in (output / "model", output / "steps" / "000010" / "model"):
        model = T5ForConditionalGeneration.from_pretrained(place)
        assert model.lm_head.weight.data_ptr() != model.shared.weight.data_ptr()
        assert not torch.equal(model.lm_head.weight, model.shared.weight)
    assert stage("lm_adapt", *adapt(finished, output, STEPS + 4)).code == 0
    assert_same_trajectory(alone, output)


def test_engines_resume_each_other(
    finished: Tiny, alone: Path, tmp_path: Path, configuration: Callable[[str], Path]
) -> None:
    """One process, ZeRO-3 on two, DDP on two, one again: the trajectory of one process throughout."""
    output = tmp_path / "passed"
    assert stage("lm_adapt", *adapt(finished, output, 8)).code == 0
    for steps, engine in ((13, "zero3"), (18, "ddp")):
        launched = Outcome.forked(accelerate_launch(configuration(engine), "lm_adapt", *adapt(finished, output, steps)))
        assert launched.code == 0, launched.err
        assert newest(output).step == steps
    assert stage("lm_adapt", *adapt(finished, output, STEPS + 4)).code == 0
    rows = {(row["step"], row.get("split")): row["loss"] for row in metrics(output)}
    for mine in metrics(alone):
        assert rows[mine["step"], mine.get("split")] == pytest.approx(mine["loss"], rel=1e-5)


@pytest.mark.parametrize(
    "engine", [*(pytest.param(engine, marks=pytest.mark.engines) for engine in SEVERAL[:3]), "zero3", "fsdp2"]
)
def test_activation_checkpointing(
    finished: Tiny, alone: Path, tmp_path: Path, configuration: Callable[[str], Path], engine: str
) -> None:
    """Weights are gathered again for the recomputation; the steps are the same."""
    output = tmp_path / "two"
    arguments = [*adapt(finished, output, 4), "--keep-steps", 4, "--recompute"]
    launched = Outcome.forked(accelerate_launch(configuration(engine), "lm_adapt", *arguments))
    assert launched.code == 0, launched.err
    for mine, theirs in zip(metrics(alone)[:5], metrics(output), strict=False):
        assert theirs["loss"] == pytest.approx(mine["loss"], rel=1e-5)
    assert newest(output).step == 4


def tune(finished: Tiny, output: Path, optimizer: str, steps: int = 6) -> list[object]:
    task = output.parent / "about.yaml"
    task.write_text(
        f"name: about\ndata: {finished.data}/rows\ninputs: 'about: {{text}}'\ntargets: '{{label}}'\n"
        "labels: [files, numbers]\nmetrics: [accuracy]\n"
    )
    return [
        "--model", finished.run / "lm_adapt", "--steps", steps, "--batch-size", 5, "--microbatch-size", 2,
        "--precision", "fp32", "--threads", 1, "--log-every", 1, "--validate-every", 3, "--validation-limit", 8,
        "--checkpoint-every", 2, "--max-input-length", 32, "--dropout", 0, "--optimizer", optimizer,
        "--output-dir", output,
    ]  # fmt: skip


def tuned_like_one(
    finished: Tiny, tmp_path: Path, configuration: Path, kind: str, optimizer: str, *more: object
) -> tuple[Path, Path]:
    one, two = tmp_path / "one", tmp_path / "two"
    arguments = [(*tune(finished, output, optimizer), *more) for output in (one, two)]
    assert stage(kind, *arguments[0]).code == 0
    launched = Outcome.forked(accelerate_launch(configuration, kind, *arguments[1]))
    assert launched.code == 0, launched.err
    for mine, theirs in zip(metrics(one), metrics(two), strict=True):
        assert mine["step"] == theirs["step"]
        assert theirs.get("loss", 0) == pytest.approx(mine.get("loss", 0), rel=1e-5)
        assert theirs.get("scores") == mine.get("scores")
    return one, two


PROMPT = ("--task", "about.yaml", "--prompt-length", 4, "--learning-rate", 0.3)
ENGINES = [
    pytest.param("ddp", "adafactor", marks=pytest.mark.engines),
    pytest.param("zero1", "adamw", marks=pytest.mark.engines),
    pytest.param("zero2", "adamw", marks=pytest.mark.engines),
    ("zero3", "adamw"),
    ("fsdp2", "adafactor"),
]


@pytest.mark.parametrize(("engine", "optimizer"), ENGINES)
def test_prompt_tuning_of_a_sharded_t5(
    finished: Tiny, tmp_path: Path, configuration: Callable[[str], Path], engine: str, optimizer: str
) -> None:
    """The same prompt as on one process; its checkpoints do not contain the T5."""
    more = ("--task", tmp_path / "about.yaml", *PROMPT[2:])
    one, two = tuned_like_one(finished, tmp_path, configuration(engine), "prompt_tune", optimizer, *more)
    mine, theirs = (load_file(output / "prompt" / "prompt.safetensors") for output in (one, two))
    for name, rows in mine.items():
        assert (theirs[name] - rows).norm() <= 1e-4 * rows.norm()
    saved = newest(two)
    moments = {"adafactor": ["mean_square"], "adamw": ["exp_avg", "exp_avg_sq"]}[optimizer]
    rows = "bank.rows_RD"
    expected = [
        f"model/{rows}",
        *(f"optimizer/{rows}/{key}" for key in [*moments, "step"]),
        "selection/0/rows",
        "meter",
    ]
    assert sorted(saved.names()) == sorted(expected)


@pytest.mark.engines
@pytest.mark.parametrize("engine", ["ddp", "fsdp2"])
def test_prompts_that_take_turns(
    finished: Tiny, tmp_path: Path, configuration: Callable[[str], Path], engine: str
) -> None:
    """The same decisions as on one process; prompts that wait have neither decay nor moments on any rank."""
    sweep = "{reparametrization: [none, low_rank, rank_one], learning_rate: [0.03, 0.3]}"
    more = ("--task", tmp_path / "about.yaml", "--prompt-length", 4, "--sweep", sweep, "--sweep-slots", 2)
    more += ("--first-rung", 2, "--weight-decay", 0.01)
    one, two = tuned_like_one(finished, tmp_path, configuration(engine), "prompt_tune", "adafactor", *more)
    assert [row.get("dropped") for row in metrics(two)] == [row.get("dropped") for row in metrics(one)]
    mine, theirs = newest(one).tensors("model/"), newest(two).tensors("model/")
    assert len(mine) == 2 * (1 + 2 + 3)
    for name, tensor in mine.items():
        assert (theirs[name] - tensor).norm() <= 1e-3 * tensor.norm(), name


@pytest.mark.engines
@pytest.mark.parametrize("engine", SEVERAL)
def test_model_tuning(finished: Tiny, tmp_path: Path, configuration: Callable[[str], Path], engine: str) -> None:
    """The best weights are kept in shards and published whole."""
    more = ("--tasks", tmp_path / "about.yaml", "--learning-rate", 0.001)
    one, two = tuned_like_one(finished, tmp_path, configuration(engine), "model_tune", "adamw", *more)
    mine, theirs = (load_file(output / "model" / "model.safetensors") for output in (one, two))
    for name, weight in mine.items():
        assert (theirs[name] - weight).norm() <= 1e-4 * weight.norm(), name


@pytest.mark.parametrize(
    "engine", [*(pytest.param(engine, marks=pytest.mark.engines) for engine in SEVERAL[:3]), "zero3", "fsdp2"]
)
def test_two_processes_resumed_at_a_step_are_bit_identical(
    finished: Tiny, tmp_path: Path, configuration: Callable[[str], Path], engine: str
) -> None:
    """With dropout, the same engine and world size: from the checkpoint of step 4 the trajectory is repeated."""
    output = tmp_path / "two"
    arguments = [*adapt(finished, output, 8), "--dropout", 0.1, "--checkpoint-every", 4, "--keep-steps", 4]
    ends = []
    for more in ((), ("--resume-from", 4)):
        launched = Outcome.forked(accelerate_launch(configuration(engine), "lm_adapt", *arguments, *more))
        assert launched.code == 0, launched.err
        ends.append((newest(output).tensors(), metrics(output)))
    assert "back to step 4" in launched.err
    (ones, log), (others, other_log) = ends
    assert ones.keys() == others.keys()
    for name, tensor in ones.items():
        assert torch.equal(tensor, others[name]), name
    assert log == other_log


@pytest.mark.parametrize("engine", [pytest.param("zero3", marks=pytest.mark.engines), "fsdp2"])
def test_publishing_a_passed_step_changes_nothing(
    finished: Tiny, tmp_path: Path, configuration: Callable[[str], Path], engine: str
) -> None:
    """Step 4 is retrained in its own directory and validated; then the engine resumes from the checkpoint of step 8."""
    ends = []
    for name, before in (("at once", []), ("later", [8])):
        output = tmp_path / name
        for steps in [*before, 11]:
            asked = ["--keep-steps", 4] if steps == 11 else ["--keep-steps", 8]
            arguments = [*adapt(finished, output, steps), "--checkpoint-every", 4, "--validate-every", 4, *asked]
            launched = Outcome.forked(accelerate_launch(configuration(engine), "lm_adapt", *arguments))
            assert launched.code == 0, launched.err
        ends.append(newest(output).tensors("model/"))
        assert (output / "steps" / "000004" / "model" / "model.safetensors").is_file()
    ones, others = ends
    assert ones.keys() == others.keys()
    for name, tensor in ones.items():
        assert torch.equal(tensor, others[name]), name
