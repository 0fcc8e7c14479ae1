"""`accelerate launch` as the runner uses it: `python -m t5_pipeline.execution.accelerate_launch`.

The same command, except that a failed stage is not followed by the launcher's own traceback, which would hide the
stage's error. It exits with the exit code of the first rank that failed.
"""

from __future__ import annotations

import logging
import subprocess
import sys


def main() -> None:
    from accelerate.commands import launch
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    logging.disable(logging.ERROR)  # elastic logs a failed rank
    try:
        launch.main()
    except subprocess.CalledProcessError as error:
        code = error.returncode
    except ChildFailedError as error:
        code = error.get_first_failure()[1].exitcode
    else:
        return
    sys.exit(128 - code if code < 0 else code)


if __name__ == "__main__":
    main()
