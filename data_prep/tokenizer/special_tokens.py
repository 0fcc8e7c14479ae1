"""Ids that a T5 and its batches treat specially: padding, EOS and the decoder's first id."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from t5_pipeline.core.errors import InputError

CONFIG_KEYS = {"pad": "pad_token_id", "eos": "eos_token_id", "start": "decoder_start_token_id"}
"""Fields of SpecialTokens, and their keys in config.json."""


@dataclass(frozen=True)
class SpecialTokens:
    """The special ids of a T5. Defaults are T5's.

    Attributes:
        pad: padding of batches; never read and never a target.
        eos: end of inputs and targets.
        start: the decoder's first input.
    """

    pad: int = 0
    eos: int = 1
    start: int = 0

    @classmethod
    def of_config(cls, config: Mapping[str, Any], where: str) -> SpecialTokens:
        """The ids in a transformers `config.json`; as there, T5's for those that it does not contain.

        Raises:
            InputError: if a value is not an id.
        """
        found = {}
        for field, key in CONFIG_KEYS.items():
            value = config.get(key)
            if value is not None and (type(value) is not int or value < 0):
                raise InputError(f"{where}: {key} is {value!r}; must be an id, 0 or above; fix the file")
            found[field] = value
        pad = found["pad"] or 0
        return cls(pad, 1 if found["eos"] is None else found["eos"], pad if found["start"] is None else found["start"])

    def to_config(self) -> dict[str, int]:
        """The entries of `config.json` and `generation_config.json`."""
        return {key: getattr(self, field) for field, key in CONFIG_KEYS.items()}


T5_TOKENS = SpecialTokens()
