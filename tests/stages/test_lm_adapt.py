"""LM adaptation with its other objectives, packed and not, from flags and from a recipe."""

from __future__ import annotations

import math
import re
import shutil
from pathlib import Path

import pytest
import torch
from transformers import T5ForConditionalGeneration

from t5_pipeline.artifacts.kinds import artifact_digest
from t5_pipeline.artifacts.manifest import read
from t5_pipeline.core.checksums import tensors_digest
from t5_pipeline.data_prep.objectives.prefix_lm import PrefixLM
from t5_pipeline.data_prep.sampling.batches import LMBatches
from t5_pipeline.data_prep.sampling.packed_rows import PackedRows
from t5_pipeline.data_prep.shards.reader import TokenShards
from t5_pipeline.modeling.load import load_t5
from t5_pipeline.modeling.model_metadata import read_metadata
from t5_pipeline.modeling.t5 import shift_right
from t5_pipeline.training.state import TrainState
from tests.tiny_run import ROOT, Outcome, Tiny, accelerate_launch, metrics, stage, t5_pipeline

FLAGS = (
    "--segment-length", 24, "--batch-size", 8, "--steps", 4, "--schedule", "constant", "--learning-rate", 0.001,
    "--precision", "fp32", "--log-every", 1, "--validate-every", 4, "--validation-batches", 1, "--threads", 1,
)  # fmt: skip


def adapt(tiny: Tiny, output: Path, *more: object) -> Outcome:
    inputs = ("--model", tiny.run / "pretrain", "--tokens", tiny.run / "prepare", "--output-dir", output)
    return stage("lm_adapt", *inputs, *FLAGS, *more)


@pytest.mark.parametrize(
    ("objective", "unit"),
    [("prefix_lm", "examples"), ("prefix_lm", "rows"), *((o, "examples") for o in ("lm", "full_lm", "packed_pairs"))],
)
def test_packing_does_not_change_training(finished: Tiny, tmp_path: Path, objective: str, unit: str) -> None:
    rows, weights = [], []
    for packing in ("packing", "no-packing"):
        ended = adapt(finished, tmp_path / packing, "--objective", objective, "--batch-unit", unit, f"--{packing}")
        assert ended.code == 0, ended.err
        assert read_metadata(tmp_path / packing / "model").lineage[-1].objective == objective
        rows.append([row["loss"] for row in metrics(tmp_path / packing)])
        weights.append(load_t5(tmp_path / packing / "model").state_dict())
    assert rows[0] == pytest.approx(rows[1], rel=1e-5)
    start = load_t5(finished.run / "pretrain" / "model").state_dict()
    for name, tensor in weights[0].items():
        assert (tensor - weights[1][name]).norm() <= 1e-5 * tensor.norm(), name
    assert not torch.equal(weights[0]["shared.weight"], start["shared.weight"])


@pytest.mark.parametrize("unit", ["examples", "rows"])
def test_steps_equal_those_of_a_plain_loop(finished: Tiny, tmp_path: Path, unit: str) -> None:
    """In fp64 over transformers' T5, not packed, with the formulas of Adafactor as written in the documentation."""
    ended = adapt(
        finished, tmp_path, "--batch-unit", unit, "--microbatch-size", 3, "--seed", 5, "--learning-rate", 0.5,
        "--schedule", "rsqrt", "--step-offset", 100, "--warmup-steps", 50, "--weight-decay", 0.001, "--z-loss", 0.01,
    )  # fmt: skip
    assert ended.code == 0, ended.err
    plain = T5ForConditionalGeneration.from_pretrained(finished.run / "pretrain" / "model", dropout_rate=0.0).double()
    objective = PrefixLM(TokenShards.open(finished.run / "prepare" / "tokens"), seed=5, segment_length=24)
    rows = PackedRows(objective, 5, (24, 24)) if unit == "rows" else None
    batches, trained = LMBatches(objective, 8, seed=5, rows=rows), dict(plain.named_parameters())
    start = {name: p.detach().clone() for name, p in trained.items()}
    moments = {name: torch.zeros_like(p) for name, p in trained.items()}
    for step in range(4):
        batch = batches.at(step)
        inputs, targets = (torch.tensor(ids).long() for ids in (batch.inputs_BS, batch.targets_BT))
        logits = plain(input_ids=inputs, attention_mask=inputs != 0, decoder_input_ids=shift_right(targets)).logits
        log_z = logits.logsumexp(-1)
        each = log_z - logits.gather(-1, targets[..., None]).squeeze(-1) + 0.01 * log_z**2
        gradients = torch.autograd.grad(each[targets != 0].mean(), list(trained.values()))
        rate, beta2 = 0.5 / math.sqrt(step + 100), 1 - (step + 1) ** -0.8
        for (name, p), gradient in zip(trained.items(), gradients, strict=True):
            moments[name] = beta2 * moments[name] + (1 - beta2) * (gradient**2 + 1e-30)
            update = gradient / moments[name].sqrt()
            update /= update.square().mean().sqrt().clamp(min=1)
            size = p.detach().square().mean().sqrt().clamp(min=1e-3)
            p.data = 0.999 * p.data - rate * size * update
    tuned = load_t5(tmp_path / "model").state_dict()
    for name, p in trained.items():
        # Adafactor divides by the size of a gradient, which amplifies the rounding of tiny ones.
        assert (tuned[name] - p).norm() <= 5e-3 * (p - start[name]).norm(), name


def test_a_smaller_density_lengthens_the_prefix(finished: Tiny, tmp_path: Path) -> None:
    assert adapt(finished, tmp_path / "half").code == 0
    assert adapt(finished, tmp_path / "tenth", "--prefix-density", 0.1).code == 0
    half, tenth = (load_t5(tmp_path / name / "model").state_dict() for name in ("half", "tenth"))
    assert not torch.equal(half["shared.weight"], tenth["shared.weight"])


def test_steps_to_keep_after_the_last_one_are_named(finished: Tiny, tmp_path: Path) -> None:
    ended = adapt(finished, tmp_path / "adapted", "--keep-steps", 2, 9)
    assert ended.code == 0, ended.err
    assert "lm_adapt: `keep_steps` 9 will not be published, because training ends after 4 `steps`" in ended.err
    assert [path.name for path in (tmp_path / "adapted" / "steps").iterdir()] == ["000002"]


def test_the_duration_includes_earlier_processes(
    finished: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(TrainState, "elapsed", 5000.0)
        assert adapt(finished, tmp_path / "adapted").code == 0
    (tmp_path / "adapted" / "manifest.json").unlink()  # as if it had been killed before
    assert adapt(finished, tmp_path / "adapted").code == 0
    resumed = read(tmp_path / "adapted")
    assert resumed is not None
    assert 5000 < resumed.seconds < 10_000
    assert adapt(finished, tmp_path / "adapted", "--steps", 5).code == 0
    longer = read(tmp_path / "adapted")
    assert longer is not None
    assert resumed.seconds < longer.seconds < 10_000


def plan_of_lm_adapt(tiny: Tiny) -> str:
    (line,) = (line for line in tiny.plan() if re.match(r".{12}lm_adapt( |$)", line))
    return line


def test_another_objective_in_a_recipe_makes_the_stage_stale(tiny: Tiny) -> None:
    assert plan_of_lm_adapt(tiny).startswith("up to date")
    tiny.edit("    segment_length: 48\n", "    segment_length: 48\n    objective: full_lm\n    packing: false\n")
    line = plan_of_lm_adapt(tiny)
    assert line.startswith("run")
    assert "objective: prefix_lm → full_lm" in line
    assert "packing" not in line


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("--prefix-density", 0.7), "--prefix-density: must be at most 0.5"),
        (("--prefix-density", 0), "--prefix-density: must be greater than 0"),
        (("--prefix-density", 0.3, "--objective", "lm"), "`--prefix-density` applies to `--objective prefix_lm`"),
        (("--batch-unit", "rows", "--objective", "lm"), "`--batch-unit rows` applies to `--objective prefix_lm`"),
        (("--optimizer-state", "checkpoint"), "contains no state of Adafactor, only T5X checkpoints do"),
        (("--objective", "prefix"), "--objective: there is no `prefix`; did you mean `prefix_lm`?"),
        (("--objective", "packed_pairs", "--segment-length", 1_000_000), "too little text for one example"),
    ],
)
def test_invalid_setting_is_named_by_its_key(
    finished: Tiny, tmp_path: Path, flags: tuple[object, ...], words: str
) -> None:
    ended = adapt(finished, tmp_path / "out", *flags)
    assert ended.code == 2
    assert words in ended.err


def test_invalid_density_in_a_recipe_is_named(tiny: Tiny) -> None:
    tiny.edit("    segment_length: 48\n", "    segment_length: 48\n    prefix_density: 0.9\n")
    ended = stage("lm_adapt", "--recipe", tiny.recipe, "--run-dir", tiny.run)
    assert ended.code == 2
    assert "stages.lm_adapt.prefix_density: must be at most 0.5, not 0.9" in ended.err


# ------------------------------------------------------------------------------------------------------------- probes


def probes(tiny: Tiny, place: Path, *more: object) -> tuple[object, ...]:
    """Flags of small probes, every two steps."""
    task = place / "about.yaml"
    task.write_text(
        f'{{data: {tiny.data}/rows, inputs: "about: {{text}}", targets: "{{label}}", labels: [files, numbers]}}'
    )
    return (
        "--dropout", 0.1, "--checkpoint-every", 1, "--keep-last", 9, "--probe", task, "--probe-every", 2,
        "--probe-cost", 1000, "--probe-prompts", 2, "--probe-steps", 2, "--probe-prompt-length", 3,
        "--probe-batch-size", 4, "--probe-input-length", 16, "--probe-rows", 4, *more,
    )  # fmt: skip


def test_probes_do_not_change_the_adaptation(finished: Tiny, tmp_path: Path) -> None:
    """Equal bits of weights and optimizer, and an equal log, with and without probes."""
    assert adapt(finished, tmp_path / "without", "--dropout", 0.1, "--checkpoint-every", 1).code == 0
    ended = adapt(finished, tmp_path / "with", *probes(finished, tmp_path))
    assert ended.code == 0, ended.err
    assert "a probe every 2 steps" in ended.err
    rows = metrics(tmp_path / "with")
    probed = [row for row in rows if row.get("split") == "probe"]
    assert [row["step"] for row in probed] == [0, 2, 4]
    assert [row for row in rows if row.get("split") != "probe"] == metrics(tmp_path / "without")
    for row in probed:
        assert row["scores"].keys() == {"about,seed=0", "about,seed=1"}
        assert row["score"] == pytest.approx(sum(s["accuracy"] for s in row["scores"].values()) / 2)
    digests = [artifact_digest("model", tmp_path / name / "model") for name in ("with", "without")]
    assert digests[0] == digests[1]
    files = [tmp_path / name / "checkpoints" / "step-00000004" for name in ("with", "without")]
    assert [tensors_digest(file) for file in files[:1]] == [tensors_digest(file) for file in files[1:]]


def test_patience_stops_and_resumes(finished: Tiny, tmp_path: Path) -> None:
    """So short a training generates no label, so the second probe is not better than the first."""
    flags = probes(finished, tmp_path, "--probe-patience", 1, "--steps", 6)
    ended = adapt(finished, tmp_path / "out", *flags)
    assert ended.code == 0, ended.err
    assert "stopped after step 2: 1 probes without a better score" in ended.err
    assert read_metadata(tmp_path / "out" / "model").lineage[-1].step == 2
    log, digest = metrics(tmp_path / "out"), artifact_digest("model", tmp_path / "out" / "model")
    assert max(row["step"] for row in log) == 2
    again = adapt(finished, tmp_path / "out", *flags)
    assert "up to date" in again.out + again.err

    # As a kill after the second probe leaves it, before the checkpoint of that step.
    for name in ("model", "checkpoints/step-00000002"):
        shutil.rmtree(tmp_path / "out" / name)
    (tmp_path / "out" / "manifest.json").unlink()
    ended = adapt(finished, tmp_path / "out", *flags)
    assert ended.code == 0, ended.err
    assert metrics(tmp_path / "out") == log
    assert artifact_digest("model", tmp_path / "out" / "model") == digest


def test_the_cost_of_probes_is_bounded(finished: Tiny, tmp_path: Path) -> None:
    ended = adapt(finished, tmp_path / "out", *probes(finished, tmp_path, "--probe-cost", 0.1))
    assert ended.code == 2
    assert re.search(
        r"--probe-every: with 2 the probes cost \d+% of the adaptation's FLOPs; lower probe_steps, or", ended.err
    )
    ended = adapt(finished, tmp_path / "out", "--probe-patience", 2)
    assert ended.code == 2
    assert "--probe-patience: has no effect without `--probe`" in ended.err


def test_an_error_in_validation_rows_does_not_name_settings_of_other_stages(finished: Tiny, tmp_path: Path) -> None:
    flags = probes(finished, tmp_path)
    rows = shutil.copytree(finished.data / "rows", tmp_path / "rows")
    (rows / "validation.jsonl").write_text('{"text": "a", "label": "neither"}\n')
    task = tmp_path / "about.yaml"
    task.write_text(task.read_text().replace(f"{finished.data}/rows", str(rows)))
    ended = adapt(finished, tmp_path / "out", *flags)
    assert ended.code == 2
    assert "neither" in ended.err
    assert "select" not in ended.err


def test_probes_in_a_recipe(tiny: Tiny) -> None:
    """Probes alone leave a finished stage up to date; with patience they are part of its result."""
    few = "probe: [about]\n    probe_cost: 1000"
    tiny.edit("    segment_length: 48\n", f"    segment_length: 48\n    {few}\n")
    assert plan_of_lm_adapt(tiny).startswith("up to date")
    said = t5_pipeline("plan", tiny.recipe, "--run-dir", tiny.run)
    assert re.search(r"lm_adapt: a probe every 1,000 steps, [\d,.]+% of the FLOPs of the adaptation", said.out)
    tiny.edit(few, f"{few}\n    probe_patience: 2")
    assert plan_of_lm_adapt(tiny).startswith("run")


@pytest.mark.engines
def test_probes_on_two_processes(finished: Tiny, tmp_path: Path) -> None:
    """Every rank computes the same probe, so its rows and the losses are those of one process, up to rounding."""
    inputs = ("--model", finished.run / "pretrain", "--tokens", finished.run / "prepare")
    probed = probes(finished, tmp_path, "--dropout", 0)  # whose masks differ by rank
    flags = (*FLAGS, *probed)
    flags = (*inputs, "--output-dir", tmp_path / "two", *flags)
    ended = Outcome.forked(accelerate_launch(ROOT / "accelerate_configs" / "cpu_ddp.yaml", "lm_adapt", *flags))
    assert ended.code == 0, ended.err
    assert adapt(finished, tmp_path / "one", *probed).code == 0
    two, one = metrics(tmp_path / "two"), metrics(tmp_path / "one")
    assert [row["step"] for row in two if row.get("split") == "probe"] == [0, 2, 4]
    assert [row.keys() for row in two] == [row.keys() for row in one]
    for both in zip(two, one, strict=True):
        for key in {"loss", "score", "spread"} & both[0].keys():
            assert both[0][key] == pytest.approx(both[1][key], rel=1e-4), (key, both)


def test_rows_of_step_0_are_written_once(finished: Tiny, tmp_path: Path) -> None:
    """A run was killed after it measured step 0, from whose checkpoint it resumes."""
    flags = (
        "--model", finished.run / "pretrain", "--tokens", finished.run / "prepare", "--batch-size", 4, "--threads", 1,
        "--segment-length", 48, "--precision", "fp32", "--schedule", "constant", "--learning-rate", 0.003,
        "--validation-batches", 1, "--output-dir", tmp_path / "out",
    )  # fmt: skip
    assert stage("lm_adapt", *flags, "--steps", 0).code == 0
    with (tmp_path / "out/metrics.jsonl").open("a") as file:
        file.write('{"step": 0, "split": "validation", "loss": 5.0}\n')
    assert stage("lm_adapt", *flags, "--steps", 2).code == 0
    assert [row["step"] for row in metrics(tmp_path / "out") if row["split"] == "validation"] == [0]
