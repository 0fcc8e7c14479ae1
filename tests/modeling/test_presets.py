"""Sizes of published T5s, compared with published numbers of parameters."""

from __future__ import annotations

import pytest

from t5_pipeline.modeling.config import T5Config
from t5_pipeline.modeling.presets import PRESETS, SIZES

# Exact: the paper (T5 1.1), model cards (Pile-T5), and counts of loaded weights that others have published.
EXACT = {
    "google/t5-v1_1-small": 76_961_152,
    "google/t5-v1_1-base": 247_577_856,
    "google/t5-v1_1-large": 783_150_080,
    "google/t5-v1_1-xl": 2_849_757_184,
    "google/t5-v1_1-xxl": 11_135_332_352,
    "t5-small": 60_506_624,
    "t5-base": 222_903_552,
    "google/mt5-small": 300_176_768,
    "google/mt5-base": 582_401_280,
    "google/byt5-small": 299_637_760,
    "EleutherAI/pile-t5-base": 247_586_304,
    "EleutherAI/pile-t5-xl": 2_849_804_288,
    "EleutherAI/pile-t5-xxl": 11_135_426_560,
}
# As rounded in the papers of mT5, ByT5, CodeT5+, MADLAD-400 and ProtT5, and for UL2 on the hub.
ROUNDED = {
    "google/mt5-large": 1.2e9,
    "google/mt5-xl": 3.7e9,
    "google/mt5-xxl": 13e9,
    "google/byt5-base": 582e6,
    "google/byt5-large": 1.23e9,
    "google/byt5-xl": 3.74e9,
    "google/byt5-xxl": 12.9e9,
    "google/ul2": 19.46e9,
    "Salesforce/codet5p-220m": 220e6,
    "google/madlad400-10b-mt": 10.7e9,
    "Rostlab/prot_t5_xxl_uniref50": 11e9,
}


@pytest.mark.parametrize("name", EXACT)
def test_numbers_of_parameters(name: str) -> None:
    assert PRESETS[name].parameters == EXACT[name]


@pytest.mark.parametrize("name", ROUNDED)
def test_rounded_numbers_of_parameters(name: str) -> None:
    assert PRESETS[name].parameters == pytest.approx(ROUNDED[name], rel=0.03)


@pytest.mark.parametrize("name", PRESETS)
def test_config_round_trip(name: str) -> None:
    assert T5Config.from_config(PRESETS[name].to_config()) == PRESETS[name]


def test_relatives_of_t5_1_1_have_its_sizes() -> None:
    for size, shape in SIZES.items():
        assert shape is PRESETS[f"google/t5-v1_1-{size}"] is PRESETS[f"google/t5-{size}-lm-adapt"]
        assert shape is PRESETS[f"google/flan-t5-{size}"]
    assert PRESETS["google-t5/t5-11b"].tied
    assert not PRESETS["t5-11b"].gated
