"""Suggestions for misspelt names: the one "did you mean" of all errors."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable


def close_to(name: str, known: Iterable[str], cutoff: float = 0.6) -> str | None:
    """The known name that was probably meant; None if there is none.

    Case and the characters between words do not count. If no name is similar, the only name that begins with
    this one, has it as a word, or has these initials is taken.

    Args:
        cutoff: least similarity, from 0 to 1.

    >>> known = ["steps", "batch_size", "learning_rate"]
    >>> close_to("steeps", known), close_to("Batch-Size", known), close_to("rate", known), close_to("lr", known)
    ('steps', 'batch_size', 'learning_rate', 'learning_rate')
    """
    plain = {_plain(each): each for each in sorted(known)}
    wanted = _plain(name)
    if found := difflib.get_close_matches(wanted, plain, n=1, cutoff=cutoff):
        return plain[found[0]]
    initials = {each: "".join(word[0] for word in each.split()) for each in plain}
    partly = [each for each in plain if wanted in (*each.split(), initials[each]) or each.startswith(wanted)]
    return plain[partly[0]] if len(partly) == 1 else None


def _plain(name: str) -> str:
    return " ".join(re.split(r"[\W_]+", name.lower().strip("-_ ")))


def nearest(name: str, known: Iterable[str], otherwise: str | None = None) -> str:
    """A hint for an unknown name.

    Args:
        otherwise: the hint if no known name is similar; default: all of them.

    >>> nearest("steeps", ["steps", "seed"])
    'did you mean `steps`?'
    >>> nearest("x", ["steps", "seed"])
    'choose one of seed, steps'
    """
    known = sorted(known)
    found = close_to(name, known)
    if found is not None:
        return f"did you mean `{found}`?"
    return f"choose one of {', '.join(known)}" if otherwise is None else otherwise
