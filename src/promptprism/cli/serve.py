"""``promptprism serve``."""

from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

from promptprism.cli.options import ModelOptions, Port, adapter_argument, grouped, option
from promptprism.cli.output import tell
from promptprism.errors import needs


@grouped
def serve(
    *,
    adapter: Annotated[Path, adapter_argument("fit or export")],
    host: Annotated[str, option("ADDRESS", "To listen at; 0.0.0.0 lets everybody in.")] = "127.0.0.1",
    port: Port = 8000,
    batch: Annotated[int, option("N", "Images that the model sees at once.", min=1)] = 32,
    wait: Annotated[float, option("MS", "Milliseconds that a batch waits for more.", min=0)] = 5.0,
    room: Annotated[int, option("N", "Images that may wait; then the answer is 429.", min=1)] = 256,
    most_bytes: Annotated[int, option("N", "Bytes of a request.", min=1)] = 32 * 2**20,
    most_pixels: Annotated[int, option("N", "Pixels of an image.", min=1)] = 50_000_000,
    most_images: Annotated[int, option("N", "Images of a request.", min=1)] = 64,
    most_classes: Annotated[int, option("N", "Classes of a request.", min=2)] = 1000,
    most_seconds: Annotated[float, option("S", "Until the answer is 503.", min=0.1)] = 30.0,
    opening: ModelOptions,
) -> None:
    """Answer over HTTP, by default on this machine alone.

    POST /predict with files or base64; see /docs. SIGTERM and Ctrl-C let it answer what it accepted first.
    """
    with needs("a server", "serve"):
        import fastapi  # noqa: F401
        import prometheus_client  # noqa: F401
        import python_multipart  # noqa: F401
        import uvicorn
    from promptprism.runtime import FACTS
    from promptprism.serving.app import make_app
    from promptprism.serving.engine import open_engine
    from promptprism.serving.limits import Limits

    engine = open_engine(adapter, **asdict(opening))
    limits = Limits(
        bytes=most_bytes,
        pixels=most_pixels,
        images=most_images,
        classes=most_classes,
        seconds=most_seconds,
        room=room,
        batch=batch,
        wait=wait / 1000,
    )
    kind = "ONNX" if (adapter / FACTS).exists() else "torch"
    config = uvicorn.Config(
        make_app(engine, limits, host),
        host=host,
        port=port,
        log_level="warning",
        timeout_graceful_shutdown=int(most_seconds) + 1,
    )

    class Server(uvicorn.Server):
        async def startup(self, *arguments: Any, **named: Any) -> None:
            await super().startup(*arguments, **named)
            for one in self.servers:
                name, number, *_ = one.sockets[0].getsockname()
                tell(f"'{adapter}' ({kind}) answers at http://{name}:{number}; see /docs", "green")

    with suppress(KeyboardInterrupt):  # uvicorn raises the signal again when all is answered
        Server(config).run()
