"""Exceptions that end a command with a message of one line, and the exit codes of commands.

Exit codes (docs/command_line.md): 0 success, 1 some rows without an answer or damaged prompts, 2 bad input,
130/143 interrupted after saving a checkpoint.
"""

from __future__ import annotations

import errno
import re
import signal

BAD_INPUT = 2
SOME_FAILED = 1  # `predict` answered, but not every row; `prompts list` listed, but not every prompt


class InputError(Exception):
    """The user's input cannot be used, or a fault that the user can fix.

    The message is one line, `WHERE: what is wrong; what to do`, where WHERE is a file and line, a key or a flag.
    Commands print it without a traceback and exit with code 2.
    """


class ProcessLost(InputError):
    """Another process of the launch ended, perhaps with its machine. Each machine reports it for itself."""


class OutOfMemory(InputError):
    """This process needs more memory than there is. Each process reports it for itself."""


_REMEDIES = {
    errno.ENOENT: "check the path",
    errno.ENOTDIR: "move the file that is in the way, or choose another path",
    errno.EISDIR: "move the directory that is in the way, or choose another path",
    errno.EEXIST: "move what is in the way, or choose another path",
    errno.ENOTEMPTY: "move the directory that is in the way, or choose another path",
    errno.EACCES: "fix the permissions or choose another path",
    errno.EPERM: "fix the permissions or choose another path",
    errno.ENAMETOOLONG: "choose a shorter name",
    errno.ELOOP: "remove the loop of symbolic links",
    errno.EXDEV: "keep the whole run on one file system",
    errno.EMFILE: "raise the number of open files with `ulimit -n 1024`",
    errno.ENFILE: "close other programs and run again",
    errno.ENOMEM: "free some memory and run again",
    errno.EFBIG: "check that this is the right file",
    errno.EIO: "check the disk and run again",
    errno.ENOSPC: "free some space and run again",
    errno.EDQUOT: "free some space within the quota and run again",
    errno.EROFS: "make the file system writable or choose another directory",
}


def remedy(number: int | None) -> str:
    """The advice about an error of the operating system with this number."""
    return _REMEDIES.get(number or 0, "fix this and run again")


def errno_of(error: BaseException) -> int | None:
    """The number of an error of the operating system, also as libraries written in Rust report it; None for others.

    >>> errno_of(OSError(28, "No space left on device")), errno_of(Exception("an error (os error 28)"))
    (28, 28)
    """
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno
    found = re.search(r"\(os error (\d+)\)", str(error))
    return int(found[1]) if found else None


def write_error(place: object, error: BaseException) -> InputError:
    """The InputError for a failed write, with advice that depends on the reason.

    >>> print(write_error("run/model", OSError(errno.ENOSPC, "No space left on device")))
    cannot write run/model (No space left on device); free some space and run again
    >>> print(write_error("run/model", Exception("File too large (os error 27)")))
    cannot write run/model (File too large (os error 27)); raise `ulimit -f`, or choose a file system for larger files
    """
    reason = getattr(error, "strerror", None) or one_line(error)
    number = errno_of(error)
    advice = "raise `ulimit -f`, or choose a file system for larger files" if number == errno.EFBIG else remedy(number)
    return InputError(f"cannot write {place} ({reason}); {advice}")


def one_line(error: BaseException) -> str:
    """The first line of an error's message, or its type if there is none.

    >>> one_line(ValueError("not JSON\\nat line 3")), one_line(TimeoutError())
    ('not JSON', 'TimeoutError')
    """
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


class Terminated(KeyboardInterrupt):
    """SIGTERM, where it ends a command as Ctrl-C does: temporary files are removed."""


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
