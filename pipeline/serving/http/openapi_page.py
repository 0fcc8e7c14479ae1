"""The page of the server's OpenAPI description: Swagger UI, with the files that fastapi-offline brings along.

FastAPI's own page loads Swagger UI from a CDN; this one makes no external requests.
"""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

import fastapi_offline
from fastapi import FastAPI, HTTPException
from fastapi.openapi.docs import get_swagger_ui_html
from fastapi.responses import FileResponse, HTMLResponse

PAGE = "/docs"
ASSETS = ("swagger-ui-bundle.js", "swagger-ui.css", "favicon.png")
_POLICY = (
    "default-src 'none'; style-src 'self' 'unsafe-inline'; script-src 'self' 'unsafe-inline'; connect-src 'self';"
    " img-src 'self' data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


def add_openapi_page(app: FastAPI) -> None:
    """Serve the page at /docs. Its links are relative, so that it works below the path of a proxy."""
    folder = Path(str(files(fastapi_offline) / "static"))

    @app.get(PAGE, include_in_schema=False)
    async def openapi_page() -> HTMLResponse:
        page = get_swagger_ui_html(
            openapi_url="openapi.json",
            title=f"{app.title} · API",
            swagger_js_url="docs/swagger-ui-bundle.js",
            swagger_css_url="docs/swagger-ui.css",
            swagger_favicon_url="docs/favicon.png",
            swagger_ui_parameters={"validatorUrl": None},  # by default a badge from validator.swagger.io
        )
        page.headers["Content-Security-Policy"] = _POLICY
        return page

    @app.get(PAGE + "/{name}", include_in_schema=False)
    async def asset(name: str) -> FileResponse:
        if name not in ASSETS:
            raise HTTPException(404, "there is no such page")
        return FileResponse(folder / name)
