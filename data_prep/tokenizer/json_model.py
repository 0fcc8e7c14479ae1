"""tokenizer.json of the `tokenizers` library, for T5s without a SentencePiece model: CodeT5's byte-level BPE.

The content is the file without post-processor, truncation and padding, which change what is added to a text, not its
ids: batches are made here. Names of special tokens in a text are text.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors

from t5_pipeline.core.bounded import read_file, read_object
from t5_pipeline.core.errors import InputError, one_line
from t5_pipeline.data_prep.tokenizer.layout import Layout, sentinel_name, token_name

_LARGEST = 2**28  # bytes
_MOST_IDS = 2**22  # a file of a few bytes can name any id, and each id below it would get a name
_REPAIR = "save the tokenizer again"
_NOT_IDS = ("post_processor", "truncation", "padding")


class JsonModel:
    """A tokenizer of the `tokenizers` library (text_model.TextModel).

    Raises:
        InputError: if the library cannot read it.
    """

    pad = eos = -1
    complete = True
    own_sentinels = "by name among the pieces"

    def __init__(self, content: bytes, where: str = "tokenizer.json") -> None:
        try:
            self.tokenizer: Tokenizer = Tokenizer.from_str(content.decode())
        except Exception as error:  # the library raises plain Exception
            reason = one_line(error)
            raise InputError(f"{where}: is not a tokenizer ({reason:.100}); save the tokenizer again") from None
        self.tokenizer.encode_special_tokens = True
        self.content = content
        ids: dict[str, int] = self.tokenizer.get_vocab(with_added_tokens=True)
        self._ids = ids
        self.size = max(ids.values(), default=-1) + 1
        if self.size > _MOST_IDS:
            raise InputError(f"{where}: has id {self.size - 1:,}, above {_MOST_IDS:,}; save the tokenizer again")
        described = json.loads(content)
        model = described["model"]
        self.normalizer = str((described.get("normalizer") or {"type": "none"})["type"])
        unk = ids.get(str(model.get("unk_token")))
        unk = model.get("unk_id") if unk is None else unk
        self.unk: int = -1 if unk is None else unk
        self._byte_level = '"ByteLevel"' in json.dumps(described.get("decoder"))
        self._special = {token["id"] for token in described.get("added_tokens") or [] if token.get("special")}
        self.sentinel_ids = self._sentinels()

    def _sentinels(self) -> tuple[int, ...]:
        found: list[int] = []
        while sentinel_name(len(found)) in self._ids:
            found.append(self._ids[sentinel_name(len(found))])
        return tuple(found)

    def id_of(self, name: str) -> int | None:
        return self._ids.get(name)

    def names(self) -> list[str]:
        found = [f"<unused {i}>" for i in range(self.size)]
        for name, i in self._ids.items():
            found[i] = name
        return found

    def encode(self, texts: Sequence[str], threads: int) -> list[npt.NDArray[np.int32]]:
        if threads > 1:
            encoded = self.tokenizer.encode_batch(list(texts), add_special_tokens=False)
        else:
            encoded = [self.tokenizer.encode(text, add_special_tokens=False) for text in texts]
        return [np.array(one.ids, np.int32) for one in encoded]

    def decode(self, ids: Sequence[int]) -> str:
        return str(self.tokenizer.decode(list(ids), skip_special_tokens=True))

    def bytes_per_id(self) -> npt.NDArray[np.int64]:
        def count(i: int, name: str) -> int:
            if i in self._special:
                return 0
            return len(name) if self._byte_level else len(name.replace("\u2581", " ").encode())

        return np.array([count(i, name) for i, name in enumerate(self.names())], np.int64)

    def in_text(self, i: int) -> bool:
        return False

    def meaning(self) -> object:
        return self.content

    def with_tokens(self, names: Sequence[str]) -> JsonModel:
        """The same tokenizer with more special tokens after its ids."""
        tokenizer = Tokenizer.from_str(self.content.decode())
        tokenizer.add_special_tokens([AddedToken(name, normalized=False) for name in names])
        return JsonModel(_content(json.loads(tokenizer.to_str())))

    def save(self, directory: Path, layout: Layout) -> None:
        names, special = self.names(), layout.special
        eos = names[special.eos]
        ends = Tokenizer.from_str(self.content.decode())
        ends.post_processor = processors.TemplateProcessing(
            single=["$A", eos], pair=["$A", eos, "$B", eos], special_tokens=[(eos, special.eos)]
        )
        whole = {**json.loads(self.content), "post_processor": json.loads(ends.to_str())["post_processor"]}
        (directory / "tokenizer.json").write_text(json.dumps(whole, ensure_ascii=False), encoding="utf-8")
        config = {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "eos_token": eos,
            "pad_token": names[special.pad],
            **({"unk_token": names[self.unk]} if self.unk >= 0 else {}),
            "additional_special_tokens": [names[i] for i in self.sentinel_ids],
            "split_special_tokens": True,
            "clean_up_tokenization_spaces": False,
        }
        (directory / "tokenizer_config.json").write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")


def json_content(path: Path) -> bytes | None:
    """The content of a tokenizer.json; None if it contains no model.

    Raises:
        InputError: if it is not a JSON object.
        AttributeError, KeyError, TypeError: if it is damaged otherwise.
    """
    whole = read_object(path, _REPAIR)
    return _content(whole) if isinstance(whole.get("model"), dict) else None


def bpe_content(vocabulary: Path) -> bytes:
    """The content for a byte-level BPE in vocab.json and merges.txt, as CodeT5 and RoBERTa are published.

    Special tokens are those of added_tokens.json and of special_tokens_map.json beside them.

    Raises:
        InputError: if the files do not fit one another, or one is not a JSON object.
        AttributeError, KeyError, TypeError, ValueError: if one is damaged otherwise.
    """
    ids: dict[str, int] = read_object(vocabulary, _REPAIR)
    merges_at = vocabulary.with_name("merges.txt")
    content = read_file(merges_at, _LARGEST)
    try:
        lines = content.decode().split("\n")
        pairs = [line.split(" ") for line in lines if line.strip() and not line.startswith("#version")]
        merges = [(left, right) for left, right in pairs]
        unk = "<unk>" if "<unk>" in ids else None
        tokenizer = Tokenizer(models.BPE(ids, merges, unk_token=unk))
    except Exception as error:  # the library raises plain Exception
        raise InputError(f"{merges_at}: does not fit vocab.json ({error}); fetch both again") from None
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    added = _beside(vocabulary, "added_tokens.json")
    special = [
        token_name(token) for value in _beside(vocabulary, "special_tokens_map.json").values() for token in _each(value)
    ]
    known = [name for name in special if name in ids]
    for name in [*known, *sorted(added, key=lambda name: int(added[name])), *special]:
        tokenizer.add_special_tokens([AddedToken(name, normalized=False)])
        if name in added and tokenizer.token_to_id(name) != added[name]:
            raise InputError(
                f"{vocabulary.with_name('added_tokens.json')}: {name} is id {added[name]}, but after {vocabulary} it"
                f" would be {tokenizer.token_to_id(name)}; use the files of one tokenizer"
            )
    return _content(json.loads(tokenizer.to_str()))


def _content(whole: dict[str, Any]) -> bytes:
    kept = {key: value for key, value in whole.items() if key not in _NOT_IDS}
    for token in kept.get("added_tokens") or []:
        token["special"] |= str(token["content"]).startswith("<extra_id_")  # transformers does not mark all of them
    return json.dumps(kept, sort_keys=True, ensure_ascii=False).encode()


def _beside(vocabulary: Path, name: str) -> dict[str, Any]:
    path = vocabulary.with_name(name)
    return read_object(path, _REPAIR) if path.is_file() else {}


def _each(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]
