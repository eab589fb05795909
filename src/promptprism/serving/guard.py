"""What stands before everything that is served: who may ask, from where, and how much."""

import secrets
from collections.abc import Awaitable, Callable, Sequence
from urllib.parse import urlsplit

from fastapi import FastAPI, Request, Response
from fastapi.responses import PlainTextResponse

#: Bytes of the largest request.
MOST_BYTES = 1 << 20
LOOPBACK = ("127.0.0.1", "localhost", "[::1]")
_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
    "Cross-Origin-Resource-Policy": "same-origin",
}
_POLICY = (
    "default-src 'none'; img-src 'self' blob:; connect-src 'self'; script-src 'nonce-{0}'; "
    "style-src 'nonce-{0}'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


def guard(app: FastAPI, token: str, hosts: Sequence[str] = LOOPBACK) -> None:
    """Let in only what has the token, is sent to one of the hosts, and comes from no other page.

    The token is in the query as ``token``, or in the header ``X-Token``. ``request.state.nonce`` is what
    scripts and styles of a page must carry.
    """

    @app.middleware("http")
    async def check(request: Request, ask: Callable[[Request], Awaitable[Response]]) -> Response:
        host, origin = request.headers.get("host", ""), request.headers.get("origin")
        given = request.headers.get("x-token") or request.query_params.get("token", "")
        length = request.headers.get("content-length", "0" if request.method in ("GET", "HEAD") else "")
        request.state.nonce = secrets.token_urlsafe(16)
        if host.rpartition(":")[0] not in hosts and host not in hosts:
            response: Response = PlainTextResponse("not the host that is served here", 421)
        elif origin is not None and urlsplit(origin).netloc != host:
            response = PlainTextResponse("asked by another page", 403)
        elif not secrets.compare_digest(given.encode(), token.encode()):
            response = PlainTextResponse("the address has no valid token: take the one that was printed", 403)
        elif not length.isdecimal() or int(length) > MOST_BYTES:
            response = PlainTextResponse("too much at once", 413)
        else:
            response = await ask(request)
        for name, value in _HEADERS.items():
            response.headers[name] = value
        response.headers["Content-Security-Policy"] = _POLICY.format(request.state.nonce)
        return response
