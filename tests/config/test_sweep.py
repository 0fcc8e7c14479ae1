"""Sweeps: their combinations, rungs, cost, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from t5_pipeline.config.launch import LaunchConfig
from t5_pipeline.config.soft_prompt import PromptTuneConfig
from t5_pipeline.config.sweep import SweepConfig, combination_name
from t5_pipeline.core.errors import InputError
from t5_pipeline.cost.flops import stage_memory, step_cost
from t5_pipeline.modeling.presets import SIZES

TASK = {"name": "tone", "data": "rows", "inputs": "{text}", "targets": "{label}"}


def sweep(values: dict[str, Any], **more: Any) -> PromptTuneConfig:
    return PromptTuneConfig.model_validate({"model": "m", "task": TASK, "sweep": values, "steps": 1600, **more})


def test_each_combination_is_checked_with_the_other_settings() -> None:
    c = sweep({"prompt_init": ["vocabulary", "uniform"], "learning_rate": [0.1, 0.3]}, seed=4, prompt_length=7)
    trials = c.trials()
    assert list(trials)[:2] == ["prompt_init=vocabulary,learning_rate=0.1", "prompt_init=vocabulary,learning_rate=0.3"]
    last = trials["prompt_init=uniform,learning_rate=0.3"]
    assert (last.prompt_init, last.learning_rate, last.seed, last.prompt_length, last.sweep) == (
        "uniform", 0.3, 4, 7, {},
    )  # fmt: skip
    assert (c.prompt_init, c.learning_rate) == ("vocabulary", 0.1)
    assert c.together_with(sweep(c.sweep, seed=5))
    assert not c.together_with(sweep({"prompt_init": ["vocabulary"]}))
    assert list(c.model_copy(update={"sweep": {}}).trials()) == [""]


@pytest.mark.parametrize(
    ("values", "more", "problem"),
    [
        ({"dropout": [0, 0.1]}, {}, "prompts of one batch cannot differ in it"),
        ({"learning_rates": [0.1]}, {}, "did you mean `learning_rate`"),
        ({"prompt_init": ["vocabulary"], "rank": [1, 1]}, {}, "must be a list of different values"),
        ({"prompt_init": "vocabulary"}, {}, "must be a list of different values"),
        ({"prompt_init": ["vocabulary"], "rank": [1]}, {"rank": 3}, "`rank` is also in `sweep`"),
        ({"prompt_init": ["vocabulary"], "seed": [1, 2]}, {"seed": 3}, "`seed` is also in `sweep`"),
        ({"prompt_init": ["vocabulary", "class_labels"]}, {}, "`sweep`, prompt_init=class_labels: .* needs labels"),
        ({"init_text": ["yes: a", "yes- a"]}, {"prompt_init": "text"}, "two combinations of the name init_text=yes--a"),
        ({"prompt_init": ["vocabulary"]}, {"select": "last"}, "set `select: best`"),
        ({"prompt_init": ["vocabulary"], "seed": list(range(1001))}, {}, "more than 1,000 combinations"),
        ({"prompt_init": ["vocabulary"]}, {"halving": 1}, "`halving: 1` would drop nothing"),
        ({"prompt_init": ["vocabulary"]}, {"halving": 0, "first_rung": 3}, "has no effect"),
    ],
)
def test_refused(values: dict[str, Any], more: dict[str, Any], problem: str) -> None:
    with pytest.raises(ValidationError, match=problem):
        sweep(values, **more)


def test_rungs_and_cost() -> None:
    rates = {"learning_rate": [0.1 * i for i in range(1, 17)]}
    shape, one = SIZES["small"], sweep({}, prompt_init="vocabulary")
    c = sweep(rates, prompt_init="vocabulary")
    assert c.rungs(1600) == {100: 8, 200: 4, 400: 2, 800: 1}
    assert sweep(rates, prompt_init="vocabulary", first_rung=300).rungs(1600) == {300: 8, 600: 4, 1200: 2}
    assert sweep(rates, prompt_init="vocabulary", halving=0).rungs(1600) == {}
    mine, alone = step_cost(c, shape), step_cost(one, shape)
    assert mine is not None
    assert alone is not None
    assert mine.flops / alone.flops == pytest.approx(3.0)  # 16 + 8 + 2·4 + 4·2 + 8 of 16 parts
    assert c.trained_parameters(shape) == 16 * (one.trained_parameters(shape) or 0)
    assert c.published_parameters(shape) == one.published_parameters(shape)
    assert c.schedule_depends_on_steps()
    many, single = (stage_memory([each], shape, LaunchConfig(cpu=True)) for each in (c, one))
    assert many is not None
    assert single is not None
    assert many.optimizer == 16 * single.optimizer
    assert sweep({"reparametrization": ["none", "low_rank"], "prompt_length": [10, 20]}, prompt_init="vocabulary")\
        .trained_parameters(shape) == 30 * 512 + 10 * (30 + 2 * 512)  # fmt: skip


@given(
    n=st.integers(1, 20),
    slots=st.integers(0, 21),
    halving=st.sampled_from([0, 2, 3]),
    steps=st.integers(0, 60),
    first_rung=st.integers(0, 9),
)
def test_turns(n: int, slots: int, halving: int, steps: int, first_rung: int) -> None:
    first_rung = first_rung if halving else 0
    c = SweepConfig(sweep={"seed": list(range(n))}, halving=halving, first_rung=first_rung, sweep_slots=slots)
    start, begin, count, waiting = 0, 0, n, list(range(n))
    for stretch in c.stretches(steps):
        assert (stretch.start, stretch.begin) == (start, begin)
        mine = list(range(count))[stretch.members]
        assert 1 <= len(mine) <= (slots if slots and steps else n)  # nothing trains in no steps
        assert waiting[: len(mine)] == mine
        del waiting[: len(mine)]
        start = stretch.stop
        if not waiting and stretch.end < steps:
            assert c.rungs(steps)[stretch.end] == stretch.remaining
            begin, count = stretch.end, stretch.remaining
            waiting = list(range(count))
        else:
            assert stretch.remaining is None
    assert not waiting
    assert stretch.end == steps
    assert c.run_steps(steps) == start
    assert c.prompt_steps(steps) == c.model_copy(update={"sweep_slots": 0}).prompt_steps(steps)
    if slots == 0 or slots >= n:
        assert c.run_steps(steps) == steps


def test_turns_cost_the_same_in_smaller_batches() -> None:
    rates, shape = {"learning_rate": [0.1 * i for i in range(1, 17)]}, SIZES["small"]
    whole, turns = (sweep(rates, prompt_init="vocabulary", sweep_slots=slots) for slots in (0, 4))
    assert (whole.run_steps(1600), turns.run_steps(1600)) == (1600, 4 * 100 + 2 * 100 + 200 + 400 + 800)
    costs = [step_cost(c, shape) for c in (whole, turns)]
    flops = [cost.flops * c.run_steps(1600) for cost, c in zip(costs, (whole, turns), strict=True) if cost]
    assert flops == pytest.approx([flops[0]] * 2)
    assert [len(c.at_once()) for c in (whole, turns)] == [16, 4]
    small = [c.model_copy(update={"batch_size": 1}) for c in (whole, turns)]
    memory = [found.activations for c in small if (found := stage_memory([c], shape, LaunchConfig(cpu=True)))]
    assert memory[1] < 0.5 * memory[0]
    with pytest.raises(InputError, match="skips waiting prompts, which zero2 does not"):
        sweep(rates, prompt_init="vocabulary", sweep_slots=4, optimizer="adamw").check_engine("zero2")
    whole.check_engine("fsdp2")


def test_long_values_that_end_differently_have_different_names() -> None:
    start = "default/model=lm_adapt,prompt_length=20,prompt_init=class_labels"
    names = {combination_name({"init_prompt": f"{start},task={task},seed=0"}) for task in ("subj", "field")}
    assert len(names) == 2
    assert {len(name) for name in names} == {len("init_prompt=") + 60}


def test_large_and_small_numbers_have_different_names() -> None:
    names = [combination_name({"learning_rate": rate}) for rate in (1e18, 1e-18, 0.3)]
    assert names == ["learning_rate=1e18", "learning_rate=1e-18", "learning_rate=0.3"]
