"""Sizes and parameter counts of the T5 family."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace

import pytest

from t5_pipeline.core.errors import InputError
from t5_pipeline.modeling.config import PRESETS, SIZES, T5Config

PAPER_COUNTS = {
    "small": 76_961_152,
    "base": 247_577_856,
    "large": 783_150_080,
    "xl": 2_849_757_184,
    "xxl": 11_135_332_352,
}


@pytest.mark.parametrize("size", PAPER_COUNTS)
def test_parameter_counts_are_those_of_the_paper(size: str) -> None:
    assert SIZES[size].parameters == PAPER_COUNTS[size]
    assert PRESETS[f"google/t5-v1_1-{size}"] is PRESETS[f"google/t5-{size}-lm-adapt"] is SIZES[size]


@pytest.mark.parametrize(("size", "count"), [("base", 247_586_304), ("xl", 2_849_804_288), ("xxl", 11_135_426_560)])
def test_parameter_counts_of_pile_t5(size: str, count: int) -> None:
    """Those of its model cards: T5 1.1 with position biases in every layer."""
    assert replace(SIZES[size], model_type="umt5").parameters == count


def test_parameter_counts_of_original_sizes() -> None:
    assert PRESETS["t5-small"].parameters == 60_506_624
    assert PRESETS["t5-base"].parameters == 222_903_552
    assert PRESETS["google-t5/t5-11b"].tied
    assert not PRESETS["t5-11b"].gated


@pytest.mark.parametrize("name", PRESETS)
def test_config_round_trip(name: str) -> None:
    assert T5Config.from_config(PRESETS[name].to_config()) == PRESETS[name]


@pytest.mark.parametrize(
    ("flags", "tied"),
    [
        ({}, True),
        ({"tie_word_embeddings": True}, True),
        ({"tie_word_embeddings": False}, False),  # transformers 4, T5 1.1
        ({"tie_word_embeddings": True, "scale_decoder_outputs": False}, False),  # transformers 5, T5 1.1
        ({"tie_word_embeddings": True, "scale_decoder_outputs": True}, True),
    ],
)
def test_either_flag_unties(flags: dict[str, bool], tied: bool) -> None:
    config = {
        k: v for k, v in T5Config().to_config().items() if k not in ("tie_word_embeddings", "scale_decoder_outputs")
    }
    assert T5Config.from_config(config | flags).tied is tied


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"model_type": "bert"},
            "model_type 'bert' is not supported; use an encoder-decoder of the T5 family: model_type t5",
        ),
        (
            {"model_type": "longt5"},
            "model_type 'longt5' is not supported; this pipeline has no local and transient-global",
        ),
        ({"d_model": None}, "d_model is None"),
        ({"num_heads": "8"}, "num_heads is '8'"),
        ({"num_heads": 0}, "num_heads is 0"),
        ({"feed_forward_proj": "gated-swish"}, "feed_forward_proj 'gated-swish'"),
    ],
)
def test_bad_config_names_the_file_and_the_key(change: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=r"there/config\.json") as raised:
        T5Config.from_config(T5Config().to_config() | change, where="there/config.json")
    assert message in str(raised.value)


def test_config_does_not_import_torch() -> None:
    code = "import sys, t5_pipeline.modeling.config; sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
