"""The cost of probes, and its bound."""

from __future__ import annotations

import re

import pytest

from t5_pipeline.config.adaptation import LMAdaptConfig
from t5_pipeline.core.errors import InputError
from t5_pipeline.cost.flops import forward_flops, step_cost, training_flops
from t5_pipeline.cost.probes import probe_cost
from t5_pipeline.data_prep.tasks.config import TaskConfig
from t5_pipeline.modeling.presets import PRESETS

BASE = PRESETS["google/t5-v1_1-base"]
TASK = TaskConfig(name="tone", data="rows", inputs="{text}", targets="{tone}", labels=["good", "bad"])


def settings(**more: object) -> LMAdaptConfig:
    return LMAdaptConfig(model="google/t5-v1_1-base", tokens="shards", **{"steps": 4000, "batch_size": 64, **more})  # type: ignore[arg-type]


def test_flops_of_probes() -> None:
    c = settings(probe=[TASK])
    found, step = probe_cost(c, BASE), step_cost(c, BASE)
    assert found is not None
    assert step is not None
    lengths = (128 + 20, len("good") + 2)
    row, trained = forward_flops(BASE, *lengths), training_flops(BASE, *lengths, frozen=True)
    # 3 prompts: 50 steps of 16 rows, and 100 rows decoded and scored by 2 labels.
    assert found.flops == pytest.approx(3 * (50 * 16 * trained + 100 * 3 * row))
    assert found.share == pytest.approx(5 * found.flops / (4000 * step.flops))
    assert probe_cost(settings(), BASE) is None


def test_the_named_interval_is_the_smallest_within_the_bound() -> None:
    with pytest.raises(InputError) as error:
        probe_cost(settings(probe=[TASK], probe_every=1), BASE)
    found = re.search(r"give at least ([\d,]+), or raise probe_cost, now 0.1", str(error.value))
    assert found is not None
    least = int(found[1].replace(",", ""))
    cost = probe_cost(settings(probe=[TASK], probe_every=least), BASE)
    assert cost is not None
    assert cost.share <= 0.1
    with pytest.raises(InputError):
        probe_cost(settings(probe=[TASK], probe_every=least - 1), BASE)
    with pytest.raises(InputError, match="lower probe_steps, or raise probe_cost"):
        probe_cost(settings(probe=[TASK], steps=2), BASE)


def test_probes_shape_the_result_only_with_patience() -> None:
    """The settings in the fingerprint, so finished stages stay up to date."""
    plain, probed = settings(), settings(probe=[TASK], probe_every=7)
    assert plain.shaping() == probed.shaping()
    assert not any(name.startswith("probe") for name in plain.shaping())
    patient = settings(probe=[TASK], probe_patience=2)
    assert {"probe", "probe_every", "probe_patience", "probe_steps"} <= set(patient.shaping())
    assert patient.selects_by() == {"tone": ["accuracy"]}
