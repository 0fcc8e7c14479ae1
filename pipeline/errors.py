"""The two ways a command ends early on purpose.

Exit codes (docs/command_line.md): 0 done, 2 bad input, 130/143 interrupted after a checkpoint was saved.
"""

from __future__ import annotations

import signal

BAD_INPUT = 2


class InputError(Exception):
    """Something the user gave cannot be used.

    The message is one line: what is wrong, where it stands (file and line, or key), and what to do.
    Commands print it without a traceback and leave with exit code 2.
    """


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
