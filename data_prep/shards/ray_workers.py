"""Shards made by the machines of a Ray cluster: a task for each piece of the corpus.

Ray starts a task again whose process or machine was lost. The machines share the output directory (and a corpus of
files), have the same versions of this package and its libraries, and write the shards there themselves.
"""

from __future__ import annotations

import signal
import socket
import threading
from typing import Any

import sentencepiece

from t5_pipeline.core.errors import InputError
from t5_pipeline.data_prep.corpora.documents import Piece
from t5_pipeline.data_prep.shards.local_workers import ATTEMPTS, available_cores, killed_too_often
from t5_pipeline.data_prep.shards.writer import Done, Encoding, Events

LOCAL = "local"
_TICK = 1.0  # seconds


def on_ray(encoding: Encoding, pieces: dict[int, Piece], address: str, cores: int = 0) -> Events:
    """Shards made by tasks of one core each, on the cluster at `address`.

    address  as `ray.init` takes it ("auto", "HOST:PORT", "ray://HOST:PORT"); "local" starts Ray on `cores` cores of
             this machine (0: all) and stops it at the end

    InputError if Ray is missing or not there, if a worker raised one, or cannot write where this process reads.
    """
    try:
        import ray
    except ImportError:
        raise InputError(f"ray: {address}: Ray is not installed; pip install 't5-pipeline[ray]'") from None
    ours = not ray.is_initialized()
    if ours:
        _start(ray, address, cores)
    # What all tasks need is sent to each machine once.
    shared = ray.put(encoding)
    task = ray.remote(num_cpus=1, max_retries=ATTEMPTS - 1, scheduling_strategy="SPREAD")(_make)
    running: dict[Any, int] = {}
    try:
        version = sentencepiece.__version__
        running = {task.remote(shared, number, piece, version): number for number, piece in pieces.items()}
        while running:
            done, _ = ray.wait(list(running), timeout=_TICK)
            if not done:
                yield None
            for reference in done:
                number = running.pop(reference)
                try:
                    made = ray.get(reference)
                except (
                    ray.exceptions.WorkerCrashedError,
                    ray.exceptions.NodeDiedError,
                    ray.exceptions.OutOfMemoryError,
                ):
                    raise killed_too_often(pieces[number]) from None
                if isinstance(made, str):
                    raise InputError(made)
                place = encoding.directory / f"shard-{number:05d}" / "shard.json"
                if not place.is_file():
                    raise InputError(
                        f"{place} was written by a machine of the cluster and is not here: give an output directory"
                        " that all its machines share"
                    )
                yield made
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
            _knock(address)
            ray.init(address, **quiet)
    except Exception as error:  # a dozen kinds, some of grpc
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        if address == LOCAL:
            raise InputError(f"ray: {address}: Ray does not start here ({reason})") from None
        raise InputError(f"ray: {address}: no cluster answers there ({reason}); mend the address") from None
    finally:
        if main_thread:  # Ray puts a handler of its own in the place of the stage's
            signal.signal(signal.SIGTERM, on_sigterm)


def _knock(address: str) -> None:
    """An OSError at once where nobody listens: Ray itself would try for a quarter of an hour."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if port.isdigit():
        socket.create_connection((host, int(port)), timeout=10).close()


def _make(encoding: Encoding, number: int, piece: Piece, version: str) -> Done | str:
    """One shard; bad input comes back as words, which Ray would wrap into a traceback."""
    if sentencepiece.__version__ != version:
        return (
            f"a machine of the cluster has sentencepiece {sentencepiece.__version__}, this one {version}:"
            " install the same, as in constraints.txt"
        )
    try:
        *_, done = encoding.shard(number, piece)
    except InputError as error:
        return str(error)
    assert isinstance(done, Done)
    return done
