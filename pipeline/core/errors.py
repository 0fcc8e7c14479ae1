"""The two ways a command ends early on purpose.

Exit codes (docs/command_line.md): 0 done, 2 bad input, 130/143 interrupted after a checkpoint was saved.
"""

from __future__ import annotations

import errno
import re
import signal

BAD_INPUT = 2


class InputError(Exception):
    """Something the user gave cannot be used.

    The message is one line: what is wrong, where it stands (file and line, or key), and what to do.
    Commands print it without a traceback and leave with exit code 2.
    """


def cannot_be_written(place: object, error: BaseException) -> InputError:
    """What to say where a file cannot be written, with what to do about it.

    >>> print(cannot_be_written("run/model", OSError(errno.ENOSPC, "No space left on device")))
    run/model: cannot be written (No space left on device); make room, then run again
    """
    number, text = getattr(error, "errno", None), getattr(error, "strerror", None) or str(error)
    if number is None and (told := re.search(r"\(os error (\d+)\)", text)):  # libraries written in Rust
        number = int(told[1])
    remedy = {
        errno.ENOSPC: "make room, then run again",
        errno.EDQUOT: "make room within the quota, then run again",
        errno.EROFS: "make the file system writable or choose another directory, then run again",
        errno.EACCES: "mend the permissions or choose another directory, then run again",
        errno.EPERM: "mend the permissions or choose another directory, then run again",
    }.get(number or 0, "mend that, then run again")
    return InputError(f"{place}: cannot be written ({text}); {remedy}")


class Interrupted(Exception):
    """A signal asked the stage to stop and its checkpoint has been saved."""

    def __init__(self, signum: int, step: int | None = None) -> None:
        self.signum = signum
        self.step = step
        where = "" if step is None else f" after step {step:,}, which is saved"
        super().__init__(f"stopped by {signal.Signals(signum).name}{where}; run the same command to go on")

    @property
    def exit_code(self) -> int:
        return 128 + self.signum
