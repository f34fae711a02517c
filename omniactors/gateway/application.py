"""The HTTP application: the page, the health check, the routes it is given, and the guard before all of them."""

from __future__ import annotations

from importlib import resources
from typing import TYPE_CHECKING

from starlette.applications import Starlette
from starlette.datastructures import MutableHeaders
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from omniactors.gateway.access import Head, Policy, is_loopback

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from starlette.requests import Request
    from starlette.routing import BaseRoute
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

_ASSETS = {
    "/": ("index.html", "text/html"),
    "/static/page.css": ("page.css", "text/css"),
    "/static/page.js": ("page.js", "text/javascript"),
    "/static/icon.svg": ("icon.svg", "image/svg+xml"),
}
"""The page: files of this package, read once when the application is built."""


def build_application(policy: Policy, routes: Sequence[BaseRoute] = ()) -> Starlette:
    """The page at `/`, `/healthz`, and `routes`, all behind the guard. For this gateway or any ASGI server on trio."""
    page = resources.files("omniactors.gateway") / "page"
    own = [Route(path, _serve((page / name).read_bytes(), media)) for path, (name, media) in _ASSETS.items()]
    application = Starlette(routes=[*own, Route("/healthz", _healthz), *routes])
    application.add_middleware(Guard, policy=policy)
    return application


class Guard:
    """Middleware: refuses what the policy does not allow, and gives every response its security headers."""

    def __init__(self, app: ASGIApp, *, policy: Policy) -> None:
        self._app = app
        self._policy = policy
        self._headers = security_headers(policy)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def send_guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in self._headers:
                    headers.setdefault(name, value)
            await send(message)

        refusal = self._policy.judge(_head(scope))
        if refusal is None:
            await self._app(scope, receive, send_guarded)
            return
        response = JSONResponse({"error": refusal.why}, status_code=refusal.status, headers=dict(refusal.headers))
        await response(scope, receive, send_guarded)


def security_headers(policy: Policy) -> tuple[tuple[str, str], ...]:
    """Headers that keep the page to itself. 'self' covers its own WebSocket; loopback has two names for one place."""
    sockets = f" ws://127.0.0.1:{policy.port} ws://localhost:{policy.port}" if is_loopback(policy.host) else ""
    rules = (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
        f"connect-src 'self'{sockets}; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    return (
        ("content-security-policy", rules),
        ("x-content-type-options", "nosniff"),
        ("x-frame-options", "DENY"),
        ("referrer-policy", "no-referrer"),
        ("cross-origin-opener-policy", "same-origin"),
        ("cross-origin-resource-policy", "same-origin"),
        ("cache-control", "no-store"),
    )


def _serve(content: bytes, media_type: str) -> Callable[[Request], Awaitable[Response]]:
    # async although nothing waits: Starlette would run a plain function in a worker thread.
    async def endpoint(_: Request) -> Response:
        return Response(content, media_type=media_type)

    return endpoint


async def _healthz(_: Request) -> PlainTextResponse:
    return PlainTextResponse("ok")


def _head(scope: Scope) -> Head:
    headers = tuple((name.decode("latin-1"), value.decode("latin-1")) for name, value in scope["headers"])
    query = scope["query_string"].decode("latin-1")
    return Head(scope["method"], scope["path"], query, headers, scope.get("raw_path") or b"", scope["http_version"])
