"""ByT5's bytes: id 3 + byte, after <pad>, </s> and <unk>; no file belongs to it.

transformers names the 125 rows above the bytes <extra_id_0> …, but ByT5 was pretrained with other sentinels: the last
bytes, 0xFF (id 258) first. Those that occur in UTF-8 text are decoded as text.

Source: Xue et al. 2022 (ByT5), §3: the final 100 byte ids are the sentinels. byt5/tasks.py has a vocabulary of 259 ids,
from the last of which T5's span corruption counts down.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from t5_pipeline.data_prep.tokenizer.layout import Layout, sentinel_name
from t5_pipeline.data_prep.tokenizer.sizes import SENTINELS

BYTES = b"UTF-8 bytes"
_CONTROL = ("<pad>", "</s>", "<unk>")
_FIRST, _ABOVE = len(_CONTROL), len(_CONTROL) + 256
_ROWS = 384
_NEVER_IN_TEXT = _FIRST + 0xF5  # id of the first of the last bytes, which UTF-8 does not use


class ByteModel:
    """The text model of ByT5 (text_model.TextModel)."""

    content = BYTES
    size = _ROWS
    pad, eos, unk = range(_FIRST)
    complete = True
    normalizer = "none (bytes)"
    sentinel_ids = tuple(range(_ABOVE - 1, _ABOVE - 1 - SENTINELS, -1))
    own_sentinels = "the last bytes, by the tokenizer class"

    def id_of(self, name: str) -> int | None:
        return _ID_OF.get(name)

    def names(self) -> list[str]:
        return list(_ID_OF)

    def encode(self, texts: Sequence[str], threads: int) -> list[npt.NDArray[np.int32]]:
        return [np.frombuffer(text.encode(), np.uint8).astype(np.int32) + _FIRST for text in texts]

    def decode(self, ids: Sequence[int]) -> str:
        return bytes(i - _FIRST for i in ids if _FIRST <= i < _ABOVE).decode(errors="ignore")

    def bytes_per_id(self) -> npt.NDArray[np.int64]:
        found = np.zeros(_ROWS, np.int64)
        found[_FIRST:_ABOVE] = 1
        return found

    def in_text(self, i: int) -> bool:
        return _FIRST <= i < _NEVER_IN_TEXT

    def meaning(self) -> object:
        return self.content

    def with_tokens(self, names: Sequence[str]) -> None:
        return None

    def save(self, directory: Path, layout: Layout) -> None:
        pad, eos, unk = _CONTROL
        added = {str(_ROWS + k): {"content": name} for k, name in enumerate(layout.above)}
        config = {
            "tokenizer_class": "ByT5Tokenizer",
            "pad_token": pad,
            "eos_token": eos,
            "unk_token": unk,
            "extra_ids": _ROWS - _ABOVE,
            **({"added_tokens_decoder": added} if added else {}),
        }
        (directory / "tokenizer_config.json").write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")


_NAMES = (*_CONTROL, *(f"<0x{byte:02X}>" for byte in range(256)), *map(sentinel_name, range(_ROWS - _ABOVE)))
_ID_OF = {name: i for i, name in enumerate(_NAMES)}
