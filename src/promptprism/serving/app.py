"""The server's application: predict, classes, health, metrics, and a page that says how to ask."""

import asyncio
import base64
import binascii
import json
import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from html import escape
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.middleware.trustedhost import TrustedHostMiddleware

import promptprism
from promptprism.data.images import seen_pixels
from promptprism.errors import PromptPrismError, first_problem
from promptprism.serving.batching import Batcher, Square
from promptprism.serving.engine import Engine, Names
from promptprism.serving.limits import SOON, BoundedBodies, Limits, Refused, refused
from promptprism.serving.metrics import Metrics

_LOOPBACK = ("127.0.0.1", "localhost", "::1")


class EncodedImage(BaseModel):
    """An image file in base64."""

    model_config = ConfigDict(extra="forbid")

    name: str = Field(default="", max_length=1000, description="To call it by in the answer.")
    base64: str = Field(description="The bytes of an image file.")


class Asked(BaseModel):
    """A request for predictions, as JSON."""

    model_config = ConfigDict(extra="forbid")

    images: list[EncodedImage]
    classes: list[str] | None = Field(default=None, description="Names to choose among instead of the own.")
    templates: bool = Field(default=False, description="With the opinion of each template.")


class Classes(BaseModel):
    """Names of classes."""

    model_config = ConfigDict(extra="forbid")

    classes: list[str]


class Failure(BaseModel):
    """What is wrong with a request, and what to do."""

    error: str


class _File:
    """An image file that was sent."""

    def __init__(self, name: str, content: bytes) -> None:
        self.name, self._content = name, content

    def content(self) -> bytes:
        return self._content

    def __str__(self) -> str:
        return self.name


def _inlined() -> dict[str, Any]:
    """The schema of a request without references, which would lead nowhere in the whole page's."""
    schema = {name: part for name, part in Asked.model_json_schema().items() if name != "$defs"}
    schema["properties"]["images"]["items"] = EncodedImage.model_json_schema()
    return schema


_BODY = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": ["images"],
                    "properties": {
                        "images": {"type": "array", "items": {"type": "string", "format": "binary"}},
                        "classes": {"type": "array", "items": {"type": "string"}},
                        "templates": {"type": "boolean"},
                    },
                }
            },
            "application/json": {"schema": _inlined()},
        },
    }
}
_FAILURES: dict[int | str, dict[str, Any]] = {
    status: {"model": Failure, "description": what}
    for status, what in {
        413: "Too large, or too many images.",
        415: "Neither multipart/form-data nor JSON.",
        422: "No image can be read, or the names or fields cannot be used.",
        429: "No room: come again after Retry-After seconds.",
        503: "It took too long.",
    }.items()
}


def make_app(engine: Engine, limits: Limits | None = None, host: str = "127.0.0.1") -> FastAPI:
    """The application that serves an engine; at a loopback address, under the names of that alone."""
    limits = Limits() if limits is None else limits
    metrics = Metrics(engine.reference, lambda: batcher.accepted, engine.temperature)
    batcher = Batcher(engine, limits.batch, limits.wait, limits.room, metrics.batch)
    decoders = ThreadPoolExecutor(os.cpu_count() or 1, thread_name_prefix="promptprism-decode")

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        batcher.start()
        yield
        await batcher.stop()
        decoders.shutdown()

    app = FastAPI(
        title="PromptPrism",
        version=promptprism.__version__,
        description=f"{engine.method} for {len(engine.classes)} classes.",
        lifespan=lifespan,
        docs_url=None,  # FastAPI's page loads its parts from another server
        redoc_url=None,
    )
    app.add_middleware(BoundedBodies, limits=limits)
    if host in _LOOPBACK:  # a page elsewhere whose name is made to lead here must not ask
        app.add_middleware(TrustedHostMiddleware, allowed_hosts=[*_LOOPBACK, "[::1]"])
    app.add_exception_handler(Refused, refused)
    app.add_exception_handler(HTTPException, _http_failure)
    app.add_exception_handler(RequestValidationError, _invalid)

    @app.exception_handler(TimeoutError)
    async def late(_: Request, __: Exception) -> JSONResponse:
        told = f"no answer within {limits.seconds:g} s: send fewer images, or come again later"
        return Refused(503, told, SOON).response()

    @app.middleware("http")
    async def measured(request: Request, go_on: Callable[[Request], Awaitable[Response]]) -> Response:
        began = time.perf_counter()
        response = await go_on(request)
        route = request.scope.get("route")
        path = getattr(route, "path", "other")
        metrics.requests.labels(path, str(response.status_code)).inc()
        metrics.seconds.labels(path).observe(time.perf_counter() - began)
        return response

    def decode(file: _File) -> Square | str:
        try:
            return seen_pixels(file, engine.size, limits.pixels)
        except PromptPrismError as error:
            return str(error)

    async def prepared(classes: Sequence[str] | None) -> Names | None:
        """Names that the engine is ready for; None are its own."""
        if classes is None:
            return None
        if (count := len(classes)) > (most := limits.classes):
            raise Refused(413, f"{count} classes are more than the {most} that may be asked for: send fewer")
        try:
            loop = asyncio.get_running_loop()
            return await loop.run_in_executor(batcher.worker, engine.prepare, tuple(classes))
        except PromptPrismError as error:
            raise Refused(422, str(error)) from error

    async def answered(files: list[_File], classes: Names | None, templates: bool) -> dict[str, Any]:
        names = await prepared(classes)
        loop = asyncio.get_running_loop()
        found = await asyncio.gather(*(loop.run_in_executor(decoders, decode, file) for file in files))
        read = [(file.name, one) for file, one in zip(files, found, strict=True) if not isinstance(one, str)]
        unread = [
            {"image": file.name, "reason": one}
            for file, one in zip(files, found, strict=True)
            if isinstance(one, str)
        ]
        metrics.unread.inc(len(unread))
        if not read:
            raise Refused(422, "; ".join(one["reason"] for one in unread[:5]))
        answers = await batcher.ask([square for _, square in read], names)
        metrics.answered(answers, names is None)
        among = engine.classes if names is None else names
        try:
            rows = answers.rows([name for name, _ in read], among, templates)
        except PromptPrismError as error:
            raise Refused(422, str(error)) from error
        caveat = engine.caveat(names)
        return {
            "method": engine.method,
            "classes": len(among),
            "predictions": rows,
            "unread": unread,
            "warnings": [caveat] if caveat else [],
        }

    @app.post("/predict", openapi_extra=_BODY, responses=_FAILURES)
    async def predict(request: Request) -> JSONResponse:
        """Name the class of images and say how sure that is; fields as of `promptprism predict --json`.

        Images that cannot be read are listed in `unread`, and do not keep the others from an answer.
        """
        async with asyncio.timeout(limits.seconds):
            files, classes, templates = await _read(request, limits)
            with batcher.accepting(len(files)):
                return JSONResponse(await answered(files, classes, templates))

    @app.get("/classes")
    def own_classes() -> Classes:
        """The names that are chosen among, in the order of their labels."""
        return Classes(classes=list(engine.classes))

    @app.post("/classes", responses={422: _FAILURES[422]})
    async def other_classes(asked: Classes) -> Classes:
        """Make ready for other names, so that the first request with them need not wait."""
        async with asyncio.timeout(limits.seconds):
            return Classes(classes=list(await prepared(asked.classes) or ()))

    @app.get("/health")
    async def health() -> dict[str, Any]:
        """Whether it answers, and for what."""
        return {
            "status": "ok",
            "promptprism": promptprism.__version__,
            "method": engine.method,
            "classes": len(engine.classes),
            "waiting": batcher.accepted,
        }

    @app.get("/metrics", response_class=Response)
    def measurements() -> Response:
        """Prometheus' text format."""
        return Response(metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    @app.get("/docs", include_in_schema=False)
    def docs() -> HTMLResponse:
        return HTMLResponse(_page(app.openapi()))

    return app


async def _read(request: Request, limits: Limits) -> tuple[list[_File], Names | None, bool]:
    """The images of a request, other class names, and whether templates are wanted."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind == "multipart/form-data":
        async with request.form(max_files=limits.images, max_fields=limits.classes + 1) as form:
            sent = [value for _, value in form.multi_items() if isinstance(value, UploadFile)]
            files = [_File(one.filename or f"image {i}", await one.read()) for i, one in enumerate(sent)]
            classes = tuple(name for name in form.getlist("classes") if isinstance(name, str)) or None
            templates = str(form.get("templates", "")).lower() in ("1", "true", "yes", "on")
    elif kind == "application/json":
        try:
            asked = Asked.model_validate_json(await request.body())
        except ValidationError as error:
            raise _unusable(error.errors()) from error
        files = [_decoded(one, i) for i, one in enumerate(asked.images[: limits.images + 1])]
        classes, templates = None if asked.classes is None else tuple(asked.classes), asked.templates
    else:
        raise Refused(
            415, f"content type '{kind}' is not read: send multipart/form-data, or JSON with base64"
        )
    if not files:
        raise Refused(422, "there is no image: send at least one, in the field 'images'")
    if len(files) > limits.images:
        raise Refused(413, f"there are more than {limits.images} images: send them in several requests")
    return files, classes, templates


def _decoded(image: EncodedImage, place: int) -> _File:
    name = image.name or f"image {place}"
    try:
        return _File(name, base64.b64decode(image.base64, validate=True))
    except (binascii.Error, ValueError) as error:
        raise Refused(422, f"'{name}' is not base64 ({error}): encode the bytes of the file") from error


def _unusable(problems: Sequence[Any]) -> Refused:
    return Refused(422, f"{first_problem(problems)}. See /docs for the fields")


async def _invalid(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    return _unusable(error.errors()).response()


async def _http_failure(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    told = {404: "there is nothing at this address: see /docs", 405: "another method is meant: see /docs"}
    status, what = error.status_code, told.get(error.status_code, str(error.detail))
    if what.startswith("Too many"):  # files, or names of classes
        status, what = 413, f"{what.rstrip('.')}: send them in several requests, or fewer"
    return JSONResponse({"error": what}, status, error.headers)


def _page(schema: dict[str, Any]) -> str:
    """All paths on one page that needs no other server."""
    rows = "".join(
        f"<h2>{method.upper()} {escape(path)}</h2><p>{escape(what.get('description', ''))}</p>"
        f"<details><summary>fields and answers</summary><pre>{escape(_json(what))}</pre></details>"
        for path, methods in schema["paths"].items()
        for method, what in methods.items()
    )
    info = schema["info"]
    return (
        f"<!doctype html><meta charset=utf-8><title>{escape(info['title'])}</title>"
        "<style>body{font:16px/1.5 sans-serif;max-width:50em;margin:2em auto;padding:0 1em}"
        "pre{overflow:auto;background:#f4f4f4;padding:1em}</style>"
        f"<h1>{escape(info['title'])} {escape(info['version'])}</h1><p>{escape(info['description'])} "
        f"<a href=/openapi.json>openapi.json</a></p>{rows}"
    )


def _json(what: dict[str, Any]) -> str:
    return json.dumps({name: what[name] for name in ("requestBody", "responses") if name in what}, indent=1)
