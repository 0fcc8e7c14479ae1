"""Cost of a step: FLOPs compared with torch's counter, lengths with the objectives."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from t5_pipeline.artifacts.run_dir import RunDir
from t5_pipeline.config.adaptation import LMAdaptConfig, SpanCorruptConfig
from t5_pipeline.config.launch import LaunchConfig
from t5_pipeline.config.recipe import load_recipe
from t5_pipeline.config.soft_prompt import PromptMixtureConfig, PromptTuneConfig
from t5_pipeline.config.tuning import ModelTuneConfig, PeftTuneConfig
from t5_pipeline.cost.flops import (
    forward_flops,
    microbatches,
    shape_of,
    stage_memory,
    step_cost,
    training_flops,
    training_footprint,
)
from t5_pipeline.cost.memory import training_memory
from t5_pipeline.data_prep.objectives.denoisers import denoiser
from t5_pipeline.data_prep.objectives.prefix_lm import PrefixLM
from t5_pipeline.data_prep.objectives.span_corruption import SpanCorruption
from t5_pipeline.data_prep.sampling.microbatching import CPU, CPU_BF16_WEIGHTS, GPU
from t5_pipeline.data_prep.sampling.packed_rows import PackedRows
from t5_pipeline.modeling import layers
from t5_pipeline.modeling.attention import attention_reference
from t5_pipeline.modeling.config import T5Config
from t5_pipeline.modeling.load import init_t5, save_t5
from t5_pipeline.modeling.presets import SIZES
from t5_pipeline.modeling.prompt_bank import PromptBank, PromptedT5

LABELS = {"name": "tone", "data": "rows", "inputs": "{text}", "targets": "{label}", "labels": ["good", "very bad"]}
FREE = {"name": "free", "data": "rows", "inputs": "{text}", "targets": "{answer}", "metrics": ["exact_match"]}


def lm(**settings: Any) -> LMAdaptConfig:
    return LMAdaptConfig(
        **{"model": "m", "tokens": "t", "steps": 10, "batch_size": 16, "segment_length": 64} | settings
    )


def prompt(**settings: Any) -> PromptTuneConfig:
    return PromptTuneConfig(**{"model": "m", "task": LABELS, "prompt_length": 20, "max_input_length": 50} | settings)


@pytest.mark.parametrize("gated", [True, False])
def test_flops_equal_those_of_torch(gated: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    shape = T5Config(
        vocab_size=300, d_model=48, d_kv=8, d_ff=80, num_layers=3, num_decoder_layers=2, num_heads=5,
        gated=gated, activation="gelu_new" if gated else "relu", tied=not gated,
    )  # fmt: skip

    def attend(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, mask: None = None) -> Tensor:
        return attention_reference(q, k, v, bias)  # torch does not count all fused kernels

    monkeypatch.setattr(layers, "attend", attend)
    model = init_t5(shape, seed=0)
    ids_BS, ids_BT = torch.full((2, 24), 7), torch.full((2, 16), 7)
    with FlopCounterMode(display=False) as forward:
        loss = model(ids_BS, ids_BT).sum()
    assert forward.get_total_flops() == 2 * forward_flops(shape, 24, 16)
    with FlopCounterMode(display=False) as backward:
        loss.backward()
    assert backward.get_total_flops() == 2 * forward.get_total_flops()
    assert 3 * forward.get_total_flops() == 2 * training_flops(shape, 24, 16, frozen=False)

    # The decoder's first self-attention has no gradient, which is not taken into account; here it is small.
    prompted = PromptedT5(model, PromptBank([torch.ones(90, 48)]))
    with FlopCounterMode(display=False) as both:
        prompted(torch.zeros(2, dtype=torch.long), ids_BS, ids_BT[:, :5]).sum().backward()
    assert both.get_total_flops() == pytest.approx(2 * training_flops(shape, 90 + 24, 5, frozen=True), rel=0.005)


def test_weights_say_whether_a_new_t5_of_transformers_is_tied(tmp_path: Path) -> None:
    """transformers 5 writes the same config.json for a T5 1.1 with and without an output matrix of its own."""
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("name: x\nstages: {sentinel: {model: MODEL}}\n".replace("MODEL", str(tmp_path / "model")))
    for tied in (True, False):
        shape = T5Config(
            96, d_model=16, d_kv=8, d_ff=32, num_layers=1, num_decoder_layers=1, num_heads=2, tied=tied, scaled=False
        )
        model = init_t5(shape, seed=0)
        save_t5(model, tmp_path / "model")
        config = tmp_path / "model/config.json"
        config.write_text(config.read_text().replace('"tie_word_embeddings": false', '"tie_word_embeddings": true'))
        loaded = load_recipe(recipe)
        found = shape_of(loaded, RunDir(tmp_path / "run"), loaded.stages["sentinel"][0])
        assert found is not None
        assert found.parameters == sum(p.numel() for p in model.parameters())


def test_a_new_t5_has_the_vocabulary_of_its_own_cell_of_prepare(tmp_path: Path) -> None:
    (tmp_path / "small.yaml").write_text("""\
name: small
stages:
  prepare: {corpus: stdlib-docs, matrix: {vocabulary_size: [1000, 4000]}}
  pretrain:
    uses: span_corrupt
    init: {d_model: 64}
    steps: 10
    matrix: {tokens: [prepare/vocabulary_size=1000, prepare/vocabulary_size=4000]}
""")
    recipe = load_recipe(tmp_path / "small.yaml")
    shapes = [shape_of(recipe, RunDir(tmp_path / "run"), cell) for cell in recipe.stages["pretrain"]]
    assert [shape and shape.vocab_size for shape in shapes] == [1152, 4224]


def test_step_of_each_kind() -> None:
    shape = SIZES["small"]
    adapted, tuned = step_cost(lm(), shape), step_cost(prompt(batch_size=4), shape)
    assert adapted is not None
    assert adapted.tokens == 16 * 64
    assert tuned is not None
    assert (tuned.tokens, tuned.flops) == (4 * (70 + 10), 4 * training_flops(shape, 70, 10, frozen=True))
    of_prompts = set(PromptTuneConfig.model_fields) - set(PromptMixtureConfig.model_fields)
    mixed = step_cost(PromptMixtureConfig(**prompt(batch_size=4).model_dump(exclude=of_prompts), components=3), shape)
    assert mixed is not None
    assert mixed.flops == 3 * tuned.flops
    peft = PeftTuneConfig(model="m", task=LABELS, method="prefix_tuning")
    assert step_cost(peft, shape) is None
    assert stage_memory([peft], shape, LaunchConfig()) is None


@pytest.mark.parametrize("length", [64, 128, 256, 512, 1024])
def test_span_corruption_lengths_equal_those_of_the_objective(length: int) -> None:
    class Nothing:
        lengths_N = torch.zeros(0).numpy()

    objective = SpanCorruption(Nothing(), 0, length, sentinel_ids=range(32_099, 31_999, -1))  # type: ignore[arg-type]
    c = SpanCorruptConfig(model="m", tokens="t", steps=1, input_length=length)
    assert c.example_lengths() == [(length, objective.target_length)]


@pytest.mark.parametrize("density", [0.15, 0.5])
def test_denoiser_lengths_equal_those_of_the_objective(density: float) -> None:
    """At density 0.5, inputs of 512 tokens would have more spans than there are sentinels."""

    class Nothing:
        lengths_N = torch.zeros(0).numpy()

    of_it: dict[str, float] = {"noise_density": density, "mean_span_length": 3.0}
    made = denoiser(Nothing(), 0, 512, **of_it, sentinel_ids=range(100))  # type: ignore[arg-type]
    assert isinstance(made.objective, SpanCorruption)
    c = SpanCorruptConfig(model="m", tokens="t", steps=1, input_length=512, mixture=[of_it])
    assert set(c.example_lengths()) == {(made.objective.input_length, made.target_length)}
    assert c.longest_example() == (512, made.target_length)  # packed rows are as wide as the setting


def test_prefix_lm_lengths_add_up() -> None:
    assert {inputs + targets for inputs, targets in lm().example_lengths()} == {64}
    assert min(inputs for inputs, _ in lm(prefix_density=0.25).example_lengths()) > 32
    assert lm(objective="lm").example_lengths() == [(1, 64)]


def test_tokens_of_a_step_equal_those_of_its_packed_rows() -> None:
    """Of documents as long as those of C4, in lognormal lengths of mean 427."""

    class Documents:
        lengths_N = np.random.default_rng(0).lognormal(np.log(427) - 0.5, 1, 4_000).astype(int) + 1

    objective = PrefixLM(Documents(), 0, 512)  # type: ignore[arg-type]
    rows = PackedRows(objective, 0, (512, 512))
    inputs, targets = objective.lengths(0, rows.examples_of(0, np.arange(300)))
    adapted = step_cost(lm(segment_length=512, batch_size=300, batch_unit="rows"), SIZES["small"])
    assert adapted is not None
    assert adapted.tokens == pytest.approx(inputs.sum() + targets.sum(), rel=0.03)


def test_microbatches_with_long_inputs_have_short_targets() -> None:
    by_four = microbatches([lm(packing=False, microbatch_size=4)], 16, CPU)
    assert by_four == [(4, 16, 64), (4, 32, 48), (4, 48, 32), (4, 64, 16)]
    assert microbatches([lm(microbatch_size=3)], 4, CPU) == [(3, 64, 64), (1, 64, 64)]


def test_microbatches_by_tokens() -> None:
    """At most 8,192 on a CPU and 32,768 on a GPU, without prompts and components; at least one row."""
    assert microbatches([prompt(), prompt(prompt_length=5)], 2, CPU) == [(2, 20 + 56, 16)]
    task = prompt(max_input_length=504)
    assert {rows for rows, _, _ in microbatches([task], 150, CPU)} == {8192 // (504 + 16)}
    assert max(rows for rows, _, _ in microbatches([task], 150, GPU)) == 32_768 // (504 + 16)
    assert {rows for rows, _, _ in microbatches([prompt(max_input_length=40_000)], 3, GPU)} == {1}
    even = microbatches([lm(packing=False)], 16, CPU)
    assert len(microbatches([lm(packing=False)], 16, CPU_BF16_WEIGHTS)) < len(even)
    assert sum(rows for rows, _, _ in even) == 16
    assert sum(rows * (inputs + targets) + 128 for rows, inputs, targets in even) < 16 * 128 + 128


def test_targets_with_labels_are_short() -> None:
    assert prompt().longest_target() == len("very bad") + 2
    assert prompt(task=FREE, prompt_init="vocabulary").longest_target() == 128
    both = ModelTuneConfig(model="m", tasks=[LABELS, FREE], max_target_length=32)
    assert both.longest_target() == 32


@pytest.mark.parametrize(
    ("settings", "keeps"),
    [({}, True), ({"compile": False}, False), ({"recompute": True}, False), ({"cuda_graphs": False}, False)],
)
def test_microbatches_are_cuda_graphs_as_in_training(settings: dict[str, bool], keeps: bool) -> None:
    shape, stage = SIZES["base"], lm(batch_size=8, **settings)
    on_gpu, on_cpu = (training_footprint([stage], shape, LaunchConfig(cpu=cpu)) for cpu in (False, True))
    assert on_gpu is not None
    assert on_cpu is not None
    assert (on_gpu.cuda_graphs, on_cpu.cuda_graphs) == (keeps, False)
    sharded = training_footprint([stage], shape, LaunchConfig("fsdp2", 8))
    assert sharded is not None
    assert not sharded.cuda_graphs
    without = training_memory(shape, replace(on_gpu, cuda_graphs=False), LaunchConfig())
    assert (training_memory(shape, on_gpu, LaunchConfig()).peak > without.peak) == keeps


def test_microbatches_of_a_process() -> None:
    shape, eight = SIZES["small"], LaunchConfig("ddp", 8)
    settings = lm(batch_size=64, microbatch_size=4)
    alone, shared = training_footprint([settings], shape, LaunchConfig()), training_footprint([settings], shape, eight)
    assert alone is not None
    assert shared is not None
    assert (alone.microbatch.rows, alone.accumulates, shared.microbatch.rows, shared.accumulates) == (4, True, 4, True)
    whole = training_footprint([lm(batch_size=64)], shape, eight)
    assert whole is not None
    assert (whole.microbatch.rows, whole.accumulates) == (8, False)
    joint = training_footprint([prompt(), prompt(prompt_length=30)], shape, LaunchConfig())
    assert joint is not None
    assert (joint.numbers, joint.microbatch.rows, joint.microbatch.inputs) == (50 * 512, 64, 30 + 56)
