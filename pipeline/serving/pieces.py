"""A growing text, sent in pieces."""

from __future__ import annotations


class Pieces:
    """The parts of a text that were not sent yet.

    >>> pieces = Pieces()
    >>> [pieces.grown("the l"), pieces.grown("the library "), pieces.rest("the library is")]
    ['the', ' library', ' is']

    Bytes of an unfinished character are decoded as U+FFFD, and wait for the others:

    >>> pieces = Pieces()
    >>> [pieces.grown("a \ufffd\ufffd"), pieces.grown("a \ufffd\ufffd\ufffd"), pieces.rest("a 😀")]
    ['a', '', ' 😀']
    """

    def __init__(self) -> None:
        self._sent = ""

    def grown(self, text: str) -> str:
        """The new part of an unfinished text, without the last characters, which the next token may still change."""
        ready = text[:-1].rstrip("\ufffd").rstrip()
        return self._new(ready) if ready.startswith(self._sent) else ""

    def rest(self, text: str) -> str:
        """The remaining part of the finished text."""
        return self._new(text)

    def _new(self, text: str) -> str:
        new, self._sent = text[len(self._sent) :], text
        return new
