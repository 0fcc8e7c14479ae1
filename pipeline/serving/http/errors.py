"""Errors of the HTTP server, in OpenAI's form: {"error": {"message", "type", "param", "code"}}."""

from __future__ import annotations

import re
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from t5_pipeline.core.printable import printable, say
from t5_pipeline.core.schema import restated
from t5_pipeline.evaluation.decoding import NoAnswer
from t5_pipeline.serving.http.schemas import ErrorDetail, ErrorResponse

_FORM = re.compile(r"str|(list|dict)\[.*\]")
"""pydantic's name of one of several forms of a field, which it puts after the name of the field."""

_NO_OBJECT = ("missing", "model_attributes_type")
"""pydantic's types of the error about a body that is empty, or something else than a JSON object."""


class Refused(Exception):
    """A request that is answered with an error."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        digests: dict[str, str] | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        kind = "invalid_request_error" if status < 500 else "server_error"
        self.status, self.headers = status, headers or {}
        self.detail = ErrorDetail(message=printable(message), type=kind, param=param, code=code, digests=digests)

    def content(self) -> dict[str, Any]:
        return ErrorResponse(error=self.detail).model_dump(exclude_none=True)

    def response(self) -> JSONResponse:
        return JSONResponse(self.content(), self.status, self.headers)


def failure(where: str, error: Exception) -> Refused:
    """The answer to a request that failed, for a reason that is only logged unless it is about the prompt's numbers."""
    say(f"error: {where}: {type(error).__name__}: {error}")
    if isinstance(error, NoAnswer):
        return Refused(500, str(error), code="no_answer")
    return Refused(500, "the request failed; the server's log says why")


def _not_json(request: Request, reason: str) -> Refused:
    """The answer to a body that cannot be read."""
    encoding = request.headers.get("content-encoding", "identity")
    if encoding != "identity":
        return Refused(415, f"the body has the encoding {encoding[:100]}, which is not supported; send it uncompressed")
    return Refused(400, f"the body is not JSON ({reason})")


def add_error_handlers(app: FastAPI) -> None:
    """Answer every error in this form."""

    @app.exception_handler(Refused)
    async def refused(request: Request, error: Refused) -> JSONResponse:
        return error.response()

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> JSONResponse:
        errors = error.errors()
        first = errors[0]
        if first["type"] == "json_invalid":
            reason = str(first["ctx"]["error"]).removesuffix(" starting at")
            return _not_json(request, f"{reason} at character {first['loc'][-1]}").response()
        # Of the forms of a field, such as a text or a list of texts, the one that fits best: its error is the deepest.
        first = max((e for e in errors if e["loc"][:2] == first["loc"][:2]), key=lambda e: len(e["loc"]))
        place = ".".join(str(part) for part in first["loc"][1:] if not _FORM.fullmatch(str(part)))
        if not place and first["type"] in _NO_OBJECT:
            return Refused(400, "the body must be a JSON object, sent as `Content-Type: application/json`").response()
        if first["type"] == "extra_forbidden":
            names = [".".join(map(str, e["loc"][1:])) for e in errors if e["type"] == "extra_forbidden"]
            listed = ", ".join(f"`{name}`" for name in names)
            return Refused(400, f"not supported: {listed}", param=names[0], code="unsupported_field").response()
        message = restated(first["msg"])
        return Refused(400, f"{place}: {message}" if place else message, param=place or None).response()

    @app.exception_handler(HTTPException)
    async def http(request: Request, error: HTTPException) -> JSONResponse:
        message = str(error.detail)
        if error.status_code == 400 and error.__cause__ is not None:  # of FastAPI, about a body that it cannot read
            return _not_json(request, str(error.__cause__).partition(";")[0]).response()
        if error.status_code in (404, 405):  # of the router: the routes here raise Refused
            message = f"there is no {request.method} {request.url.path[:100]}; GET /openapi.json lists all requests"
        return Refused(error.status_code, message, headers=dict(error.headers or {})).response()

    @app.exception_handler(Exception)
    async def failed(request: Request, error: Exception) -> JSONResponse:
        return failure(request.url.path, error).response()
