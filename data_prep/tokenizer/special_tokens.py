"""Ids with a fixed meaning: padding, EOS, the decoder's first id, and the sentinels.

They are found by name in the tokenizer and by id in the model's config, and never computed from one another. If two
files disagree, the model would read other ids than it was trained with, so that is an error which shows both.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from t5_pipeline.core.bounded import read_object
from t5_pipeline.core.errors import InputError
from t5_pipeline.data_prep.tokenizer.sizes import SENTINELS

if TYPE_CHECKING:  # commands that read no text must not wait for it
    import sentencepiece

_MOST_SENTINELS = 100_000

MODEL_FILE = "spiece.model"
TOKENIZER_FILES = ("tokenizer_config.json", "added_tokens.json")
CONFIG_FILES = ("config.json", "generation_config.json")

_CONFIG_KEYS = {"pad": "pad_token_id", "eos": "eos_token_id", "start": "decoder_start_token_id"}


@dataclass(frozen=True)
class SpecialTokens:
    """The ids that a T5 and its batches treat specially. Defaults are T5's.

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
        for field, key in _CONFIG_KEYS.items():
            value = config.get(key)
            if value is not None and (type(value) is not int or value < 0):
                raise InputError(f"{where}: {key} is {value!r}; must be an id, 0 or above; fix the file")
            found[field] = value
        pad = found["pad"] or 0
        return cls(pad, 1 if found["eos"] is None else found["eos"], pad if found["start"] is None else found["start"])

    def to_config(self) -> dict[str, int]:
        """The entries of `config.json` and `generation_config.json`."""
        return {key: getattr(self, field) for field, key in _CONFIG_KEYS.items()}


T5_TOKENS = SpecialTokens()


@dataclass(frozen=True)
class Layout:
    """The meaning of a vocabulary's ids.

    Attributes:
        above: names of the ids above the pieces, in the order of their ids.
        special: padding, EOS and the decoder's first id.
        found: how the sentinels were found, for people.
    """

    above: tuple[str, ...]
    special: SpecialTokens
    found: str = dataclasses.field(default="T5's own, above the pieces", compare=False)

    @classmethod
    def of_t5(cls, sentinels: int, special: SpecialTokens) -> Layout:
        """T5's: sentinels above the pieces, extra_id_0 highest."""
        return cls(tuple(sentinel_name(j) for j in reversed(range(sentinels))), special)

    @classmethod
    def find(cls, pieces: sentencepiece.SentencePieceProcessor, files: Mapping[str, Path], where: str) -> Layout:
        """The layout that the files beside a SentencePiece model describe.

        Args:
            files: those of TOKENIZER_FILES and CONFIG_FILES that exist, by name.
            where: the SentencePiece model, for errors.

        Raises:
            InputError: if two files disagree, a file is damaged, or a token has no counterpart in T5.
        """
        contents = {name: read_object(path, f"fix it or give the {MODEL_FILE} file") for name, path in files.items()}
        settings = contents.get("tokenizer_config.json", {})
        config_at = str(files.get("tokenizer_config.json", where))
        own, added = sentinels_of(pieces), _added_tokens(contents, files)
        above, found = _above(pieces, own, settings, config_at, added, where)
        special = _special(pieces, settings, config_at, where)
        for name in CONFIG_FILES:
            if name in files:
                special = _agreeing(special, contents[name], str(files[name]), where, decides=name == "config.json")
        return cls(above, special, found)


def sentinel_name(j: int) -> str:
    return f"<extra_id_{j}>"


def sentinels_of(pieces: sentencepiece.SentencePieceProcessor) -> tuple[int, ...]:
    """Ids of the sentinels that are pieces themselves, in the order of their numbers (mT5's names begin with ▁)."""
    found: list[int] = []
    while True:
        for name in (sentinel_name(len(found)), f"▁{sentinel_name(len(found))}"):
            i = pieces.piece_to_id(name)
            if pieces.id_to_piece(i) == name:
                found.append(i)
                break
        else:
            return tuple(found)


def _above(
    pieces: sentencepiece.SentencePieceProcessor,
    own: tuple[int, ...],
    settings: Mapping[str, Any],
    config_at: str,
    added: Mapping[str, tuple[int, str]],
    where: str,
) -> tuple[tuple[str, ...], str]:
    """The names of the ids above the pieces, and how they were found."""
    count = pieces.get_piece_size()
    extra_ids = settings.get("extra_ids")
    if extra_ids is not None and (type(extra_ids) is not int or not 0 <= extra_ids < _MOST_SENTINELS):
        raise InputError(f"{config_at}: `extra_ids` is {extra_ids!r:.50}, not a number of sentinels; fix it")
    if own and extra_ids:
        raise InputError(
            f"{config_at}: `extra_ids` is {extra_ids}, but {where} contains {len(own)} sentinels itself"
            f" ({pieces.id_to_piece(own[0])} is id {own[0]}); set `extra_ids` to 0"
        )
    known = {pieces.id_to_piece(i): i for i in map(pieces.piece_to_id, added)}
    known |= {sentinel_name(j): i for j, i in enumerate(own)}
    others = {}
    named: dict[int, str] = {}
    for name, (i, file) in added.items():
        if name in known:
            if known[name] != i:
                raise InputError(
                    f"{file}: {name} is id {i}, but {where} says {known[name]}; use the files of one tokenizer"
                )
        elif name.startswith("<extra_id_"):
            named[i] = name
        else:
            others[name] = (i, file)
    if others:
        listed = ", ".join(f"{name} (id {i})" for name, (i, _) in list(others.items())[:5])
        file = next(iter(others.values()))[1]
        raise InputError(
            f"{file}: adds {len(others)} tokens to T5's vocabulary: {listed}; SentencePiece cannot read them, so use a"
            " T5 without added tokens"
        )
    if named:
        above = tuple(named[i] for i in sorted(named))
        in_row = sorted(named) == list(range(count, count + len(named)))
        if not in_row or {*above} != {sentinel_name(j) for j in range(len(above))}:
            file = next(iter(added.values()))[1]
            raise InputError(
                f"{file}: the sentinels have ids {min(named)} to {max(named)}, but {where} has {count} pieces, above"
                " which they must follow from <extra_id_0> on without a gap; use the files of one tokenizer"
            )
        if extra_ids is not None and extra_ids != len(above):
            raise InputError(
                f"{config_at}: `extra_ids` is {extra_ids}, but {len(above)} sentinels are listed as added tokens; use"
                " the files of one tokenizer"
            )
        return above, f"by name among the added tokens of {Path(next(iter(added.values()))[1]).name}"
    if own:
        found = f"by name among the pieces of {Path(where).name}"
    elif extra_ids is None:
        found = "no file lists them, so T5's 100 above the pieces"
    else:
        found = f"`extra_ids` of {Path(config_at).name}, above the pieces"
    if extra_ids is None:
        extra_ids = 0 if own else SENTINELS
    return Layout.of_t5(extra_ids, T5_TOKENS).above, found


def _added_tokens(contents: Mapping[str, Any], files: Mapping[str, Path]) -> dict[str, tuple[int, str]]:
    """Name → (id, file) of every added token.

    Raises:
        InputError: if a token has two ids.
    """
    pairs: list[tuple[str, object, str]] = []
    for number, token in dict(contents.get("tokenizer_config.json", {}).get("added_tokens_decoder") or {}).items():
        name = token.get("content") if isinstance(token, dict) else token
        pairs.append((str(name), int(number) if str(number).isdigit() else number, "tokenizer_config.json"))
    pairs += [(str(name), i, "added_tokens.json") for name, i in contents.get("added_tokens.json", {}).items()]
    for token in contents.get("tokenizer.json", {}).get("added_tokens") or []:
        pairs.append((str(token["content"]), token["id"], "tokenizer.json"))
    found: dict[str, tuple[int, str]] = {}
    for name, i, file in pairs:
        where = str(files[file])
        if type(i) is not int:
            raise InputError(f"{where}: the id of {name} is {i!r}, not a number; fix the file")
        if name in found and found[name][0] != i:
            raise InputError(f"{where}: {name} is id {i}, but {found[name][1]} says {found[name][0]}; fix one of them")
        found[name] = (i, where)
    return found


def _special(
    pieces: sentencepiece.SentencePieceProcessor, settings: Mapping[str, Any], config_at: str, where: str
) -> SpecialTokens:
    """Padding and EOS by the tokenizer's names; the decoder starts with padding unless a config says otherwise."""
    ids = {}
    for field, i in (("pad", pieces.pad_id()), ("eos", pieces.eos_id())):
        name = settings.get(f"{field}_token")
        name = name.get("content") if isinstance(name, dict) else name
        if name is not None:
            named = pieces.piece_to_id(str(name))
            if pieces.id_to_piece(named) != name:
                raise InputError(
                    f"{config_at}: {field}_token {name!r} is not a piece of {where}; use its own tokenizer"
                )
            if i not in (-1, named):
                raise InputError(
                    f"{config_at}: {field}_token is {name!r} (id {named}), but {where} has"
                    f" {pieces.id_to_piece(i)!r} (id {i}); use the files of one tokenizer"
                )
            i = named
        ids[field] = i
    if min(ids["pad"], ids["eos"], pieces.unk_id()) < 0:
        raise InputError(
            f"{where}: has pad {ids['pad']}, eos {ids['eos']} and unk {pieces.unk_id()} (−1: none); T5 needs all three;"
            " use T5's vocabulary or let `prepare` train one"
        )
    return SpecialTokens(ids["pad"], ids["eos"], ids["pad"])


def _agreeing(special: SpecialTokens, config: Mapping[str, Any], path: str, where: str, decides: bool) -> SpecialTokens:
    """The ids, compared with those of a model's config; config.json decides how the decoder starts."""
    if decides:
        found = SpecialTokens.of_config(config, path)
        special = SpecialTokens(special.pad, special.eos, found.start)
        stated = found.to_config()
    else:
        stated = {key: config[key] for key in _CONFIG_KEYS.values() if type(config.get(key)) is int}
    for field, key in _CONFIG_KEYS.items():
        if key in stated and stated[key] != getattr(special, field):
            source = "config.json" if field == "start" else where
            raise InputError(
                f"{path}: {key} is {stated[key]}, but {source} says {getattr(special, field)}; use the config and the"
                " tokenizer that the model was trained with"
            )
    return special
