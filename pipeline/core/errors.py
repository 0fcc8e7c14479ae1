"""Exceptions that end a command with a message of one line, and the exit codes of commands.

Exit codes (docs/command_line.md): 0 success, 1 some rows without an answer, 2 bad input, 130/143 interrupted after
saving a checkpoint.
"""

from __future__ import annotations

import errno
import re
import signal

BAD_INPUT = 2
SOME_FAILED = 1  # `predict` answered, but not every row


class InputError(Exception):
    """The user's input cannot be used, or a fault that the user can fix.

    The message is one line, `WHERE: what is wrong; what to do`, where WHERE is a file and line, a key or a flag.
    Commands print it without a traceback and exit with code 2.
    """


class ProcessLost(InputError):
    """Another process of the launch ended, perhaps with its machine. Each machine reports it for itself."""


def write_error(place: object, error: BaseException) -> InputError:
    """The InputError for a failed write, with advice that depends on the reason.

    >>> print(write_error("run/model", OSError(errno.ENOSPC, "No space left on device")))
    cannot write run/model (No space left on device); free some space and run again
    """
    number, text = getattr(error, "errno", None), getattr(error, "strerror", None) or str(error)
    if number is None and (found := re.search(r"\(os error (\d+)\)", text)):  # libraries written in Rust
        number = int(found[1])
    remedy = {
        errno.ENOSPC: "free some space and run again",
        errno.EDQUOT: "free some space within the quota and run again",
        errno.EROFS: "make the file system writable or choose another directory",
        errno.EACCES: "fix the permissions or choose another directory",
        errno.EPERM: "fix the permissions or choose another directory",
    }.get(number or 0, "fix this and run again")
    return InputError(f"cannot write {place} ({text}); {remedy}")


def one_line(error: BaseException) -> str:
    """The first line of an error's message, or its type if there is none.

    >>> one_line(ValueError("not JSON\\nat line 3")), one_line(TimeoutError())
    ('not JSON', 'TimeoutError')
    """
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


class Interrupted(Exception):
    """The stage stopped on a signal, after saving its checkpoint."""

    def __init__(self, signum: int, step: int | None = None) -> None:
        self.signum = signum
        self.step = step
        where = "" if step is None else f" after step {step:,}, which is saved"
        super().__init__(f"stopped by {signal.Signals(signum).name}{where}; run the same command to resume")

    @property
    def exit_code(self) -> int:
        return 128 + self.signum
