"""Special ids in a model's config."""

from __future__ import annotations

import pytest

from t5_pipeline.core.errors import InputError
from t5_pipeline.data_prep.tokenizer.special_tokens import SpecialTokens


def test_ids_of_a_config() -> None:
    assert SpecialTokens.of_config({}, "c") == SpecialTokens(0, 1, 0)
    assert SpecialTokens.of_config({"pad_token_id": 3}, "c") == SpecialTokens(3, 1, 3)
    found = SpecialTokens.of_config({"pad_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 0}, "c")
    assert found == SpecialTokens(1, 2, 0)
    assert SpecialTokens.of_config(found.to_config(), "c") == found
    for wrong in (-1, "0", True, [1]):
        with pytest.raises(InputError, match=r"c: eos_token_id is .*; must be an id"):
            SpecialTokens.of_config({"eos_token_id": wrong}, "c")
