"""LM adaptation with its other objectives, packed and not, from flags and from a recipe."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from t5_pipeline.modeling.load import load_t5
from t5_pipeline.modeling.model_dir import read_metadata
from tests.tiny_run import Outcome, Tiny, metrics, stage

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
        assert read_metadata(tmp_path / packing / "model").lineage[-1]["objective"] == objective
        rows.append([row["loss"] for row in metrics(tmp_path / packing)])
        weights.append(load_t5(tmp_path / packing / "model").state_dict())
    assert rows[0] == pytest.approx(rows[1], rel=1e-5)
    start = load_t5(finished.run / "pretrain" / "model").state_dict()
    for name, tensor in weights[0].items():
        assert (tensor - weights[1][name]).norm() <= 1e-5 * tensor.norm(), name
    assert not torch.equal(weights[0]["shared.weight"], start["shared.weight"])


def test_a_smaller_density_lengthens_the_prefix(finished: Tiny, tmp_path: Path) -> None:
    assert adapt(finished, tmp_path / "half").code == 0
    assert adapt(finished, tmp_path / "tenth", "--prefix-density", 0.1).code == 0
    half, tenth = (load_t5(tmp_path / name / "model").state_dict() for name in ("half", "tenth"))
    assert not torch.equal(half["shared.weight"], tenth["shared.weight"])


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
        (("--prefix-density", 0.7), "--prefix-density: input should be less than or equal to 0.5"),
        (("--prefix-density", 0), "--prefix-density: input should be greater than 0"),
        (("--prefix-density", 0.3, "--objective", "lm"), "`prefix_density` applies to `objective: prefix_lm`"),
        (("--batch-unit", "rows", "--objective", "lm"), "`batch_unit: rows` applies to `objective: prefix_lm`"),
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
    assert "stages.lm_adapt.prefix_density: input should be less than or equal to 0.5, not 0.9" in ended.err
