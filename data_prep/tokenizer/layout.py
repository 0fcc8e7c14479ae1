"""The layout of a vocabulary: which of its ids are padding, EOS, the decoder's first id, sentinels and added tokens.

They are found by name in the tokenizer and by id in the model's config, and never computed from one another. If two
files disagree, the model would read other ids than it was trained with, so that is an error which shows both.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from t5_pipeline.core.bounded import read_object
from t5_pipeline.core.errors import InputError
from t5_pipeline.core.normal_form import normal_form
from t5_pipeline.data_prep.tokenizer.sizes import SENTINELS
from t5_pipeline.data_prep.tokenizer.special_tokens import CONFIG_KEYS, T5_TOKENS, SpecialTokens

_MOST_SENTINELS = 100_000

MODEL_FILE = "spiece.model"
NAMES_FILE = "special_tokens_map.json"
TOKENIZER_FILES = ("tokenizer_config.json", "added_tokens.json", NAMES_FILE)
CONFIG_FILES = ("config.json", "generation_config.json")


class UnclearIds(InputError):
    """Files that disagree about an id with a fixed meaning, or do not give it."""


class Added(NamedTuple):
    """An added token in a file.

    Attributes:
        flag: the setting because of which transformers does not find it wherever its name is written; "" for none.
    """

    id: int
    file: str
    flag: str


class Named(Protocol):
    """The names of a text model's ids.

    Attributes:
        size: number of ids.
        pad, eos, unk: ids that the model itself defines; −1 for those that only other files name.
        complete: whether it names all ids of the tokenizer, so that no sentinels are added by default.
        sentinel_ids: the sentinels that are ids of the model itself, extra_id_0 first.
        own_sentinels: how they are found, for people.
    """

    size: int
    pad: int
    eos: int
    unk: int
    complete: bool
    sentinel_ids: tuple[int, ...]
    own_sentinels: str

    def id_of(self, name: str) -> int | None: ...

    def names(self) -> list[str]: ...


@dataclass(frozen=True)
class Layout:
    """The meaning of a vocabulary's ids.

    Attributes:
        above: names of the ids above those of the text model, in the order of their ids.
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

    @property
    def sentinels(self) -> list[str]:
        """Names of the sentinels above the text model, extra_id_0 first."""
        return [name for j in range(len(self.above)) if (name := sentinel_name(j)) in self.above]

    @classmethod
    def find(cls, model: Named, files: Mapping[str, Path], where: str) -> Layout:
        """The layout that the files beside a text model describe.

        Args:
            model: the names of its ids.
            files: those of TOKENIZER_FILES and CONFIG_FILES that exist, by name.
            where: the text model, for errors.

        Raises:
            UnclearIds: if two files disagree.
            InputError: if a file is damaged.
        """
        contents = {name: read_object(path, f"fix it or give the {MODEL_FILE} file") for name, path in files.items()}
        settings = contents.get("tokenizer_config.json", {})
        config_at = str(files.get("tokenizer_config.json", where))
        config = contents.get("config.json", {})
        added = _added_tokens(contents, files)
        above, found = _above(model, settings, config_at, added, config.get("vocab_size"), where)
        special = _special(model, above, [settings, contents.get(NAMES_FILE, {})], config, config_at, where)
        for name in CONFIG_FILES:
            if name in files:
                special = _agreeing(special, contents[name], str(files[name]), where, decides=name == "config.json")
        return cls(above, special, found)


def sentinel_name(j: int) -> str:
    return f"<extra_id_{j}>"


def _above(
    model: Named,
    settings: Mapping[str, Any],
    config_at: str,
    added: Mapping[str, Added],
    rows: object,
    where: str,
) -> tuple[tuple[str, ...], str]:
    """The names of the ids above those of the text model (sentinels, added tokens), and how sentinels were found."""
    own, extra_ids = model.sentinel_ids, settings.get("extra_ids")
    if extra_ids is not None and (type(extra_ids) is not int or not 0 <= extra_ids < _MOST_SENTINELS):
        raise UnclearIds(f"{config_at}: `extra_ids` is {extra_ids!r:.50}, not a number of sentinels; fix it")
    if own and extra_ids and not model.complete:
        raise UnclearIds(
            f"{config_at}: `extra_ids` is {extra_ids}, but {where} contains {len(own)} sentinels itself"
            f" ({model.names()[own[0]]} is id {own[0]}); set `extra_ids` to 0"
        )
    named = _named_above(model, added, where)
    numbered = {i: name for i, name in named.items() if name.startswith("<extra_id_")}
    if numbered and extra_ids is not None and extra_ids != len(numbered) and not model.complete:
        raise UnclearIds(
            f"{config_at}: `extra_ids` is {extra_ids}, but {len(numbered)} sentinels are listed as added tokens; use"
            " the files of one tokenizer"
        )
    found = f"{model.own_sentinels} of {Path(where).name}"
    if numbered:
        found = f"by name among the added tokens of {Path(next(iter(added.values())).file).name}"
    elif not own and not model.complete:
        found = f"`extra_ids` of {Path(config_at).name}, above the pieces"
        if extra_ids is None:
            found = "no file lists them, so T5's 100 above the pieces"
            extra_ids = 0 if type(rows) is int and rows < model.size + SENTINELS else SENTINELS
        implied = Layout.of_t5(extra_ids, T5_TOKENS).above
        numbered = {model.size + k: name for k, name in enumerate(implied)}
    others = {i: name for i, name in named.items() if i not in numbered}
    for name in others.values():
        if flag := added[name].flag:
            raise InputError(
                f"{added[name].file}: `{flag}` of the added token {name!r} is not supported, because transformers does"
                f" not find it wherever a text contains it; add it as AddedToken(…, {flag}=False)"
            )
    file = next((one.file for one in added.values()), where)
    return _in_row(model.size, numbered, others, file, where), found


def _named_above(model: Named, added: Mapping[str, Added], where: str) -> dict[int, str]:
    """Id → name of the added tokens that are not in the text model.

    Raises:
        UnclearIds: if an added token is in the text model under another id.
    """
    known = {name: i for name in added if (i := model.id_of(name)) is not None}
    if not model.complete:
        known |= {sentinel_name(j): i for j, i in enumerate(model.sentinel_ids)}
    found: dict[int, str] = {}
    for name, (i, file, _) in added.items():
        if name not in known:
            found[i] = name
        elif known[name] != i:
            raise UnclearIds(
                f"{file}: {name} is id {i}, but {where} says {known[name]}; use the files of one tokenizer"
            )
    return found


def _in_row(size: int, numbered: dict[int, str], others: dict[int, str], file: str, where: str) -> tuple[str, ...]:
    """Names of the ids from `size` on, which must have no gap; `numbered` are sentinels."""
    together = numbered | others
    from_zero = {*numbered.values()} == {sentinel_name(j) for j in range(len(numbered))}
    if from_zero and sorted(together) == list(range(size, size + len(together))):
        return tuple(together[i] for i in sorted(together))
    if others:
        listed = ", ".join(f"{name} (id {i})" for i, name in sorted(others.items())[:5])
        sentinels = f" and sentinels {min(numbered)} to {max(numbered)}" if numbered else ""
        raise UnclearIds(
            f"{file}: adds {listed}, but {where} has ids up to {size - 1}{sentinels}; added tokens must follow"
            " without a gap, so use the files of one tokenizer"
        )
    raise UnclearIds(
        f"{file}: the sentinels have ids {min(numbered)} to {max(numbered)}, but {where} has {size} pieces, above which"
        " they must follow from <extra_id_0> on without a gap; use the files of one tokenizer"
    )


def _added_tokens(contents: Mapping[str, Any], files: Mapping[str, Path]) -> dict[str, Added]:
    """Every added token by its name.

    Raises:
        UnclearIds: if a token has two ids.
        InputError: if a file is damaged.
    """
    found: dict[str, Added] = {}
    for file in ("tokenizer_config.json", "added_tokens.json", "tokenizer.json"):
        where = str(files.get(file))
        try:
            listed = _listed(file, contents.get(file, {}))
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            reason = f"its added tokens are damaged ({error!r:.100})"
            raise InputError(f"{where}: {reason}; save the tokenizer again") from None
        for name, i, flag in listed:
            if type(i) is not int:
                raise UnclearIds(f"{where}: the id of {name} is {i!r:.50}, not a number; fix the file")
            before = found.get(name)
            if before is not None and before.id != i:
                raise UnclearIds(f"{where}: {name} is id {i}, but {before.file} says {before.id}; fix one of them")
            found[name] = Added(i, where, flag or (before.flag if before is not None else ""))
    return found


def _listed(file: str, content: Mapping[str, Any]) -> list[tuple[str, object, str]]:
    """(name, id, flag as of `Added`) of the added tokens in the content of a file."""
    if file == "tokenizer_config.json":
        decoder = (content.get("added_tokens_decoder") or {}).items()
        tokens = [(int(number) if number.isdecimal() else number, token) for number, token in decoder]
    elif file == "tokenizer.json":
        tokens = [(token["id"], token) for token in content.get("added_tokens") or []]
    else:
        return [(name, i, "") for name, i in content.items()]
    return [(token_name(token), i, _flag(token, file)) for i, token in tokens]


def _flag(token: object, file: str) -> str:
    """The flag, as of `Added`, of a token in a file.

    Only a tokenizer that is read from tokenizer.json finds `normalized` tokens in the normalized text. There, "\\n" is
    a space, and each space the token.
    """
    if not isinstance(token, dict):
        return ""
    name = token_name(token)
    if file == "tokenizer.json" and token.get("normalized") and normal_form(re.sub(r"\s", " ", name)) != name:
        return "normalized"
    return "single_word" if token.get("single_word") else ""


def token_name(token: object) -> str:
    """The name of a token that is given as text, or with its settings."""
    return str(token.get("content") if isinstance(token, dict) else token)


def _special(
    model: Named,
    above: Sequence[str],
    naming: Sequence[Mapping[str, Any]],
    config: Mapping[str, Any],
    config_at: str,
    where: str,
) -> SpecialTokens:
    """Padding and EOS by the tokenizer's names, else by the model's config; the decoder starts with padding.

    Args:
        naming: settings with the names of special tokens; the first that has one counts.
        config: config.json, for ids that no name gives; it also says how the decoder starts (`_agreeing`).
    """
    ids = {}
    at = {name: model.size + k for k, name in enumerate(above)}
    for field, i in (("pad", model.pad), ("eos", model.eos)):
        name = next((name for settings in naming if (name := settings.get(f"{field}_token")) is not None), None)
        if name is not None:
            name = token_name(name)
            named = at.get(name, model.id_of(name))
            if named is None:
                raise UnclearIds(
                    f"{config_at}: {field}_token {name!r} is not a piece of {where}; use its own tokenizer"
                )
            if i not in (-1, named):
                raise UnclearIds(
                    f"{config_at}: {field}_token is {name!r} (id {named}), but {where} has"
                    f" {model.names()[i]!r} (id {i}); use the files of one tokenizer"
                )
            i = named
        if i < 0 and type(config.get(CONFIG_KEYS[field])) is int:
            i = config[CONFIG_KEYS[field]]
        ids[field] = i
    if min(ids.values()) < 0 or (model.unk < 0 and not model.complete):
        raise UnclearIds(
            f"{where}: has pad {ids['pad']}, eos {ids['eos']} and unk {model.unk} (−1: none); T5 needs all three;"
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
        stated = {key: config[key] for key in CONFIG_KEYS.values() if type(config.get(key)) is int}
    for field, key in CONFIG_KEYS.items():
        if key in stated and stated[key] != getattr(special, field):
            source = "config.json" if field == "start" else where
            raise UnclearIds(
                f"{path}: {key} is {stated[key]}, but {source} says {getattr(special, field)}; use the config and the"
                " tokenizer that the model was trained with"
            )
    return special
