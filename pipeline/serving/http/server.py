"""State shared by the routes of the HTTP server: options, prompts by name, jobs and their results."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from ipaddress import ip_address
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from fastapi import Request

from t5_pipeline.artifacts.kinds import locate_one
from t5_pipeline.core.errors import InputError
from t5_pipeline.core.paths import inside
from t5_pipeline.core.printable import say
from t5_pipeline.core.prompt_names import check_prompt_name
from t5_pipeline.core.suggestions import close_to
from t5_pipeline.data_prep.corpora.row import MISSING, Row, check_unicode
from t5_pipeline.evaluation.nearest_tokens import nearest_pieces
from t5_pipeline.serving.frozen_t5 import OtherModel
from t5_pipeline.serving.http.errors import Refused
from t5_pipeline.serving.http.metrics import Metrics
from t5_pipeline.serving.http.schemas import Fields, ModelCard, Usage
from t5_pipeline.serving.jobs import Draining, Job, NotSupported, QueueFull, Result, TooLong
from t5_pipeline.serving.prompt_store import PromptStore, ReservedName, ServedPrompt
from t5_pipeline.serving.scheduler import Scheduler


@dataclass(frozen=True)
class Options:
    """Options of the server.

    Attributes:
        model_name: name of the base model in requests and answers.
        keys: accepted API keys; empty accepts all requests.
        prompts: directory that is watched, and from which `POST /v1/prompts` may load.
        allow_changes: whether requests may add and remove prompts.
        watch_seconds: seconds between looks at the directory; 0 for none.
        body_bytes: maximum size of a request's body.
        timeout: maximum seconds for a request.
    """

    model_name: str
    keys: frozenset[str] = frozenset()
    prompts: Path | None = None
    allow_changes: bool = False
    watch_seconds: float = 1.0
    body_bytes: int = 1 << 20
    timeout: float = 60.0


@dataclass
class Server:
    """State shared by the routes."""

    scheduler: Scheduler
    store: PromptStore
    options: Options
    started: int = field(default_factory=lambda: int(time.time()))

    def __post_init__(self) -> None:
        self.metrics = Metrics(self.scheduler, self.store)
        self._nearest: dict[str, list[str]] = {}

    # --------------------------------------------------------------------------------------------------------- prompts

    def prompt(self, name: str, param: str = "model") -> ServedPrompt | None:
        """The prompt of a name; None for the base model.

        Args:
            param: where the request contains the name, for errors: "model", "models.2".

        Raises:
            Refused: if there is none.
        """
        if name == self.options.model_name:
            return None
        found = self.store.get(name)
        if found is None:
            raise Refused(404, f"{param}: {self._unknown(name)}", param=param, code="model_not_found")
        return found

    def _unknown(self, name: str) -> str:
        """Why a prompt is not served. Reasons that contain paths of this machine are for its log."""
        if name in self.store.unserved:
            return f"prompt `{name}` cannot be served; the server's log says why"
        prompts = self.store.all()
        if "+" in name and all(part in prompts for part in name.split("+")):
            return f"there is no prompt `{name}`; only /v1/classify lets several prompts vote, so name one of them"
        meant = close_to(name, prompts)
        return (
            f"there is no prompt `{name:.200}`; {f'did you mean `{meant}`? ' if meant else ''}GET /v1/models lists them"
        )

    def text(self, prompt: ServedPrompt | None, item: str | Fields, param: str) -> str:
        """The input text: a finished text as it is, or the template of the prompt, filled with fields."""
        if isinstance(item, dict) and prompt is None:
            raise Refused(400, "`fields` need a prompt with a template; give `prompt` for the base model", param=param)
        try:
            if isinstance(item, str):
                return check_unicode(item, param)
            assert prompt is not None
            row = Row(item, param)
            for field_name in prompt.task.input_template.fields:
                if row.field(field_name) is MISSING:
                    raise InputError(f"{row.lacks(field_name)}; add it, or give the finished text as `prompt`")
            return prompt.task.inputs(row)
        except InputError as error:
            raise Refused(400, str(error), param=param) from error

    def job(self, name: str, named: str, item: str | Fields, param: str, **more: Any) -> Job:
        """The job of an input.

        Args:
            named, param: where the request contains the name and the input, for errors: "model", "fields.2".
            more: as of `Scheduler.job`.

        Raises:
            Refused: if there is no such prompt, or the input or an option cannot be used.
        """
        prompt = self.prompt(name, named)
        try:
            return self.scheduler.job(prompt, self.text(prompt, item, param), **more)
        except NotSupported as error:
            raise Refused(400, str(error), param=error.param, code="unsupported_value") from error
        except TooLong as error:
            raise Refused(413, f"{param}: {error}; shorten it", param=param, code="context_length_exceeded") from error

    def check_fits(self, jobs: int) -> None:
        """Check that a request can be accepted at all.

        Raises:
            Refused: if it needs more jobs than the queue has places.
        """
        limit = self.scheduler.limits.waiting
        if jobs > limit:
            raise Refused(
                413, f"{jobs:,} inputs (one for each prompt), but at most {limit:,} fit in the queue; send fewer"
            )

    def submit(self, jobs: Sequence[Job]) -> None:
        try:
            self.scheduler.submit(jobs)
        except QueueFull as error:
            wait = str(math.ceil(error.retry_after))
            raise Refused(
                429, "the queue is full; try again", code="queue_full", headers={"Retry-After": wait}
            ) from error
        except Draining as error:
            raise Refused(503, str(error), code="shutting_down") from error

    async def results(self, request: Request, jobs: Sequence[Job]) -> list[Result]:
        """Wait for jobs; cancel them if the client goes away or the time is over."""
        self.submit(jobs)
        waiting = asyncio.ensure_future(_all_done(jobs))
        gone = asyncio.ensure_future(_gone(request))
        try:
            both: set[asyncio.Future[Any]] = {waiting, gone}
            done, _ = await asyncio.wait(both, timeout=self.options.timeout, return_when="FIRST_COMPLETED")
            if waiting in done:
                return waiting.result()
            if gone in done:
                raise Refused(499, "the client closed the connection")
            raise Refused(504, f"no answer within {self.options.timeout:g} seconds", code="timeout")
        finally:
            gone.cancel()
            for job in jobs:
                if not job.done.done():
                    job.cancelled.set()
            if not waiting.done():
                waiting.cancel()

    def usage(self, results: Sequence[Result]) -> Usage:
        read, written = sum(r.input_tokens for r in results), sum(r.output_tokens for r in results)
        return Usage(prompt_tokens=read, completion_tokens=written, total_tokens=read + written)

    def card(self, prompt: ServedPrompt) -> ModelCard:
        info = prompt.info
        card = {
            "task": info.task.name,
            "inputs": info.task.inputs,
            "fields": prompt.task.input_template.fields,
            "labels": info.task.labels,
            "rows": info.prompt_length,
            "bytes": info.prompt_length * info.width * 4,
            "digest": prompt.digest,
            "base_model": info.base_model,
            "base_model_digest": info.base_model_digest,
            "max_input_length": self.scheduler.input_limit(prompt),
            "max_target_length": info.max_target_length,
            "sentinel": info.sentinel,
            "step": info.step,
            "seed": info.seed,
            "scores": {metric: score for metric, score in info.scores.items() if math.isfinite(score)},  # for JSON
        }
        return ModelCard(
            id=prompt.name, created=self.started, method="soft prompt", parent=self.options.model_name, card=card
        )

    def nearest(self, prompt: ServedPrompt) -> list[str]:
        """The vocabulary token nearest to each row of a prompt; remembered while it is served."""
        found = self._nearest.get(prompt.digest)
        if found is None:
            embedding_VD = self.scheduler.backend.embedding_VD
            nearest = nearest_pieces(prompt.rows_PD, embedding_VD, self.store.vocabulary.names(), 1)
            found = [piece for ((piece, _),) in nearest]
            served = {one.digest for one in self.store.all().values()}
            kept = {digest: pieces for digest, pieces in self._nearest.items() if digest in served}
            self._nearest = kept | {prompt.digest: found}
        return found

    def models(self) -> list[ModelCard]:
        base = ModelCard(id=self.options.model_name, created=self.started, method="base")
        return [base, *(self.card(prompt) for prompt in self.store.all().values())]

    def check_host(self, request: Request) -> None:
        """Refuse changes by web pages whose host name was pointed at this machine (DNS rebinding).

        Raises:
            Refused: if only the loopback address protects the server, and the request names another host.
        """
        reached, _ = request.scope.get("server") or ("", 0)
        host = request.headers.get("host", "")
        if not self.options.keys and _is_loopback(reached) and not _is_own_name(host):
            raise Refused(
                403, f"prompts cannot be changed under the name {host}; use localhost, or start the server with --keys"
            )

    def add(self, name: str, path: str, prefix: str = "") -> ServedPrompt:
        """Load a prompt from the directory of prompts.

        Args:
            prefix: what precedes "name" and "path" in the fields of the request, for errors.
        """
        param, param_of_name = f"{prefix}path", f"{prefix}name"
        root = self.options.prompts
        if not self.options.allow_changes or root is None:
            raise Refused(403, "prompts cannot be changed by requests; start the server with --allow-changes")
        try:
            check_prompt_name(name, param_of_name)
        except InputError as error:
            raise Refused(400, str(error), param=param_of_name) from error
        try:
            remedy = "copy the prompt into the server's directory of prompts, and give the path relative to it"
            place = locate_one("prompt", str(inside(root, path, param, remedy)), param)
            prompt = self.store.read(name, inside(root, str(place.relative_to(root)), param, remedy))
        except ReservedName as error:
            raise Refused(400, str(error), param=param_of_name) from error
        except OtherModel as error:
            digests = {"prompt": error.of_prompt, "server": error.of_t5}
            raise Refused(409, str(error), param=param, code="other_model", digests=digests) from error
        except (InputError, OSError) as error:
            raise Refused(400, str(error), param=param) from error
        before = self.store.add(prompt)
        say(
            f"{'replaced' if before else 'added'} prompt `{name}` (digest {prompt.digest[:12]}) by request, from {path}"
        )
        return prompt

    def remove(self, name: str) -> None:
        if not self.options.allow_changes:
            raise Refused(403, "prompts cannot be changed by requests; start the server with --allow-changes")
        if not self.store.remove(name):
            raise Refused(404, f"there is no prompt `{name}`", code="model_not_found")
        say(f"removed prompt `{name}` by request")


def _is_loopback(address: str) -> bool:
    try:
        return ip_address(address.removeprefix("::ffff:")).is_loopback  # of a client over IPv4 if the server has ::
    except ValueError:
        return False


def _is_own_name(host: str) -> bool:
    """Whether a Host header names an address or localhost, which no other machine can point here."""
    try:
        name = urlsplit(f"//{host}").hostname or ""
        return name == "localhost" or bool(ip_address(name))
    except ValueError:
        return False


async def _all_done(jobs: Sequence[Job]) -> list[Result]:
    """The results of jobs. A task that is cancelled ends silently; asyncio would log a bare `gather` as an error."""
    return await asyncio.gather(*(asyncio.wrap_future(job.done) for job in jobs))


async def _gone(request: Request) -> None:
    """Return when the client has closed the connection."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
