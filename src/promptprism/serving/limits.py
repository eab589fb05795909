"""What one request may ask, and the body of a request held to it while it is read."""

from dataclasses import dataclass

from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

#: Seconds after which a client that was refused for want of room may come again.
SOON = 1


@dataclass(frozen=True)
class Limits:
    """Of a request, and of all that are in work.

    Attributes:
        bytes: of a request's body.
        pixels: of an image, before it is decoded.
        images: of a request.
        classes: names that a request may choose among.
        seconds: from its arrival to its answer.
        room: images that are accepted and not yet answered.
        batch: images that the model sees at once.
        wait: seconds that a batch waits for more.
    """

    bytes: int = 32 * 2**20
    pixels: int = 50_000_000
    images: int = 64
    classes: int = 1000
    seconds: float = 30.0
    room: int = 256
    batch: int = 32
    wait: float = 0.005


class Refused(Exception):
    """A request that is not answered.

    Attributes:
        status: of HTTP.
        error: what is wrong, where, and what to do, as users read it.
        retry_after: seconds, if coming again helps.
    """

    def __init__(self, status: int, error: str, retry_after: int | None = None) -> None:
        super().__init__(error)
        self.status, self.error, self.retry_after = status, error, retry_after

    def response(self) -> JSONResponse:
        """As JSON."""
        headers = None if self.retry_after is None else {"Retry-After": str(self.retry_after)}
        return JSONResponse({"error": self.error}, self.status, headers)


async def refused(_: Request, error: Exception) -> JSONResponse:
    """Answer for an exception that FastAPI hands over."""
    assert isinstance(error, Refused)
    return error.response()


class BoundedBodies:
    """Holds bodies to the limit of bytes, whatever their header says, and their number to the room."""

    def __init__(self, app: ASGIApp, limits: Limits) -> None:
        self.app, self.limits, self.reading = app, limits, 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on; answer 413 or 429 instead where it must not go on."""
        if scope["type"] != "http" or scope["method"] != "POST":
            await self.app(scope, receive, send)
            return
        length = dict(scope["headers"]).get(b"content-length", b"0")
        most, read = self.limits.bytes, 0
        too_large = Refused(
            413, f"the request is larger than {most:,} bytes: send fewer or smaller images at once"
        )
        if not length.isdigit() or int(length) > most:
            await too_large.response()(scope, receive, send)
            return
        if self.reading >= self.limits.room:
            full = Refused(429, f"{self.reading} requests are in work: come again later", SOON)
            await full.response()(scope, receive, send)
            return

        async def bounded() -> Message:
            nonlocal read
            message = await receive()
            read += len(message.get("body", b""))
            if read > most:
                raise too_large
            return message

        self.reading += 1
        try:
            await self.app(scope, bounded, send)
        finally:
            self.reading -= 1
