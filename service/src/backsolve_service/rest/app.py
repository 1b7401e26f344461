"""The application: routes over the handlers, and problem documents for everything that fails.

The routes are plain ASGI endpoints: arrays never pass through a model, and a small solve does
not pay for one. What is asked for at a fixed address goes straight to its endpoint, past FastAPI and its layers; those
carry addresses with parameters, and say what is wrong with addresses that do not exist.
"""

import json
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from http import HTTPStatus
from typing import Any, final

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from backsolve.errors import MalformedError, NotFoundError, UnauthenticatedError

from ..callers import Callers
from . import operations
from .exchange import Exchange, Receive, Reply, Scope, Send
from .handlers import Handlers
from .media import JSON
from .openapi import document
from .problems import PROBLEM_TYPE, make_problem, problem_of

Handler = Callable[[Exchange], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]
Failed = Callable[[Exception, str], None]

OPEN_PATHS = ("/livez", "/readyz", "/v2/health/live", "/v2/health/ready")
"""What an orchestrator asks without a token."""

_UNKNOWN_DRAIN_BYTES = 16 << 20
"""A caller without a valid token is not listened to for longer than this."""

_EXCHANGE = "backsolve.exchange"


@final
class Endpoint:
    """The handlers of one address as an ASGI application."""

    def __init__(self, by_method: Mapping[str, Handler]) -> None:
        # The router adds HEAD to whatever has GET; the server leaves the body out.
        self._by_method = {"HEAD": by_method["GET"], **by_method} if "GET" in by_method else by_method

    @property
    def methods(self) -> list[str]:
        """What may be asked here."""
        return list(self._by_method)

    def handler(self, method: str) -> Handler | None:
        """What handles a method here; None: it is none of this address."""
        return self._by_method.get(method)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request; failures go up to the gate."""
        await self._by_method[scope["method"]](scope[_EXCHANGE])


@final
class Gate:
    """Outermost layer: makes the exchange, asks for the token, and turns whatever fails into a problem.

    Args:
        app: the application behind it.
        fixed: endpoints of addresses without parameters, by address.
        callers: whose tokens let in, sent as `Authorization: Bearer`.
        drain_bytes: most bytes of a refused body that are read so that the caller sees the reply.
        failed: hears of every request that fails, with its id.
    """

    def __init__(
        self, app: App, fixed: Mapping[str, Endpoint], callers: Callers, drain_bytes: int, failed: Failed
    ) -> None:
        self._app, self._fixed = app, fixed
        self._drain_bytes, self._failed = drain_bytes, failed
        self._callers = callers

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        exchange = Exchange(scope, receive, send, self._drain_bytes)
        path = scope["path"]
        if self._callers.asked and path not in OPEN_PATHS:
            try:
                exchange.tenant = self._callers.tenant(_token(scope), "send Authorization: Bearer TOKEN")
            except UnauthenticatedError as error:
                exchange.drain_bytes = _UNKNOWN_DRAIN_BYTES
                await _fail(exchange, error, self._failed)
                return
        endpoint = self._fixed.get(path)
        handler = None if endpoint is None else endpoint.handler(scope["method"])
        if handler is None:
            scope[_EXCHANGE] = exchange
            try:
                await self._app(scope, exchange.receive, exchange.send)
            finally:
                del scope[_EXCHANGE]  # each holds the other: they would be left to the garbage collector
            return
        try:
            await handler(exchange)
        except Exception as error:
            await _fail(exchange, error, self._failed)


@final
class Guard:
    """Innermost layer of FastAPI: what its routes raise becomes a problem, before Starlette answers a bare 500.

    Args:
        app: the router.
        failed: see `Gate`.
    """

    def __init__(self, app: App, failed: Failed) -> None:
        self._app, self._failed = app, failed

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        try:
            await self._app(scope, receive, send)
        except Exception as error:
            await _fail(scope[_EXCHANGE], error, self._failed)


async def _fail(exchange: Exchange, error: Exception, failed: Failed) -> None:
    failed(error, exchange.request_id)
    await exchange.fail(error)


def _token(scope: Scope) -> str | None:
    """The bearer token of a request."""
    given = next((value for name, value in scope["headers"] if name == b"authorization"), b"")
    scheme, _, token = given.decode("latin-1").partition(" ")
    return token if scheme == "Bearer" else None


def create_app(handlers: Handlers, callers: Callers, drain_bytes: int, failed: Failed) -> Gate:
    """The application.

    Args:
        handlers: the routes' code.
        callers: see `Gate`.
        drain_bytes: see `Gate`.
        failed: see `Gate`.
    """
    openapi = document()
    endpoints = {path: Endpoint(by_method) for path, by_method in _table(handlers, openapi)}
    app = FastAPI(
        openapi_url=None,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        routes=[Route(path, endpoint, methods=endpoint.methods) for path, endpoint in endpoints.items()],
        exception_handlers={HTTPException: _on_http_exception, RequestValidationError: _on_validation_error},
    )
    app.openapi = lambda: openapi  # type: ignore[method-assign]
    fixed = {path: endpoint for path, endpoint in endpoints.items() if "{" not in path}
    app.add_middleware(Guard, failed=failed)
    return Gate(app, fixed, callers, drain_bytes, failed)


def _table(handlers: Handlers, openapi: dict[str, Any]) -> list[tuple[str, dict[str, Handler]]]:
    page = Reply(200, JSON, (json.dumps(openapi).encode(),))
    return [
        ("/v1/solve", {"POST": partial(handlers.compute, operations.SOLVE)}),
        ("/v1/vjp", {"POST": partial(handlers.compute, operations.VJP)}),
        ("/v1/jvp", {"POST": partial(handlers.compute, operations.JVP)}),
        ("/v1/matrices", {"POST": handlers.upload}),
        ("/v1/matrices/{ref}", {"PUT": handlers.put, "HEAD": handlers.head, "DELETE": handlers.delete}),
        ("/v1/info", {"GET": handlers.info}),
        ("/v1/stats", {"GET": handlers.stats}),
        ("/livez", {"GET": handlers.live}),
        ("/readyz", {"GET": handlers.ready}),
        ("/v2/health/live", {"GET": handlers.live}),
        ("/v2/health/ready", {"GET": handlers.ready}),
        ("/metrics", {"GET": handlers.metrics}),
        ("/openapi.json", {"GET": lambda exchange: exchange.reply(page)}),
    ]


async def _on_http_exception(request: Request, error: Exception) -> Response:
    """The router found no route (404), or none for the method (405)."""
    exchange: Exchange = request.scope[_EXCHANGE]
    await exchange.drain()
    if isinstance(error, HTTPException) and error.status_code == HTTPStatus.METHOD_NOT_ALLOWED:
        allowed = (error.headers or {}).get("Allow", "")
        problem = make_problem(
            "NOT_SUPPORTED",
            HTTPStatus.METHOD_NOT_ALLOWED,
            f"this address takes {allowed} only",
            exchange.request_id,
            {"allow": allowed},
        )
        return Response(problem.body, problem.status, {**problem.headers, "allow": allowed}, PROBLEM_TYPE)
    return _response(NotFoundError("there is nothing at this address: GET /openapi.json lists what is"), exchange)


async def _on_validation_error(request: Request, error: Exception) -> Response:
    """FastAPI's own report would echo the input."""
    exchange: Exchange = request.scope[_EXCHANGE]
    await exchange.drain()
    return _response(MalformedError("the request does not fit this address: see GET /openapi.json"), exchange)


def _response(error: Exception, exchange: Exchange) -> Response:
    problem = problem_of(error, exchange.request_id)
    return Response(problem.body, problem.status, dict(problem.headers), PROBLEM_TYPE)
