"""ASGI middleware of the HTTP server: API keys, the size of bodies, and request metrics."""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import time

from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from t5_pipeline.serving.http.errors import Refused
from t5_pipeline.serving.http.openapi_page import ASSETS, PAGE
from t5_pipeline.serving.http.server import Server

# Without a key: pages and the description of the API, which are the same everywhere, and what a load balancer asks.
OPEN_ROUTES = ("/", "/health", "/ready", "/openapi.json", PAGE, *(f"{PAGE}/{name}" for name in ASSETS))

_PATIENCE = 5.0
"""Maximum seconds for reading the body of a request that is refused."""
_DIGITS = 18
"""Maximum digits of a Content-Length."""


class Guard:
    """ASGI middleware: API keys, the size of bodies, and metrics."""

    def __init__(self, app: ASGIApp, server: Server) -> None:
        self.app, self.server = app, server

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        began, status = time.monotonic(), 500

        async def counted(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        headers = {key.decode("latin-1").lower(): value for key, value in scope["headers"]}
        problem = self._problem(scope["path"], headers)
        try:
            if problem is not None:
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(_discard(receive), min(self.server.options.timeout, _PATIENCE))
                await problem.response()(scope, receive, counted)
            else:
                options = self.server.options
                await self.app(scope, _Limited(receive, options.body_bytes, options.timeout), counted)
        finally:
            route = getattr(scope.get("route"), "path_format", "other")
            self.server.metrics.requests.labels(route, f"{status // 100}xx").inc()
            self.server.metrics.latency.labels(route).observe(time.monotonic() - began)

    def _problem(self, path: str, headers: dict[str, bytes]) -> Refused | None:
        options = self.server.options
        if options.keys and path not in OPEN_ROUTES:
            scheme, _, given = headers.get("authorization", b"").partition(b" ")
            known = [hmac.compare_digest(given.strip(), key.encode()) for key in options.keys]
            if scheme.lower() != b"bearer" or not any(known):
                return Refused(
                    401, "the API key is missing or wrong; send `Authorization: Bearer KEY`", code="invalid_api_key"
                )
        length = headers.get("content-length", b"0")
        if not length.isdigit() or len(length) > _DIGITS or int(length) > options.body_bytes:
            return Refused(413, _too_large(options.body_bytes))
        return None


def _too_large(limit: int) -> str:
    return f"the body is larger than {limit:,} bytes; send fewer inputs"


async def _discard(receive: Receive) -> None:
    """Read the rest of a body, up to 16 MiB, so that its sender can receive the answer."""
    read = 0
    while read < 16 << 20:
        message = await receive()
        read += len(message.get("body", b""))
        if not message.get("more_body", False):
            return


class _Limited:
    """`receive` that ends a request whose body grows beyond a limit (bodies without a length) or does not arrive."""

    def __init__(self, receive: Receive, limit: int, seconds: float) -> None:
        self.receive, self.limit, self.left, self.seconds = receive, limit, limit, seconds
        self.until: float | None = time.monotonic() + seconds  # None once the body is complete

    async def __call__(self) -> Message:
        left = None if self.until is None else max(self.until - time.monotonic(), 0)
        try:
            message = await asyncio.wait_for(self.receive(), left)
        except TimeoutError:
            raise HTTPException(408, f"the body did not arrive within {self.seconds:g} seconds") from None
        self.left -= len(message.get("body", b""))
        if self.left < 0:
            raise HTTPException(413, _too_large(self.limit))
        if not message.get("more_body", False):
            self.until = None
        return message
