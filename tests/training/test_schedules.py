"""Schedules against the numbers of the paper's code (T5X counts completed steps; the first step is 0)."""

from __future__ import annotations

import math

import pytest

from t5_pipeline.config.training import TrainingConfig
from t5_pipeline.training.schedules import learning_rate, schedule_of


def test_the_rate_of_lm_adaptation_goes_from_1e3_to_95e5() -> None:
    rate = learning_rate("rsqrt", peak=1.0, warmup_steps=10_000, step_offset=1_000_000)
    assert rate(0) == pytest.approx(1e-3, rel=1e-12)
    assert rate(100_000) == pytest.approx(9.5e-4, rel=5e-3)


def test_rsqrt_is_constant_during_warm_up() -> None:
    rate = learning_rate("rsqrt", peak=2.0, warmup_steps=10_000)
    assert rate(0) == rate(9_999) == rate(10_000) == 0.02
    assert rate(10_001) == 2.0 / math.sqrt(10_001)
    assert learning_rate("rsqrt", peak=1.0)(0) == 1.0


def test_constant_rate_never_changes() -> None:
    rate = learning_rate("constant", peak=0.3)
    assert {rate(step) for step in (0, 1, 29_999, 10**9)} == {0.3}


def test_linear_falls_to_zero_at_the_last_step_and_stays_there() -> None:
    rate = learning_rate("linear", peak=1.0, total_steps=1_500)
    assert rate(0) == 1.0
    assert rate(750) == 0.5
    assert rate(1_499) == pytest.approx(1 / 1_500)
    assert rate(1_500) == rate(2_000) == 0.0


def test_warm_up_rises_to_the_peak_and_linear_falls_from_there() -> None:
    rate = learning_rate("linear", peak=1.0, warmup_steps=10, total_steps=110)
    assert [round(rate(step), 6) for step in (0, 4, 9, 10, 60, 110)] == [0.1, 0.5, 1.0, 1.0, 0.5, 0.0]
    assert learning_rate("constant", peak=0.3, warmup_steps=10)(4) == pytest.approx(0.15)


@pytest.mark.parametrize(("schedule", "rates"), [
    ("constant", [0.1, 0.4, 0.4]),
    ("rsqrt", [0.4 / 96**0.5, 0.4 / 100**0.5, 0.4 / 101**0.5]),
    ("linear", [0.1, 0.4, 0.3]),
])  # fmt: skip
def test_the_settings_of_a_stage_decide_its_rate(schedule: str, rates: list[float]) -> None:
    c = TrainingConfig(learning_rate=0.4, schedule=schedule, steps=8, warmup_steps=4, step_offset=96)
    assert [schedule_of(c)(step) for step in (0, 4, 5)] == pytest.approx(rates)


def test_an_unknown_schedule_is_named() -> None:
    with pytest.raises(ValueError, match="`cosine`"):
        learning_rate("cosine", peak=1.0)
