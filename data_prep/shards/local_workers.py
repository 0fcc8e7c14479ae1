"""Shards made by several processes of this machine.

Each worker has a pipe to this process and nothing else in common with it: one that is killed is known by the end of its
pipe, and its shard is made anew by another. Where this process is killed, the pipes end and the workers with them.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import traceback
from collections import Counter, deque
from collections.abc import Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from typing import Any

from t5_pipeline.core.errors import InputError
from t5_pipeline.data_prep.corpora.documents import Piece
from t5_pipeline.data_prep.shards.writer import Done, Encoding, Events, here

ATTEMPTS = 4  # at a shard whose worker is killed each time
_TICK = 1.0  # seconds


@dataclass(frozen=True)
class _Failed:
    """What a worker says of an exception."""

    message: str
    refused: bool  # an InputError


def on_this_machine(encoding: Encoding, pieces: dict[int, Piece], cores: int = 0) -> Events:
    """Shards made on `cores` cores (0: all there are), by as many processes where there are as many pieces."""
    cores = cores or available_cores()
    if cores == 1 or len(pieces) == 1:
        yield from here(encoding, pieces, cores)
    else:
        count = min(cores, len(pieces))
        yield from in_processes(encoding, pieces, count, max(1, cores // count))


def available_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def in_processes(encoding: Encoding, pieces: dict[int, Piece], count: int, threads: int = 1) -> Events:
    """Shards made by `count` processes, `threads` in each.

    InputError if a worker raised one, or if the same shard's workers were killed again and again.
    """
    waiting, killed = deque(pieces), Counter[int]()
    workers: dict[Connection, _Worker] = {}
    try:
        while waiting or any(worker.shard is not None for worker in workers.values()):
            while waiting and len(workers) < count:
                worker = _Worker(encoding, threads)
                workers[worker.connection] = worker
            for worker in workers.values():
                if waiting and worker.shard is None:
                    worker.give(waiting[0], pieces[waiting[0]])
                    waiting.popleft()
            ready = wait(list(workers), timeout=_TICK)
            if not ready:
                yield None
            for connection in ready:
                assert isinstance(connection, Connection)
                worker = workers[connection]
                try:
                    said = connection.recv()
                except (EOFError, OSError):
                    del workers[connection]
                    worker.stop()
                    if worker.shard is not None:
                        killed[worker.shard] += 1
                        waiting.appendleft(worker.shard)
                        if killed[worker.shard] == ATTEMPTS:
                            raise killed_too_often(pieces[worker.shard]) from None
                    continue
                if isinstance(said, _Failed):
                    raise InputError(said.message) if said.refused else RuntimeError(said.message)
                if isinstance(said, Done):
                    worker.shard = None
                yield said
    finally:
        for worker in workers.values():
            worker.stop()


def killed_too_often(piece: Piece) -> InputError:
    return InputError(
        f"{piece.name}: the process that encodes it was killed {ATTEMPTS} times, perhaps for want of memory;"
        " give fewer `threads`, and run again to go on"
    )


class _Worker:
    """A process that makes shards, and the one that it is at."""

    def __init__(self, encoding: Encoding, threads: int) -> None:
        # A fork would copy the threads' locks of what is loaded here, torch among it.
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        self.process: SpawnProcess = context.Process(target=_work, args=(theirs, encoding, threads), daemon=True)
        self.process.start()
        theirs.close()
        self.shard: int | None = None

    def give(self, shard: int, piece: Piece) -> None:
        self.shard = shard
        with contextlib.suppress(OSError):  # it is gone; its pipe will say so
            self.connection.send((shard, piece))

    def stop(self) -> None:
        self.process.kill()
        self.process.join()
        self.connection.close()


def _work(connection: Connection, encoding: Encoding, threads: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal sends it to all; the first process decides
    try:
        while True:
            shard, piece = connection.recv()
            for said in _said(encoding, shard, piece, threads):
                connection.send(said)
    except (EOFError, OSError):
        return  # nobody is there any more


def _said(encoding: Encoding, shard: int, piece: Piece, threads: int) -> Iterator[Any]:
    try:
        yield from encoding.shard(shard, piece, threads)
    except InputError as error:
        yield _Failed(str(error), refused=True)
    except Exception:
        yield _Failed(f"{piece.name}\n{traceback.format_exc()}", refused=False)
