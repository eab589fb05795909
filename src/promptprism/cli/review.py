"""``promptprism review``."""

import importlib
import secrets
from pathlib import Path
from typing import Annotated

import typer

from promptprism.cli.options import (
    Adapter,
    AdapterSettings,
    Classes,
    ModelOptions,
    Port,
    argument,
    grouped,
    option,
)
from promptprism.cli.output import Output
from promptprism.errors import PromptPrismError, needs


@grouped
def review(
    *,
    adapter: Adapter,
    photos: Annotated[Path, argument("FOLDER", "Folder of photos.")],
    corrections: Annotated[Path, option("FILE", "CSV that labels are added to, and read from.")] = Path(
        "review.csv"
    ),
    host: Annotated[str, option("NAME", "Where to listen.")] = "127.0.0.1",
    port: Port = 8642,
    import_label_studio: Annotated[
        Path | None, option("FILE", "Add the labels of Label Studio's JSON first.")
    ] = None,
    export_label_studio: Annotated[
        Path | None, option("FILE", "Answer all, write Label Studio's JSON, serve nothing.")
    ] = None,
    classes: Classes = None,
    settings: AdapterSettings = None,
    opening: ModelOptions,
) -> None:
    """Correct answers in the browser, the most doubtful first.

    Each label is on the disk at once, in a CSV that is read again the next time.
    """
    output = Output("review", None)
    with needs("the page", "serve"):
        uvicorn = importlib.import_module("uvicorn")
        served = importlib.import_module("promptprism.serving.review")
        from promptprism.serving.guard import LOOPBACK
    import socket

    model = opening.open(adapter, settings, classes)
    if import_label_studio is not None:
        from promptprism.data.corrections import append
        from promptprism.data.label_studio import read_tasks

        labels = read_tasks(import_label_studio, photos, [str(name) for name in model.classes_])
        append(corrections, labels)
        output.show(f"{len(labels)} labels of {import_label_studio} are in {corrections}")
    looked = served.Review(model, photos, corrections)
    if export_label_studio is not None:
        from promptprism.data.label_studio import write_tasks

        looked.answer()
        rows = ((p["name"], p.get("class", ""), p.get("probability"), p["label"]) for p in looked.photos)
        write_tasks(export_label_studio, rows, model.method)
        output.show(f"{len(looked.photos)} tasks are in {export_label_studio}")
        return
    token = secrets.token_urlsafe(24)
    app = served.review_app(looked, token, (*LOOPBACK, host))
    try:
        listening = socket.create_server((host, port))
    except OSError as error:
        raise PromptPrismError(
            f"cannot listen at {host}:{port} ({error.strerror or error}): choose another --port, or 0 for any"
        ) from error
    with listening:
        address = f"http://{host}:{listening.getsockname()[1]}/?token={token}"
        typer.echo(f"Open {address}")  # in one line, however narrow the terminal
        output.show(f"Labels go to {corrections}. Ctrl-C ends it; nothing is lost.")
        looked.start()
        uvicorn.Server(uvicorn.Config(app, log_level="warning")).run(sockets=[listening])
        looked.stop()
