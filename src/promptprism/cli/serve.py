"""``promptprism serve``."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any

import typer

from promptprism.cli.options import AdapterBackbone, Device, Pretrained, TrustBackbone, adapter_argument
from promptprism.cli.output import tell
from promptprism.errors import PromptPrismError


def serve(
    adapter: Annotated[Path, adapter_argument("fit or export")],
    host: Annotated[
        str, typer.Option(metavar="ADDRESS", help="To listen at; 0.0.0.0 lets everybody in.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(metavar="N", min=0, max=65535, help="0 takes a free one.")] = 8000,
    batch: Annotated[int, typer.Option(metavar="N", min=1, help="Images that the model sees at once.")] = 32,
    wait: Annotated[
        float, typer.Option(metavar="MS", min=0, help="Milliseconds that a batch waits for more.")
    ] = 5.0,
    room: Annotated[
        int, typer.Option(metavar="N", min=1, help="Images that may wait; then the answer is 429.")
    ] = 256,
    most_bytes: Annotated[int, typer.Option(metavar="N", min=1, help="Bytes of a request.")] = 32 * 2**20,
    most_pixels: Annotated[int, typer.Option(metavar="N", min=1, help="Pixels of an image.")] = 50_000_000,
    most_images: Annotated[int, typer.Option(metavar="N", min=1, help="Images of a request.")] = 64,
    most_classes: Annotated[int, typer.Option(metavar="N", min=2, help="Classes of a request.")] = 1000,
    most_seconds: Annotated[
        float, typer.Option(metavar="S", min=0.1, help="Until the answer is 503.")
    ] = 30.0,
    backbone: AdapterBackbone = None,
    pretrained: Pretrained = None,
    trust_backbone: TrustBackbone = False,
    device: Device = "auto",
) -> None:
    """Answer over HTTP, by default on this machine alone.

    POST /predict with files or base64; see /docs. SIGTERM and Ctrl-C let it answer what it accepted first.
    """
    try:
        import fastapi  # noqa: F401
        import prometheus_client  # noqa: F401
        import python_multipart  # noqa: F401
        import uvicorn
    except ImportError as error:
        raise PromptPrismError(
            f"a server needs the package {error.name!r}: pip install 'promptprism[serve]'"
        ) from error
    from promptprism.runtime import FACTS
    from promptprism.serving.app import make_app
    from promptprism.serving.engine import open_engine
    from promptprism.serving.limits import Limits

    engine = open_engine(
        adapter, backbone=backbone, pretrained=pretrained, trust_backbone=trust_backbone, device=device
    )
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
