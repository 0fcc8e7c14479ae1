"""config.json of the T5 family."""

from __future__ import annotations

import subprocess
import sys

import pytest

from t5_pipeline.core.errors import InputError
from t5_pipeline.modeling.config import T5Config


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


def test_without_a_model_type_the_class_decides() -> None:
    """As in google/umt5-small, -base and -xl."""
    for shape in (T5Config(), T5Config(model_type="umt5"), T5Config(model_type="mt5")):
        config = {name: value for name, value in shape.to_config().items() if name != "model_type"}
        assert T5Config.from_config(config) == shape
    assert T5Config.from_config({**config, "architectures": None}).model_type == "t5"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"model_type": "bert"},
            "model_type 'bert' is not supported; this pipeline has no layers of bert; use an encoder-decoder of the T5"
            " family: model_type t5",
        ),
        (
            {"model_type": "longt5"},
            "model_type 'longt5' is not supported; this pipeline has no local and transient-global",
        ),
        ({"d_model": None}, "d_model is None"),
        ({"num_heads": "8"}, "num_heads is '8'"),
        ({"num_heads": 0}, "num_heads is 0"),
        ({"feed_forward_proj": "gated-swish", "dense_act_fn": None}, "feed_forward_proj 'gated-swish'"),
        ({"dense_act_fn": "tanh"}, "dense_act_fn 'tanh' is not supported"),
        ({"relative_attention_num_buckets": 3}, "relative_attention_num_buckets is 3; must be at least 4"),
        ({"relative_attention_max_distance": 16}, "is 16; must be more than half of the 32 buckets"),
        ({"decoder_start_token_id": 999_999}, "decoder_start_token_id is not below vocab_size, 32,128"),
    ],
)
def test_bad_config_names_the_file_and_the_key(change: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=r"there/config\.json") as raised:
        T5Config.from_config(T5Config().to_config() | change, where="there/config.json")
    assert message in str(raised.value)


def test_config_does_not_import_torch() -> None:
    code = "import sys, t5_pipeline.modeling.config; sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
