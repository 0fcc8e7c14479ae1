"""Encoding chunks of a corpus in several processes of this machine.

Each worker shares only a pipe with this process. A worker's death is detected by EOF on its pipe, and its shard is
reassigned. If the parent dies, the pipes close and the workers exit.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import signal
import traceback
from collections import Counter, deque
from collections.abc import Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from typing import Any

from t5_pipeline.core.boundary import input_error
from t5_pipeline.core.errors import InputError
from t5_pipeline.core.machine import available_cores
from t5_pipeline.data_prep.corpora.documents import Chunk
from t5_pipeline.data_prep.shards.encoding import Encoding, Events, ShardDone, encode_serially

ATTEMPTS = 4  # at a shard whose worker is killed each time
_TICK = 1.0  # seconds


@dataclass(frozen=True)
class _Failed:
    """An exception in a worker."""

    message: str
    bad_input: bool  # it is an InputError


def encode_locally(encoding: Encoding, chunks: dict[int, Chunk], cores: int = 0) -> Events:
    """Encode chunks on `cores` cores (0: all), with one process per core if there are enough chunks."""
    cores = cores or available_cores()
    if cores == 1 or len(chunks) == 1:
        yield from encode_serially(encoding, chunks, cores)
    else:
        count = min(cores, len(chunks))
        yield from encode_in_processes(encoding, chunks, count, max(1, cores // count))


def encode_in_processes(encoding: Encoding, chunks: dict[int, Chunk], count: int, threads: int = 1) -> Events:
    """Encode chunks in `count` processes with `threads` threads each.

    Raises:
        InputError: if a worker raised one, or if the workers of one shard were killed `ATTEMPTS` times.
    """
    waiting, killed = deque(chunks), Counter[int]()
    workers: dict[Connection, _Worker] = {}
    try:
        while waiting or any(worker.shard is not None for worker in workers.values()):
            while waiting and len(workers) < count:
                worker = _Worker(encoding, threads)
                workers[worker.connection] = worker
            for worker in workers.values():
                if waiting and worker.shard is None:
                    worker.assign(waiting[0], chunks[waiting[0]])
                    waiting.popleft()
            ready = wait(list(workers), timeout=_TICK)
            if not ready:
                yield None
            for connection in ready:
                assert isinstance(connection, Connection)
                worker = workers[connection]
                try:
                    message = connection.recv()
                except (EOFError, OSError):
                    del workers[connection]
                    worker.stop()
                    if worker.shard is not None:
                        killed[worker.shard] += 1
                        waiting.appendleft(worker.shard)
                        if killed[worker.shard] == ATTEMPTS:
                            raise killed_too_often(chunks[worker.shard]) from None
                    continue
                if isinstance(message, _Failed):
                    raise InputError(message.message) if message.bad_input else RuntimeError(message.message)
                if isinstance(message, ShardDone):
                    worker.shard = None
                yield message
    finally:
        for worker in workers.values():
            worker.stop()


def killed_too_often(chunk: Chunk) -> InputError:
    return InputError(
        f"{chunk.name}: its worker process was killed {ATTEMPTS} times, perhaps for lack of memory;"
        " reduce `threads` and run again to resume"
    )


class _Worker:
    """A worker process and the shard assigned to it."""

    def __init__(self, encoding: Encoding, threads: int) -> None:
        # fork would copy locked locks of this process's threads (torch has some).
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        self.process: SpawnProcess = context.Process(target=_worker_main, args=(theirs, encoding, threads), daemon=True)
        self.process.start()
        theirs.close()
        self.shard: int | None = None

    def assign(self, shard: int, chunk: Chunk) -> None:
        self.shard = shard
        with contextlib.suppress(OSError):  # the worker is dead, which the next recv reports
            self.connection.send((shard, chunk))

    def stop(self) -> None:
        self.process.kill()
        self.process.join()
        self.connection.close()


def _worker_main(connection: Connection, encoding: Encoding, threads: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole process group; the parent decides
    try:
        while True:
            shard, chunk = connection.recv()
            for message in _messages(encoding, shard, chunk, threads):
                connection.send(message)
    except (EOFError, OSError):
        return  # the parent is gone


def _messages(encoding: Encoding, shard: int, chunk: Chunk, threads: int) -> Iterator[Any]:
    try:
        yield from encoding.shard(shard, chunk, threads)
    except InputError as error:
        yield _Failed(str(error), bad_input=True)
    except Exception as error:
        if (known := input_error(error)) is not None:  # a full disk, say
            yield _Failed(str(known), bad_input=True)
        else:
            yield _Failed(f"{chunk.name}\n{traceback.format_exc()}", bad_input=False)
