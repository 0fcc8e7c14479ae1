"""The HTTP server: a FastAPI application around a scheduler and a store of prompts.

Routes never read a path from a request except `POST /v1/prompts`, whose path must be inside the directory of prompts.
"""

from __future__ import annotations

import asyncio
import threading
import time
import uuid
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from importlib.resources import files
from typing import Any

from fastapi import Depends, FastAPI, Request, Response, Security
from fastapi.responses import HTMLResponse, StreamingResponse
from fastapi.security import HTTPBearer

from t5_pipeline import __version__
from t5_pipeline.core.errors import InputError
from t5_pipeline.core.printable import say
from t5_pipeline.core.rounding import rounded
from t5_pipeline.evaluation.decoding import Decoding
from t5_pipeline.evaluation.ensemble import check_votes, classified
from t5_pipeline.serving.http.errors import Refused, add_error_handlers
from t5_pipeline.serving.http.guard import Guard
from t5_pipeline.serving.http.metrics import CONTENT_TYPE
from t5_pipeline.serving.http.openapi_page import add_openapi_page
from t5_pipeline.serving.http.schemas import (
    Choice,
    Classification,
    ClassifyRequest,
    ClassifyResponse,
    Completion,
    CompletionRequest,
    ErrorResponse,
    Fields,
    LoadAdapterRequest,
    ModelCard,
    ModelList,
    PromptRequest,
    UnloadAdapterRequest,
)
from t5_pipeline.serving.http.server import Options, Server
from t5_pipeline.serving.http.streaming import Events
from t5_pipeline.serving.jobs import Job, Result
from t5_pipeline.serving.prompt_store import PromptStore
from t5_pipeline.serving.scheduler import Scheduler


def create_app(scheduler: Scheduler, store: PromptStore, options: Options) -> FastAPI:
    """The application; it starts the scheduler, and finishes all accepted jobs when it is shut down."""
    server = Server(scheduler, store, options)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        scheduler.start()
        ended = threading.Event()
        # A daemon, because a look at a store that does not answer must not delay the end of the process.
        threading.Thread(target=_watch, args=(server, ended), name="watch", daemon=True).start()
        yield
        ended.set()
        await asyncio.to_thread(scheduler.close)

    app = FastAPI(
        title="t5-pipeline",
        version=__version__,
        summary="Many tasks on one frozen T5: every prompt is a model.",
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
        dependencies=[Security(HTTPBearer(auto_error=False))] if options.keys else None,  # described; Guard checks them
        responses={code: {"model": ErrorResponse} for code in (400, 401, 404, 408, 413, 415, 429)},
    )
    app.state.server = server
    app.add_middleware(Guard, server=server)
    add_error_handlers(app)
    _add_status(app, server)
    _add_answers(app, server)
    _add_changes(app, server)
    add_openapi_page(app)
    return app


def _watch(server: Server, ended: threading.Event) -> None:
    options = server.options
    while options.watch_seconds and options.prompts is not None and not ended.wait(options.watch_seconds):
        try:
            for line in server.store.look(str(options.prompts)):
                say(line)
        except Exception as error:  # the next look may succeed
            say(f"warning: {options.prompts}: cannot be read ({error})")


# --------------------------------------------------------------------------------------------------------------- routes


def _add_status(app: FastAPI, server: Server) -> None:
    """The page, and routes that describe the server and its prompts."""
    content = files("t5_pipeline.serving.http").joinpath("page.html").read_text(encoding="utf-8")

    @app.get("/", response_class=HTMLResponse, include_in_schema=False)
    async def page() -> HTMLResponse:
        policy = (
            "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; connect-src 'self';"
            " img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
        )
        return HTMLResponse(content, headers={"Content-Security-Policy": policy})

    @app.head("/health", include_in_schema=False)
    @app.get("/health")
    async def health() -> dict[str, str]:
        """The process answers and its scheduler runs."""
        if not server.scheduler.alive:
            raise Refused(503, "the scheduler has stopped")
        return {"status": "ok"}

    @app.head("/ready", include_in_schema=False)
    @app.get("/ready")
    async def ready() -> dict[str, Any]:
        """The server accepts requests."""
        if not server.scheduler.alive or server.scheduler.draining:
            raise Refused(503, "the server is shutting down", code="shutting_down")
        return {"status": "ready", "prompts": len(server.store)}

    @app.get("/metrics", response_class=Response)
    async def metrics() -> Response:
        """Prometheus metrics."""
        return Response(server.metrics.text(), media_type=CONTENT_TYPE)

    @app.get("/v1/models/", include_in_schema=False)
    @app.get("/v1/models")
    async def models() -> ModelList:
        """The base model and all prompts, with their cards."""
        return ModelList(data=server.models())

    @app.get("/v1/models/{name:path}")  # the base model's name may contain a slash, as names on the hub do
    async def model(name: str) -> ModelCard:
        """One prompt with the vocabulary token nearest to each of its rows, or the base model."""
        prompt = server.prompt(name)
        if prompt is None:
            return server.models()[0]
        found = server.card(prompt)
        assert found.card is not None
        found.card["nearest"] = await asyncio.to_thread(server.nearest, prompt)
        return found


def _add_answers(app: FastAPI, server: Server) -> None:
    @app.post("/v1/completions", response_model=Completion)
    async def completions(body: CompletionRequest, request: Request) -> Any:
        """Answer texts, each with its own prompt; `stream` sends server-sent events."""
        server.check_fits(len(body.items))
        decoding = Decoding(temperature=body.temperature, top_p=body.top_p, seed=body.seed)

        def jobs_of() -> list[Job]:
            inputs = zip(body.names, body.name_places, body.items, body.places, strict=True)
            return [
                server.job(*one, max_tokens=body.max_tokens or 0, decoding=decoding, number=i)
                for i, one in enumerate(inputs)
            ]

        jobs = await asyncio.to_thread(jobs_of)  # other requests need not wait while texts are encoded
        whole = Completion(id=f"cmpl-{uuid.uuid4().hex}", created=int(time.time()), model=body.model or "", choices=[])
        if body.stream:
            events = Events(
                server, whole, jobs, include_usage=bool(body.stream_options and body.stream_options.include_usage)
            )
            return StreamingResponse(
                events.run(), media_type="text/event-stream", headers={"Cache-Control": "no-store"}
            )
        results = await server.results(request, jobs)
        whole.choices = [
            Choice(index=i, text=result.text, finish_reason=result.finish)  # type: ignore[arg-type]
            for i, result in enumerate(results)
        ]
        whole.usage = server.usage(results)
        return whole

    @app.post("/v1/classify")
    async def classify(body: ClassifyRequest, request: Request) -> ClassifyResponse:
        """Exact probabilities of the labels; several prompts vote."""
        voters_of = body.voters({server.options.model_name, *server.store.all()})
        server.check_fits(sum(map(len, voters_of)))

        def jobs_of() -> list[Job]:
            inputs = zip(voters_of, body.name_places, body.items, body.places, strict=True)
            return [job for one in inputs for job in _voting(server, *one)]

        jobs = await asyncio.to_thread(jobs_of)
        results = iter(await server.results(request, jobs))
        each = [[next(results) for _ in voters] for voters in voters_of]
        usage = server.usage([result for group in each for result in group])
        return ClassifyResponse(data=[_classification(group) for group in each], usage=usage)


def _add_changes(app: FastAPI, server: Server) -> None:
    checked = [Depends(server.check_host)]
    adds: dict[str, Any] = {
        "dependencies": checked,
        "responses": {code: {"model": ErrorResponse} for code in (403, 409)},
    }
    removes: dict[str, Any] = {"dependencies": checked, "responses": {403: {"model": ErrorResponse}}}

    @app.post("/v1/prompts", status_code=201, **adds)
    async def add_prompt(body: PromptRequest) -> ModelCard:
        """Add or replace a prompt from the server's directory of prompts."""
        prompt = await asyncio.to_thread(server.add, body.name, body.path)
        return server.card(prompt)

    @app.delete("/v1/prompts/{name}", status_code=204, **removes)
    async def remove_prompt(name: str) -> None:
        """Remove a prompt; requests that were accepted are still answered."""
        server.remove(name)

    @app.post("/v1/load_lora_adapter", **adds)
    async def load_adapter(body: LoadAdapterRequest) -> ModelCard:
        """`POST /v1/prompts` under vLLM's name."""
        prompt = await asyncio.to_thread(server.add, body.lora_name, body.lora_path, "lora_")
        return server.card(prompt)

    @app.post("/v1/unload_lora_adapter", **removes)
    async def unload_adapter(body: UnloadAdapterRequest) -> dict[str, str]:
        """`DELETE /v1/prompts/NAME` under vLLM's name."""
        server.remove(body.lora_name)
        return {"status": "ok"}


def _voting(server: Server, voters: Sequence[str], named: str, item: str | Fields, param: str) -> list[Job]:
    """A job for each of the prompts that classify an input."""
    jobs = [server.job(name, named, item, param) for name in voters]
    for job, name in zip(jobs, voters, strict=True):
        if not job.labels:
            raise Refused(400, f"{named}: `{name}` has no labels; use /v1/completions", param=named)
        if list(job.labels) != list(jobs[0].labels):
            problem = f"`{voters[0]}` and `{name}` have different labels and cannot vote; ask them one at a time"
            raise Refused(400, f"{named}: {problem}", param=named)
    try:
        check_votes(voters)
    except InputError as error:
        raise Refused(400, f"{named}: {error}", param=named) from error
    return jobs


def _classification(results: Sequence[Result]) -> Classification:
    """The answer of one prompt, or the vote of several."""
    found = classified([result.text for result in results], [result.scores for result in results])
    alone = None if found.votes else {name: rounded(value, 6) for name, value in results[0].scores.items()}
    return Classification(
        label=found.label, probabilities=found.probabilities, log_likelihoods=alone, votes=found.votes
    )
