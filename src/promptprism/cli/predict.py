"""``promptprism predict``."""

from __future__ import annotations

import heapq
import json
from collections import Counter, deque
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from promptprism.cli import predict_shards
from promptprism.cli.options import (
    Adapter,
    AdapterSettings,
    Classes,
    Json,
    Margin,
    ModelOptions,
    Photos,
    flag,
    grouped,
    option,
)
from promptprism.cli.output import Output, watched
from promptprism.errors import PromptPrismError

if TYPE_CHECKING:
    from promptprism.data.growing import Line
    from promptprism.data.images import ImageSource
    from promptprism.data.photos import Heap
    from promptprism.data.sorting import How
    from promptprism.estimator import PromptPrism
    from promptprism.inference.answers import Row
    from promptprism.inference.conformal import Calibration

# As many answers fit on a screen; of more, the most doubtful are shown.
_SHOWN = 20


@grouped
def predict(
    *,
    adapter: Adapter,
    photos: Photos,
    out: Annotated[
        str | None,
        option(
            "FILE|FOLDER",
            "Table of all answers, .csv or .parquet; with --engine a folder of tables, or s3://... What "
            "is there already is not answered again.",
            "--out",
            "-o",
        ),
    ] = None,
    sort_into: Annotated[
        Path | None, option("FOLDER", "Copy each photo into a folder of its class in here.")
    ] = None,
    link: Annotated[bool, flag("--link", "Sort by symbolic links instead of copies.")] = False,
    move: Annotated[bool, flag("--move", "Sort by moving the photos themselves.")] = False,
    abstain_below: Annotated[
        str | None,
        option(
            "P", "Give no answer below this probability; 'calibrated' is the threshold that calibrate found."
        ),
    ] = None,
    sets: Annotated[
        bool, flag("--sets", "Show the classes that may be right, by what calibrate found.")
    ] = False,
    templates: Annotated[bool, flag("--templates", "Show the opinion of each template.")] = False,
    classes: Classes = None,
    settings: AdapterSettings = None,
    margin: Margin = None,
    opening: ModelOptions,
    engine: Annotated[
        str | None,
        option(
            "NAME",
            "Name shards (wds:PATTERN, also wds:s3://...) by processes of this machine, or by ray or "
            "ray://HOST:PORT, a cluster.",
        ),
    ] = None,
    workers: Annotated[
        int | None,
        option("N", "Of --engine: shards that are worked at together; None is a core each.", min=1),
    ] = None,
    once: Annotated[bool, flag("--once", "Of --engine: look at pictures with the same bytes once.")] = False,
    json_file: Json = None,
) -> None:
    """Name the class of photos, and say how sure that is.

    Of many photos it shows how many there are of each class, and the most doubtful. Photos that cannot be
    read are listed, and the code is 1 then; 2 if there is no answer at all.
    """
    output = Output("predict", json_file)
    from promptprism.data.growing import GrowingTable, text_of
    from promptprism.data.photos import Heap
    from promptprism.data.sorting import Sorter
    from promptprism.inference.answers import answers
    from promptprism.inference.conformal import sets_of
    from promptprism.inference.lines import COLUMNS, line_of, row_of
    from promptprism.inference.predictor import none_read

    if link and move:
        raise PromptPrismError("photos are either linked or moved: leave out --link or --move")
    if out and json_file and Path(json_file).absolute() == Path(out).absolute():
        raise PromptPrismError(f"--out and --json name the same file, '{out}': name two")
    if (link or move) and sort_into is None:
        raise PromptPrismError("--link and --move say how to sort: add --sort-into FOLDER")
    single = {"--sort-into": sort_into is not None, "--templates": templates}
    predict_shards.check(engine, workers, once, out, single)
    shards = predict_shards.shards_of(photos) if engine else []
    heap = Heap(photos)
    model = opening.open(adapter, settings, classes)
    calibration = model.calibration_ if margin is None else None
    threshold = _threshold(abstain_below, calibration, adapter)
    if templates and not model.classifier_.evidential:
        raise PromptPrismError(f"method '{model.method}' has no opinions to show: leave out --templates")
    run = _run(model, adapter, margin)
    chosen = sets_of(model.calibration_) if sets else None
    facts = {
        "adapter": str(adapter),
        "method": model.method,
        "classes": len(model.classes_),
        "threshold": threshold,
        "temperature": calibration and calibration.temperature,
    }
    if engine and out:
        from promptprism.distributed.naming import Naming

        naming = Naming(out, _digest(run, threshold, sets), threshold, margin, chosen, once)
        content = predict_shards.predict_shards(output, model.classifier_, naming, shards, engine, workers)
        output.write(**facts, **content)
        predict_shards.finish(content)
        return
    told = _Told(threshold, whole=json_file is not None)
    sorter: Sorter | None = None
    table: GrowingTable | None = None
    done: dict[str, str | None] = {}

    def again(line: Line) -> Line | None:
        if line["error"]:
            return None  # it may be mended
        told.before += 1
        line["abstained"] = told.add(row_of(line))
        done[line["path"]] = None if line["abstained"] else line["class"]
        return line

    def missing() -> Iterator[ImageSource]:
        asked: set[str] = set()
        for source in heap:
            name = text_of(source)
            if name in done:
                if sorter:
                    sorter.put(source, done[name])
            elif not table and sorter and sorter.key(source) in sorter.places:
                told.before += 1
                sorter.put(source, None)
            elif not table or name not in asked:
                if table:
                    asked.add(name)
                yield source

    def noted(source: ImageSource) -> ImageSource:
        waiting.append(source)
        return source

    waiting: deque[ImageSource] = deque()
    rows = answers(model.classifier_, map(noted, missing()), templates, margin, sets=chosen)
    try:
        with ExitStack() as held:
            if sort_into is not None:
                how: How = "link" if link else "move" if move else "copy"
                names = [str(name) for name in model.classes_]
                sorter = held.enter_context(Sorter(sort_into, heap, names, how, f"{run}-{threshold}"))
            if out is not None:
                columns = COLUMNS | ({"set": str} if sets else {})
                table = held.enter_context(GrowingTable(Path(out), columns, run, again))
            for row in watched(rows, lambda: sum(1 for _ in Heap(photos))):
                source, abstained = waiting.popleft(), told.add(row)
                if sorter and "reason" not in row:
                    sorter.put(source, None if abstained else row["class"])
                if table:
                    table.add(line_of(row, abstained))
    except KeyboardInterrupt as reason:
        kept = " and ".join(f"'{place}'" for place in (out, sort_into) if place is not None)
        raise KeyboardInterrupt(f"{kept}: the same command goes on from here" if kept else "") from reason
    if not told.images and not told.before:
        if told.unread:
            raise none_read([row["reason"] for row in told.unread])
        raise PromptPrismError(f"there is no photo in {', '.join(map(repr, heap.places))}")
    _show(output, told, heap)
    if calibration:
        output.show(
            f"Probabilities are calibrated: temperature {calibration.temperature:.2f}, by {calibration.data}"
        )
    if chosen:
        output.show(f"Sets hold the true class of {1 - chosen.alpha:.0%} of photos like those, or of more")
    output.write(
        **facts,
        predictions=told.rows,
        unread=told.unread,
        abstained=told.abstained,
        answered_before=told.before,
        counts=dict(told.counts.most_common()),
    )
    output.end([row["reason"] for row in told.unread])


class _Told:
    """What is said of all answers at the end; few of them are held.

    Args:
        threshold: least probability of an answer.
        whole: hold all rows.
    """

    def __init__(self, threshold: float | None, whole: bool) -> None:
        self.threshold, self.whole = threshold, whole
        self.images = self.before = self.abstained = self.templates_used = 0
        self.counts: Counter[str] = Counter()
        self.rows: list[Row] = []
        self.unread: list[Row] = []
        self._doubtful: list[tuple[float, int, Row]] = []

    def add(self, row: Row) -> bool:
        """Take note of a row; whether there is no answer."""
        if "reason" in row:
            self.unread.append(row)
            return False
        self.images += 1
        self.templates_used += row.get("templates_used", 0)
        abstained = self.threshold is not None and row["probability"] < self.threshold
        self.abstained += abstained
        if not abstained:
            self.counts[row["class"]] += 1
        if self.whole or len(self.rows) <= _SHOWN:
            self.rows.append(row)
        heapq.heappush(self._doubtful, (-row["probability"], -self.images, row))
        if len(self._doubtful) > _SHOWN:
            heapq.heappop(self._doubtful)
        return abstained

    @property
    def doubtful(self) -> list[Row]:
        """The rows of the least probability, the least first."""
        return [row for *_, row in sorted(self._doubtful, reverse=True)]


def _show(output: Output, told: _Told, heap: Heap) -> None:
    from promptprism.cli import tables

    if told.images > _SHOWN:
        output.show(tables.counts(told.counts, told.images, told.abstained, told.threshold))
        output.show(f"The {_SHOWN} most doubtful:")
        output.show(tables.predictions(told.doubtful))
    elif told.rows:
        output.show(tables.predictions(told.rows))
        if told.threshold is not None:
            output.show(f"{told.abstained} of {told.images} below {told.threshold:.2f}: no answer")
    if told.templates_used:
        output.show(f"{told.templates_used / told.images:.2f} templates per image")
    if told.before:
        output.show(f"{told.before} were answered before")
    if heap.left_out:
        output.warn(f"{len(heap.left_out)} files are no images, such as '{heap.left_out[0]}': left out")


def _threshold(text: str | None, calibration: Calibration | None, adapter: Path) -> float | None:
    """The least probability of an answer.

    Raises:
        PromptPrismError: it is none, or none was calibrated.
    """
    if text is None:
        return None
    if text == "calibrated":
        if calibration is None or calibration.threshold is None:
            raise PromptPrismError(
                f"adapter '{adapter}' has no calibrated threshold for this: find one with promptprism "
                "calibrate (it holds for the adapter's own classes and settings, without a margin), or give "
                "a probability, such as --abstain-below 0.8"
            )
        return calibration.threshold
    try:
        threshold = float(text)
    except ValueError:
        threshold = -1
    if not 0 <= threshold <= 1:
        raise PromptPrismError(f"--abstain-below '{text}' is no probability: give 0 to 1, or 'calibrated'")
    return threshold


def _run(model: PromptPrism, adapter: Path, margin: float | None) -> str:
    """What the answers depend on, in 12 digits: what was learned, classes, settings, margin, calibration."""
    from promptprism.adapter import TENSORS
    from promptprism.files import sha256_of

    space = model.classifier_.space
    facts = [
        sha256_of(adapter / TENSORS),
        model.method_.settings.model_dump(mode="json"),
        model.backbone_.fingerprint,
        [*space.names],
        space.phrase,
        margin,
        model.calibration_ and model.calibration_.model_dump(mode="json"),
    ]
    return _digest(model.method, *facts)


def _digest(*facts: Any) -> str:
    from promptprism.files import sha256_of

    return sha256_of(json.dumps(facts).encode())[:12]
