"""Encoding chunks of a corpus on a Ray cluster, one task per chunk.

Ray restarts a task whose process or machine is lost. All machines need the same versions of this package and its
libraries, and must share the output directory (and a corpus of files): each task writes its shard itself.
"""

from __future__ import annotations

import signal
import socket
import threading
from typing import Any

import sentencepiece

from t5_pipeline.core.boundary import input_error
from t5_pipeline.core.errors import InputError, one_line
from t5_pipeline.core.machine import available_cores
from t5_pipeline.data_prep.corpora.documents import Chunk
from t5_pipeline.data_prep.shards.encoding import Encoding, Events, ShardDone
from t5_pipeline.data_prep.shards.finished import shard_name
from t5_pipeline.data_prep.shards.local_workers import ATTEMPTS, killed_too_often

LOCAL = "local"
_TICK = 1.0  # seconds


def encode_on_ray(encoding: Encoding, chunks: dict[int, Chunk], address: str, cores: int = 0) -> Events:
    """Encode chunks in tasks of one core each.

    Args:
        encoding: how to encode a chunk.
        chunks: shard number → chunk.
        address: as for `ray.init` ("auto", "HOST:PORT", "ray://HOST:PORT"); "local" starts Ray on this machine and
            stops it at the end.
        cores: cores of a local Ray (0: all).

    Raises:
        InputError: if Ray is not installed or cannot be reached, if a worker raised one, or if its shard does not
            appear in the output directory.
    """
    try:
        import ray
    except ImportError:
        raise InputError(f"ray: {address}: Ray is not installed; pip install 't5-pipeline[ray]'") from None
    ours = not ray.is_initialized()
    if ours:
        _start(ray, address, cores)
    # `put` sends the encoding to each machine once, not with every task.
    shared = ray.put(encoding)
    task = ray.remote(num_cpus=1, max_retries=ATTEMPTS - 1, scheduling_strategy="SPREAD")(_encode_chunk)
    running: dict[Any, int] = {}
    try:
        version = sentencepiece.__version__
        running = {task.remote(shared, number, chunk, version): number for number, chunk in chunks.items()}
        while running:
            done, _ = ray.wait(list(running), timeout=_TICK)
            if not done:
                yield None
            for reference in done:
                number = running.pop(reference)
                try:
                    result = ray.get(reference)
                except (
                    ray.exceptions.WorkerCrashedError,
                    ray.exceptions.NodeDiedError,
                    ray.exceptions.OutOfMemoryError,
                ):
                    raise killed_too_often(chunks[number]) from None
                if isinstance(result, str):
                    raise InputError(result)
                path = encoding.directory / shard_name(number) / "shard.json"
                if not path.is_file():
                    raise InputError(
                        f"{path}: was written on another machine of the cluster and is not visible here; use an output"
                        " directory that all machines share"
                    )
                yield result
    finally:
        for reference in running:
            ray.cancel(reference, force=True)
        if ours:
            ray.shutdown()


def _start(ray: Any, address: str, cores: int) -> None:
    quiet = {"log_to_driver": False, "configure_logging": False, "logging_level": "ERROR", "include_dashboard": False}
    main_thread = threading.current_thread() is threading.main_thread()
    on_sigterm = signal.getsignal(signal.SIGTERM)
    try:
        if address == LOCAL:
            ray.init("local", num_cpus=cores or available_cores(), **quiet)
        else:
            _probe(address)
            ray.init(address, **quiet)
    except Exception as error:  # Ray raises a dozen types, some of them grpc's
        reason = one_line(error)
        if address == LOCAL:
            raise InputError(f"ray: {address}: cannot start Ray ({reason}); fix that or run without `ray`") from None
        raise InputError(f"ray: {address}: no cluster answers there ({reason}); check the address") from None
    finally:
        if main_thread:  # Ray replaces the stage's handler
            signal.signal(signal.SIGTERM, on_sigterm)


def _probe(address: str) -> None:
    """Raise OSError at once if nothing listens at `address`; Ray itself would retry for minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if port.isdigit():
        socket.create_connection((host, int(port)), timeout=10).close()


def _encode_chunk(encoding: Encoding, number: int, chunk: Chunk, version: str) -> ShardDone | str:
    """Encode one chunk. Bad input is returned as its message, because Ray would wrap the exception in a traceback."""
    if sentencepiece.__version__ != version:
        return (
            f"ray: a machine of the cluster has sentencepiece {sentencepiece.__version__} and this one {version};"
            " install the version in constraints.txt on all of them"
        )
    try:
        *_, done = encoding.shard(number, chunk)
    except Exception as error:
        known = error if isinstance(error, InputError) else input_error(error)
        if known is None:
            raise
        return str(known)
    assert isinstance(done, ShardDone)
    return done
