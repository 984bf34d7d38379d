"""The application: routes, middleware, error handlers."""

import asyncio
import time
import traceback
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from importlib.metadata import version
from typing import Any

from fastapi import APIRouter, Depends, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.types import Scope

from groundling.errors import GroundlingError
from groundling.serve import pages, xray
from groundling.serve.completions import requests as completion_requests
from groundling.serve.completions.completion import Completion
from groundling.serve.completions.requests import ParsedRequest
from groundling.serve.completions.schema import ChatRequest, CompletionRequest
from groundling.serve.http.auth import key_checker, require_api_key
from groundling.serve.http.bodies import BodyLimit, RequireKey
from groundling.serve.http.errors import ApiError, in_time
from groundling.serve.http.middleware import HostAndOriginCheck, RequestLog, error_response
from groundling.serve.http.responses import EventStream, Gone, as_json, unless_gone
from groundling.serve.http.validation import explain, unreadable
from groundling.serve.ranking import routes as rankings
from groundling.serve.runs import routes as runs
from groundling.serve.state import ServerState, State
from groundling.system.logs import EventLog


class ErrorFacts(BaseModel):
    """An error."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorBody(BaseModel):
    """The body of every error response."""

    error: ErrorFacts


STATUSES = (400, 401, 403, 404, 405, 408, 409, 413, 414, 415, 429, 431, 500, 503)
ERRORS: dict[int | str, dict[str, Any]] = {status: {"model": ErrorBody} for status in STATUSES}


def create_app(server: ServerState, log: EventLog) -> FastAPI:
    """Build the application. Models are loaded after startup, while /health already answers."""
    app = FastAPI(
        title="Groundling",
        version=version("groundling"),
        docs_url=None,
        redoc_url=None,
        openapi_url=None,
        redirect_slashes=False,
        lifespan=_lifespan(server, log),
        responses=ERRORS,
    )
    app.state.server = server
    require_key = Depends(require_api_key(server.config.keys()))
    app.include_router(_open_routes(server))
    app.include_router(pages.router())
    own_routes = [module.router(server) for module in (xray, rankings, runs)]
    for routes in (_keyed_routes(app, server), _v1(server, log), *own_routes):
        app.include_router(routes, dependencies=[require_key])
    _explain_errors(app)
    config = server.config
    app.add_middleware(BodyLimit, max_bytes=config.max_body_bytes, timeout_s=config.receive_timeout_s)
    app.add_middleware(RequireKey, check=key_checker(config.keys()))
    app.add_middleware(HostAndOriginCheck, hosts=config.hosts(), allowed=config.cors_origins)
    app.add_middleware(RequestLog, on_end=_record_request(server, log), on_exception=_log_exception(log))
    return app


def _lifespan(server: ServerState, log: EventLog) -> Callable[[FastAPI], Any]:
    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        def failed(error: Exception) -> None:
            server.failure, server.state = error, State.STOPPED
            log.write("bug", "error", id=None, traceback="".join(traceback.format_exception(error)))

        server.worker.start(failed)
        loading = asyncio.create_task(_load(server, log))
        yield
        loading.cancel()
        await server.stop()

    return lifespan


async def _load(server: ServerState, log: EventLog) -> None:
    """Load all models in order; if one fails, serve none."""
    try:
        for name, path in server.wanted.items():
            served = await server.worker.call(lambda name=name, path=path: server.load(name, path))  # type: ignore[misc]
            if server.state is not State.LOADING:  # stopped meanwhile
                return
            server.models.add(served)
            log.write("loaded", model=name, native=served.engine.is_native)
    except Exception as error:  # bugs too: the server would never get ready
        if server.state is State.LOADING:
            server.failure = error
        return
    server.state = State.READY
    log.write("ready", models=server.models.names())


def _open_routes(server: ServerState) -> APIRouter:
    routes = APIRouter(tags=["state"])

    async def health() -> dict[str, str]:
        """Liveness probe."""
        return {"status": "alive"}

    async def ready() -> dict[str, str]:
        """Readiness probe."""
        server.require_ready()
        return {"status": "ready"}

    for path, function in (("/health", health), ("/ready", ready)):
        routes.add_api_route(path, function, methods=["GET"])
        routes.add_api_route(path, function, methods=["HEAD"], include_in_schema=False)
    return routes


def _keyed_routes(app: FastAPI, server: ServerState) -> APIRouter:
    routes = APIRouter(include_in_schema=False)

    @routes.get("/metrics")
    async def metrics() -> Response:
        return Response(server.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    @routes.get("/openapi.json")
    async def openapi_json() -> Response:
        return Response(as_json(_schema(app)), media_type="application/json")

    return routes


def _schema(app: FastAPI) -> dict[str, Any]:
    """The OpenAPI document, without FastAPI's 422: an invalid body is a 400 here."""
    schema = app.openapi()
    for path in schema["paths"].values():
        for operation in path.values():
            operation["responses"].pop("422", None)
    for name in ("HTTPValidationError", "ValidationError"):
        schema.get("components", {}).get("schemas", {}).pop(name, None)
    return schema


def _v1(server: ServerState, log: EventLog) -> APIRouter:
    routes = APIRouter(prefix="/v1", tags=["OpenAI"])
    streamed: dict[int | str, dict[str, Any]] = {200: {"content": {"application/json": {}, "text/event-stream": {}}}}

    @routes.get("/models")
    async def list_models() -> dict[str, Any]:
        """List models."""
        server.require_ready()
        cards = [server.models.get(name).card() for name in server.models.names()]
        return {"object": "list", "data": cards}

    @routes.get("/models/{model}")
    async def get_model(model: str) -> dict[str, Any]:
        """Retrieve a model."""
        server.require_ready()
        return server.models.get(model).card()

    @routes.post("/completions", responses=streamed, response_class=Response)
    async def completions(body: CompletionRequest, request: Request) -> Response:
        """Create a text completion."""
        return await _respond(
            server, log, completion_requests.parse_completion(server, body), request, bool(body.stream)
        )

    @routes.post("/chat/completions", responses=streamed, response_class=Response)
    async def chat_completions(body: ChatRequest, request: Request) -> Response:
        """Create a chat completion."""
        return await _respond(server, log, completion_requests.parse_chat(server, body), request, bool(body.stream))

    return routes


async def _respond(
    server: ServerState, log: EventLog, parsing: Coroutine[Any, Any, ParsedRequest], request: Request, streamed: bool
) -> Response:
    """Parse and decode a request; cancel it if its client disconnects."""
    notes, until = request.scope["notes"], time.monotonic() + server.config.timeout_s
    server.n_open += 1

    def aborted(reason: str) -> None:
        known = {"disconnect": "disconnect", "slow_reader": "slow_reader", "deadline_exceeded": "deadline"}
        server.metrics.aborted.labels(known.get(reason, "error")).inc()

    try:
        parsed = await unless_gone(request.receive, in_time(parsing, server.config.timeout_s))
        completion = Completion(server, parsed, request.state.client, until - time.monotonic())
    except BaseException as error:
        server.n_open -= 1
        if isinstance(error, Gone):
            aborted(error.reason)
            notes.update(aborted=error.reason)
            return Response(status_code=499)
        if isinstance(error, ApiError) and error.code == "deadline_exceeded":
            aborted(error.code)
        raise

    def finish(reason: str | None) -> None:
        completion.close()
        server.n_open -= 1
        if reason is not None:
            aborted(reason)
        completion.record_metrics()
        notes.update(model=parsed.served.name, aborted=reason, **completion.usage())
        if server.config.log_text:
            log.write("text", id=notes["id"], prompts=completion.prompts(), replies=completion.replies())

    if streamed:
        return EventStream(completion.chunks(), server.config.send_timeout_s, finish)
    reason: str | None = "error"
    try:
        data = await unless_gone(request.receive, completion.response())
        reason = None
        return Response(data, media_type="application/json")
    except Gone as gone:
        reason = gone.reason
        return Response(status_code=499)
    except ApiError as error:
        reason = error.code
        raise
    finally:
        finish(reason)


def _explain_errors(app: FastAPI) -> None:
    """Return every error in OpenAI's format."""

    async def api_error(_: Request, error: Exception) -> Response:
        assert isinstance(error, ApiError)
        return error_response(error)

    async def user_error(_: Request, error: Exception) -> Response:
        return error_response(ApiError(400, " ".join(str(error).split()), "invalid_value"))

    async def invalid_request(request: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)
        return error_response(explain(error, request.scope.get("endpoint")))

    async def http_error(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        if error.__cause__ is not None:
            return error_response(ApiError(error.status_code, unreadable(error.__cause__), "invalid_json"))
        # Not `request.url`, which fails if the Host header is invalid.
        wanted = f"{request.method[:20]} {request.scope['path'][:100]}"
        message = f"there is no {wanted}; the API is under /v1, and /openapi.json describes it"
        code = "method_not_allowed" if error.status_code == 405 else "not_found"
        response = error_response(ApiError(error.status_code, message, code))
        response.headers.update(error.headers or {})
        return response

    app.add_exception_handler(ApiError, api_error)
    app.add_exception_handler(GroundlingError, user_error)
    app.add_exception_handler(RequestValidationError, invalid_request)
    app.add_exception_handler(HTTPException, http_error)


def _record_request(server: ServerState, log: EventLog) -> Callable[[Scope, int, float], None]:
    def record(scope: Scope, status: int, seconds: float) -> None:
        route = getattr(scope.get("route"), "path", "other")
        server.metrics.requests.labels(route, str(status)).inc()
        server.metrics.seconds.observe(seconds)
        if route not in ("/health", "/ready", "/metrics"):
            facts = {"method": scope["method"][:20], "route": route, "status": status, "ms": round(1000 * seconds, 1)}
            log.write("request", **facts, **scope["notes"])

    return record


def _log_exception(log: EventLog) -> Callable[[Scope, Exception], ApiError]:
    def failed(scope: Scope, error: Exception) -> ApiError:
        log.write("bug", "error", id=scope["notes"]["id"], traceback="".join(traceback.format_exception(error)))
        return ApiError(500, "internal error; the server's log has the details", "internal_error")

    return failed
