"""Untrusted text as it may be shown: without characters that control a terminal or the order of text.

All commands print and log through this module; nothing else in the package calls `print`.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import sys
from collections.abc import Iterator

from t5_pipeline.core.errors import write_error

# Control characters (C0, DEL, C1), line and paragraph separators, bidirectional controls, lone surrogates.
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
_SHORT = {"\n": "\\n", "\r": "\\r", "\t": "\\t"}


def printable(text: object, keep: str = "") -> str:
    """The text with control characters as JSON escapes, on one line.

    Everything that comes from a file, a flag or an environment variable passes through here before it is printed,
    logged or written to the report.

    Args:
        keep: control characters that stay, such as the line breaks of a table.

    >>> printable("rte\\x1b[2J\\n\\u202e"), printable("größe 大 👍")
    ('rte\\\\u001b[2J\\\\n\\\\u202e', 'größe 大 👍')
    """
    return _CONTROL.sub(lambda match: match[0] if match[0] in keep else _escape(match[0]), str(text))


def _escape(character: str) -> str:
    return _SHORT.get(character, f"\\u{ord(character):04x}")


def say(text: str) -> None:
    """Print a message to stderr. A message that cannot be printed is dropped, because it must not stop a stage."""
    try:
        print(printable(text), file=sys.stderr, flush=True)
    except OSError:
        with contextlib.suppress(OSError, ValueError):
            _drop_unwritten()


def _drop_unwritten() -> None:
    """Empty the buffer of stderr: Python would write it when it exits, fail, and change the exit code to 120."""
    stderr, nowhere = sys.stderr.fileno(), os.open(os.devnull, os.O_WRONLY)
    kept = os.dup(stderr)
    try:
        os.dup2(nowhere, stderr)
        sys.stderr.flush()
    finally:
        os.dup2(kept, stderr)
        os.close(kept)
        os.close(nowhere)


def show(text: object, keep: str = "") -> None:
    """Print a result to stdout.

    Raises:
        InputError: if it cannot be written.
    """
    with _stdout():
        print(printable(text, keep))


def show_bytes(content: bytes) -> None:
    """Write a file to stdout. Raises the errors of `show`."""
    with _stdout():
        if hasattr(sys.stdout, "buffer"):
            sys.stdout.flush()
            sys.stdout.buffer.write(content)
        else:  # replaced by a stream of text, as in a notebook
            sys.stdout.write(content.decode())


def finish_stdout() -> None:
    """Flush stdout. Raises the errors of `show`."""
    with _stdout():
        if sys.stdout is not None:
            sys.stdout.flush()


@contextlib.contextmanager
def _stdout() -> Iterator[None]:
    """After an error stdout is dropped, because Python would try to write the rest of it again when it exits."""
    try:
        yield
    except OSError as error:
        with contextlib.suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if isinstance(error, BrokenPipeError):
            raise
        raise write_error("the standard output", error) from error


class LogFormatter(logging.Formatter):
    """A formatter whose messages stay on one line; tracebacks keep theirs."""

    def formatMessage(self, record: logging.LogRecord) -> str:
        return printable(super().formatMessage(record))


class WarnOnce(logging.Filter):
    """Drops warnings that repeat an earlier one word for word, such as one that holds for each prompt of a job."""

    def __init__(self) -> None:
        super().__init__()
        self._seen: set[str] = set()

    def filter(self, record: logging.LogRecord) -> bool:
        if record.levelno != logging.WARNING:
            return True
        message = record.getMessage()
        new = message not in self._seen
        self._seen.add(message)
        return new


class LogFile(logging.FileHandler):
    """A log file. On a full disk lines are dropped, because they must neither stop a stage nor hide its error."""

    def handleError(self, record: logging.LogRecord) -> None:
        if not isinstance(sys.exc_info()[1], OSError):
            super().handleError(record)

    def close(self) -> None:
        with contextlib.suppress(OSError):
            super().close()
