"""Errors of the HTTP server, in OpenAI's form: {"error": {"message", "type", "param", "code"}}."""

from __future__ import annotations

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from t5_pipeline.core.printable import printable, say
from t5_pipeline.serving.http.schemas import ErrorDetail, ErrorResponse


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

    def response(self) -> JSONResponse:
        body = ErrorResponse(error=self.detail).model_dump(exclude_none=True)
        return JSONResponse(body, self.status, self.headers)


def add_error_handlers(app: FastAPI) -> None:
    """Answer every error in this form."""

    @app.exception_handler(Refused)
    async def refused(request: Request, error: Refused) -> JSONResponse:
        return error.response()

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"] if part != "body")
        if first["type"] == "extra_forbidden":
            names = [".".join(map(str, e["loc"][1:])) for e in error.errors() if e["type"] == "extra_forbidden"]
            listed = ", ".join(f"`{name}`" for name in names)
            return Refused(400, f"not supported: {listed}", param=names[0], code="unsupported_field").response()
        message = first["msg"].removeprefix("Value error, ")
        return Refused(400, f"{place}: {message}" if place else message, param=place or None).response()

    @app.exception_handler(HTTPException)
    async def http(request: Request, error: HTTPException) -> JSONResponse:
        return Refused(error.status_code, str(error.detail), headers=dict(error.headers or {})).response()

    @app.exception_handler(Exception)
    async def failed(request: Request, error: Exception) -> JSONResponse:
        say(f"error: {request.url.path}: {type(error).__name__}: {error}")
        return Refused(500, "the request failed; the server's log says why").response()
