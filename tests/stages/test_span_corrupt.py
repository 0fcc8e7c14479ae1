"""Span corruption and mixtures of denoisers, from flags and from a recipe."""

from __future__ import annotations

from pathlib import Path

import pytest

from t5_pipeline.config.adaptation import SpanCorruptConfig
from t5_pipeline.config.denoisers import UL2
from t5_pipeline.modeling.load import load_t5
from t5_pipeline.modeling.model_metadata import read_metadata
from tests.tiny_run import Outcome, Tiny, metrics, stage

FLAGS = (
    "--init.d-model", 16, "--init.d-kv", 4, "--init.d-ff", 24, "--init.num-layers", 1, "--init.num-decoder-layers", 1,
    "--init.num-heads", 4, "--input-length", 48, "--batch-size", 8, "--steps", 3, "--schedule", "constant",
    "--learning-rate", 0.001, "--precision", "fp32", "--log-every", 1, "--validate-every", 3, "--validation-batches", 1,
    "--threads", 1,
)  # fmt: skip


def pretrain(tiny: Tiny, output: Path, *more: object) -> Outcome:
    return stage("span_corrupt", "--tokens", tiny.run / "prepare", "--output-dir", output, *FLAGS, *more)


def test_a_mixture_packed_and_not(finished: Tiny, tmp_path: Path) -> None:
    rows, weights = [], []
    for packing in ("packing", "no-packing"):
        ended = pretrain(finished, tmp_path / packing, "--mixture", "ul2", f"--{packing}")
        assert ended.code == 0, ended.err
        rows.append([row["loss"] for row in metrics(tmp_path / packing)])
        weights.append(load_t5(tmp_path / packing / "model").state_dict())
    assert read_metadata(tmp_path / "packing" / "model").lineage[-1].objective == "mixture of denoisers"
    assert rows[0] == pytest.approx(rows[1], rel=1e-5)
    for name, tensor in weights[0].items():
        assert (tensor - weights[1][name]).norm() <= 1e-5 * tensor.norm(), name


def test_mixtures_in_a_recipe(tiny: Tiny) -> None:
    """Prefix LM and span corruption by rate; without a mixture the finished stage stays up to date."""
    assert all(line.startswith("up to date") for line in tiny.plan())
    line = "    input_length: 48\n"
    tiny.edit(line, line + "    mixture: [{rate: 3, prefix_density: 0.5}, {mean_span_length: 8}]\n")
    assert next(line for line in tiny.plan() if "pretrain" in line).startswith("run")


@pytest.mark.parametrize(
    ("mixture", "words"),
    [
        ("ul3", "mixture: there is no mixture `ul3`; did you mean `ul2`?"),
        ("[{rate: 0}]", "mixture.0.rate: must be greater than 0"),
        ("[{prefix_density: 0.5, noise_density: 0.3}]", "`prefix_density` is a prefix LM"),
        ("[{density: 0.5}]", "mixture.0.density: unknown key"),
        ("[{}, {rate: 0.0009}]", "mixture: rate 0.0009 is less than 1/1024 of the sum of the rates, 1.0009; raise it"),
    ],
)
def test_invalid_mixtures_are_named(tiny: Tiny, mixture: str, words: str) -> None:
    line = "    input_length: 48\n"
    tiny.edit(line, f"{line}    mixture: {mixture}\n")
    ended = stage("span_corrupt", "--recipe", tiny.recipe, "--run-dir", tiny.run)
    assert ended.code == 2
    assert words in ended.err


def test_lengths_for_the_plan() -> None:
    """The mean over the listed lengths is that of the mixture; rates weigh."""
    plain = {"init": {}, "tokens": "shards", "steps": 1, "input_length": 512}
    (spans,) = SpanCorruptConfig(**plain).example_lengths()
    assert spans == (512, 114)
    c = SpanCorruptConfig(**plain, mixture=UL2)
    assert SpanCorruptConfig(**plain, mixture="ul2") == c
    lengths = c.example_lengths()
    assert lengths.count((512, 114)) == 8
    assert c.longest_example() == (512, 512)
    prefix = SpanCorruptConfig(**plain, mixture=[{"rate": 3, "prefix_density": 0.5}, {"rate": 1}])
    assert prefix.example_lengths().count((512, 114)) / len(prefix.example_lengths()) == pytest.approx(0.25, rel=0.1)
