"""Answers of a heap of photos to be looked through by a person, in a page served from this machine."""

import io
import json
import os
import threading
from collections.abc import Iterator
from importlib.resources import files
from operator import itemgetter
from pathlib import Path
from typing import Any

from fastapi import Body, FastAPI, Request, Response
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import HTMLResponse

from promptprism.data.corrections import Correction, append, read_corrections
from promptprism.data.folders import photos_below
from promptprism.data.images import load_image
from promptprism.errors import PromptPrismError
from promptprism.estimator import PromptPrism
from promptprism.files import check_place, is_there
from promptprism.inference.answers import Row, answers
from promptprism.serving.guard import guard

# Seconds between looks for photos that have come.
_AGAIN = 5.0
# What the page holds of every photo; it asks for the rest, which is kept as text, when it shows one.
_BRIEF = ("class", "probability", "disagreement", "reason")
# Photos that the page is told of at once.
_PIECE = 1000


class Review:
    """What is known of each photo: the answer, and the label that a person gave; the truth of all pages.

    Args:
        model: that answers.
        folder: of the photos; what a link leads to outside of it is left out.
        corrections: the CSV that labels go to, and come from.

    Raises:
        PromptPrismError: the folder is not there, or the CSV is none of corrections for these classes.
    """

    def __init__(self, model: PromptPrism, folder: Path, corrections: Path) -> None:
        if not folder.is_dir():
            raise PromptPrismError(f"no such folder: '{folder}'. Check the path and its spelling")
        self.model, self.folder, self.corrections = model, Path(os.path.abspath(folder)), corrections  # noqa: PTH100 - links stay
        self._real = folder.resolve()
        self.classes = [str(name) for name in model.classes_]
        check_place(corrections)
        given = {}
        if is_there(corrections):
            given = read_corrections(corrections, self.classes)
            append(corrections, [])  # what cannot be added to is told of now, not with the first label
        self._given = given
        self.photos: list[Row] = []
        self.version, self.busy, self.problem = 0, True, ""
        self._known: set[Path] = set()
        self._undo: list[tuple[int, str]] = []
        self._lock = threading.RLock()
        self._asking = threading.Lock()  # an explanation hooks into the model: one at a time uses it
        self._stop = threading.Event()

    def start(self) -> None:
        """Answer in the background, and look for photos that come, until `stop`."""
        threading.Thread(target=self._answer_on, daemon=True).start()

    def stop(self) -> None:
        """End answering."""
        self._stop.set()

    def _answer_on(self) -> None:
        while not self._stop.is_set():
            self.answer()
            self._stop.wait(_AGAIN)

    def answer(self) -> None:
        """Answer all photos that are there and have no answer yet."""
        try:
            if not self.folder.is_dir():
                raise PromptPrismError(f"folder '{self.folder}' is gone: put it back; labels are kept")
            rows = answers(self.model.classifier_, self._new(), templates=True, batch_size=8)
            while True:
                with self._asking:
                    row = next(rows, None)
                if row is None:
                    break
                self._add(row)
                if self._stop.is_set():
                    return
            problem = ""
        except PromptPrismError as error:
            problem = str(error)
        with self._lock:
            if self.busy or problem != self.problem:
                self.version += 1
            self.busy, self.problem = False, problem

    def _new(self) -> Iterator[Path]:
        for path in photos_below(self.folder, []):
            if path not in self._known and self._ours(path):
                self._known.add(path)
                yield path

    def _ours(self, path: Path) -> bool:
        return path.resolve().is_relative_to(self._real)

    def _add(self, row: Row) -> None:
        path = Path(row["image"])
        with self._lock:
            self.version += 1
            name = path.relative_to(self.folder).as_posix().encode("utf-8", "backslashreplace").decode()
            self.photos.append(
                {"id": len(self.photos), "name": name, "path": path, "version": self.version}
                | {"label": self._given.get(path, "")}
                | {key: row[key] for key in _BRIEF if key in row}
                | {"answer": json.dumps(row, default=str).encode()}
            )

    def state(self, since: int) -> dict[str, Any]:
        """What has changed since a version, the oldest changes first, and whether that is not all yet.

        Where the version is of an earlier start it begins anew.
        """
        with self._lock:
            since = since if since <= self.version else 0
            changed = [photo for photo in self.photos if photo["version"] > since]
            some = sorted(changed, key=itemgetter("version"))[:_PIECE]
            more = len(some) < len(changed)
            return {
                "version": some[-1]["version"] if more else self.version,
                "more": more,
                "busy": self.busy,
                "found": len(self._known),
                "problem": self.problem,
                "undo": len(self._undo),
                "photos": [
                    {key: value for key, value in photo.items() if key not in ("path", "answer")}
                    for photo in some
                ],
            }

    def photo(self, number: int) -> Row:
        """A photo by its number.

        Raises:
            PromptPrismError: there is none.
        """
        if not 0 <= number < len(self.photos):
            raise PromptPrismError(f"there is no photo {number}")
        return self.photos[number]

    def label(self, number: int, label: str) -> None:
        """Give a photo a label, or take it back by an empty one; it is on the disk when this returns.

        Raises:
            PromptPrismError: no such photo or class, or it cannot be written.
        """
        with self._lock:
            before = self.photo(number)["label"]
            self._write(number, label)
            self._undo.append((number, before))

    def undo(self) -> int | None:
        """Take the last act back, of whichever page; the number of its photo."""
        with self._lock:
            if not self._undo:
                return None
            self._write(*self._undo[-1])
            return self._undo.pop()[0]

    def _write(self, number: int, label: str) -> None:
        photo = self.photo(number)
        if label and label not in self.classes:
            raise PromptPrismError(f"there is no class '{label}': choose one of the {len(self.classes)}")
        if label and "reason" in photo:
            raise PromptPrismError(f"'{photo['name']}' cannot be read: nothing could be learned from it")
        append(
            self.corrections,
            [Correction(photo["path"], label, photo.get("class", ""), photo.get("probability"))],
        )
        self.version += 1
        photo.update(label=label, version=self.version)

    def picture(self, number: int, side: int) -> bytes:
        """A photo as JPEG of at most so many pixels a side; nothing but pixels of it is passed on."""
        path = self.photo(number)["path"]
        if not self._ours(path):
            raise PromptPrismError(f"'{path}' leads out of the folder")
        image = load_image(path, least=side)
        image.thumbnail((side, side))
        content = io.BytesIO()
        image.save(content, "JPEG", quality=85)
        return content.getvalue()

    def explanation(self, number: int) -> bytes:
        """The picture that explains an answer, as PNG."""
        from promptprism.reports.explanation import draw_explanation

        with self._asking:
            photo = self.photo(number)
            figure = draw_explanation(self.model.explain(photo["path"], photo["name"]))
            content = io.BytesIO()
            figure.savefig(content, format="png", dpi=80)
            return content.getvalue()


def review_app(review: Review, token: str, hosts: tuple[str, ...]) -> FastAPI:
    """The page and what it asks for."""
    app = FastAPI(openapi_url=None)
    page = files("promptprism.serving").joinpath("review.html").read_text(encoding="utf-8")

    @app.get("/")
    def index(request: Request) -> HTMLResponse:
        return HTMLResponse(page.replace("NONCE", request.state.nonce))

    @app.get("/api/classes")
    def classes() -> list[str]:
        return review.classes

    @app.get("/api/state")
    def state(since: int = 0) -> dict[str, Any]:
        return review.state(since)

    @app.get("/api/answer/{number}")
    def answer(number: int) -> Response:
        return Response(review.photo(number)["answer"], media_type="application/json")

    @app.get("/api/photo/{number}")
    def photo(number: int, side: int = 640) -> Response:
        return Response(review.picture(number, min(max(side, 32), 1600)), media_type="image/jpeg")

    @app.get("/api/explain/{number}")
    def explain(number: int) -> Response:
        return Response(review.explanation(number), media_type="image/png")

    @app.post("/api/label")
    async def label(number: int = Body(), label: str = Body(), since: int = Body(0)) -> dict[str, Any]:
        await run_in_threadpool(review.label, number, label)
        return review.state(since)

    @app.post("/api/undo")
    async def undo(since: int = Body(0, embed=True)) -> dict[str, Any]:
        number = await run_in_threadpool(review.undo)
        return review.state(since) | {"undone": number}

    @app.exception_handler(PromptPrismError)
    def refuse(request: Request, error: PromptPrismError) -> Response:  # noqa: ARG001
        return Response(str(error), 409, media_type="text/plain; charset=utf-8")

    guard(app, token, hosts)
    return app
