"""Time for which the threads of CPU kernels spin while they wait for each other (OpenMP of GCC)."""

from __future__ import annotations

import os

SPINS = "20000"
"""Nearly as fast as the default alone, 2.7 times as fast beside a program of the same kind (docs/performance.md)."""

_VARIABLES = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")


def limit_spinning() -> None:
    """Let threads sleep after a fraction of a millisecond; by default they spin for many, on cores that others need.

    This process and the processes that it starts must not have loaded torch. Does nothing if the environment has set
    it. Results do not depend on it.
    """
    if not any(name in os.environ for name in _VARIABLES):
        os.environ["GOMP_SPINCOUNT"] = SPINS
