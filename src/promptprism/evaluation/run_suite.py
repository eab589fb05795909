"""Run the cells of a suite: learn, then score what was learned; any process may be killed at any time."""

import errno
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Literal

from promptprism.adapter import Card, DataSummary, load_adapter, save_adapter
from promptprism.backbones import Backbone
from promptprism.data.lists import read_list
from promptprism.data.records import Dataset, Records
from promptprism.data.registry import load_data
from promptprism.data.splits import few_shot
from promptprism.errors import PromptPrismError
from promptprism.evaluation.protocols import PROTOCOLS, calibrate, draw, score
from promptprism.evaluation.store import CellResult, Store, read_result
from promptprism.evaluation.suites import Cell, Suite, digest_of, fingerprint, images_fingerprint, keys
from promptprism.files import remove
from promptprism.provenance import BackboneFacts, revision
from promptprism.training.loop import learn

#: Images per class that a method may choose by, as in CoOp's few-shot protocol.
_VALIDATION_SHOTS = 4
# The disk or the user's share of it is full, a file is as large as may be, or nothing may be written at all.
_NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)

Stage = Literal["all", "train", "test"]


@dataclass
class Progress:
    """Where a run is: cells by state; shown by whoever called."""

    total: int
    done: int = 0
    failed: int = 0
    running: str = ""


@dataclass
class Outcome:
    """What became of the cells of a suite.

    Attributes:
        results: of the finished cells, in the order of the suite.
        failures: cell and error of those that failed.
        ran: number of cells that this call ran itself.
    """

    results: list[CellResult] = field(default_factory=list)
    failures: list[tuple[Cell, str]] = field(default_factory=list)
    ran: int = 0


@dataclass(frozen=True)
class Settled:
    """What has become of a cell.

    Attributes:
        result: of one that is finished, unless it was only to learn.
        error: of one that has failed.
        ran: whether it was run for this; else it was finished before.
        elsewhere: another process works at it.
    """

    result: CellResult | None = None
    error: str | None = None
    ran: bool = False
    elsewhere: bool = False


@dataclass(frozen=True)
class _Job:
    cell: Cell
    learning: Dataset
    records: Records
    parts: Mapping[str, Dataset]
    fingerprints: dict[str, str]
    images: str
    learned: str
    key: str


class Work:
    """What one process needs for cells: the results folder, data and backbone, read once.

    Args:
        store: the results folder.
        backbone: the suite's, loaded.
        load: gives the data of a name.
        lists, stage, progress, devices: see `run_suite`.
        place: what is said of the place behind every error, if anything.
    """

    def __init__(
        self,
        store: Store,
        backbone: Backbone,
        load: Callable[[str], Dataset],
        lists: Path | None = None,
        stage: Stage = "all",
        progress: bool = False,
        devices: int | None = None,
        place: str = "",
    ) -> None:
        self.store, self.backbone, self.lists, self.progress = store, backbone, lists, progress
        self.stage, self.devices, self._place = stage, devices, place
        self.load = cache(load)
        self._fingerprint = cache(lambda name: fingerprint(self.load(name)))

    def look(self, cell: Cell) -> Settled | None:
        """What has become of a cell before; None of one that is left to run."""
        return self._settle(cell, run=False)

    def settle(self, cell: Cell) -> Settled:
        """Run a cell, unless it is finished or another process works at it.

        Raises:
            PromptPrismError: the disk is full. Whatever else goes wrong is the cell's error.
        """
        return self._settle(cell, run=True) or Settled(elsewhere=True)

    def fail(self, cell: Cell, error: str, key: str | None = None) -> Settled:
        """Record why a cell has no result."""
        text = error + self._place
        self.store.fail(key or digest_of(cell=cell.differing()), cell, text)
        return Settled(error=text)

    def _settle(self, cell: Cell, run: bool) -> Settled | None:
        key = None  # should its data be unusable
        try:
            job = self._job(cell)
            key = job.key
            learned, result = self.store.adapter(cell, job.learned), self.store.result(cell, key)
            scores = self.stage != "train"
            finished = result if scores else learned
            if scores and result.exists():  # for good: no lock is needed to read it
                return Settled(read_result(result))
            if not run:
                return Settled() if finished.exists() else None
            with self.store.claim(result.stem) as mine:
                if not mine:
                    return None
                if ran := not finished.exists():
                    self._run(job)
            return Settled(read_result(result) if scores else None, ran=ran)
        except Exception as error:  # whatever it is, the other cells can still be run
            if _no_space(error):
                raise
            return self.fail(cell, str(error) if isinstance(error, PromptPrismError) else repr(error), key)

    def _job(self, cell: Cell) -> _Job:
        protocol, dataset = PROTOCOLS[cell.protocol], self.load(cell.data)
        targets = {name: self.load(name) for name in cell.targets}
        listed = None
        if self.lists is not None:
            name = f"{cell.data.replace('/', '-')}-{cell.shots}shot-seed{cell.seed}.jsonl"
            listed = read_list(self.lists / name, dataset)
        learning, records = draw(protocol, dataset, cell.shots, cell.seed, cell.allow_fewer, listed)
        if not cell.settings.learns:
            records = ()
        prints = {name: self._fingerprint(name) for name in (cell.data, *cell.targets)}
        images = images_fingerprint(records)
        learned, key = keys(cell, BackboneFacts.of(self.backbone), prints, images)
        return _Job(cell, learning, records, protocol.scored(dataset, targets), prints, images, learned, key)

    def _run(self, job: _Job) -> None:
        if self.stage != "test":
            self._train(job)
        if self.stage != "train":
            self.store.finish(self._test(job))

    def _train(self, job: _Job) -> None:
        place, cell = self.store.adapter(job.cell, job.learned), job.cell
        # Another cell may be learning the very same; it is worth waiting for.
        with self.store.claim(place.name, wait=7 * 24 * 3600.0):
            checkpoint = place.with_name(f"{place.name}.checkpoint")
            if place.exists():
                remove(checkpoint)  # of a run that was killed between its last two lines
                return
            trained = learn(
                cell.settings,
                self.backbone,
                job.learning.label_space,
                job.records,
                seed=cell.seed,
                validation=few_shot(job.learning.val, _VALIDATION_SHOTS, cell.seed, allow_fewer=True),
                checkpoint=checkpoint,
                progress=self.progress,
                devices=self.devices,
            )
            images = job.learning.counts(job.records)
            data = DataSummary(name=job.learning.name, images=images, shots=cell.shots, seed=cell.seed)
            card = Card.of(trained, trained.space, data if job.records else None)
            save_adapter(place, trained.method, card)
            remove(checkpoint)

    def _test(self, job: _Job) -> CellResult:
        place = self.store.adapter(job.cell, job.learned)
        if not place.exists():
            raise PromptPrismError(
                f"nothing is learned for {job.cell}: run the suite with --stage train first"
            )
        trained, card = load_adapter(place, self.backbone, settings=job.cell.settings)
        protocol = PROTOCOLS[job.cell.protocol]
        calibrator = calibrate(trained.method, job.learning, job.records, job.cell.seed)
        scores = score(trained.method, trained.space, job.parts, protocol.home, calibrator)
        summary = protocol.summary({part: one.accuracy for part, one in scores.items()})
        return CellResult(
            key=job.key,
            learned=job.learned,
            revision=revision(),
            finished=datetime.now(UTC).isoformat(timespec="seconds"),
            cell=job.cell,
            phrase=card.phrase,
            backbone=card.backbone,
            fingerprints=job.fingerprints,
            images_learned=job.images,
            training=card.training,
            scores=scores,
            images={name: part.counts(part.test) for name, part in job.parts.items()},
            summary=None if card.training.collapsed else summary,
        )


#: Runs cells: names each when it is started, and again, in any order, with what has become of it.
Engine = Callable[[Work, Sequence[Cell]], Generator[tuple[Cell, Settled | None]]]


def run_here(work: Work, cells: Sequence[Cell]) -> Generator[tuple[Cell, Settled | None]]:
    """Run cells in this process, one after the other."""
    for cell in cells:
        yield cell, None
        yield cell, work.settle(cell)


def run_suite(
    suite: Suite,
    out: Path,
    backbone: Backbone,
    *,
    root: Path | None = None,
    lists: Path | None = None,
    stage: Stage = "all",
    progress: bool = False,
    show: Callable[[Progress], None] = lambda _: None,
    devices: int | None = None,
    engine: Engine = run_here,
) -> Outcome:
    """Run the cells that have no result yet. Several processes may run suites into one folder.

    A cell that fails is recorded, and the rest goes on; it is tried again by the next run.

    Args:
        suite: the cells.
        out: results folder.
        backbone: the suite's, loaded.
        root: folder of the field's data sets.
        lists: folder of few-shot lists ``DATA-16shot-seed1.jsonl`` to learn from instead of own draws.
        stage: only learn, only score what was learned (which never trains), or both.
        progress: show a bar on standard error while a cell learns.
        show: called whenever something has changed.
        devices: that share each training step, see `learn`.
        engine: where cells run, such as `promptprism.distributed.ray_suite.RayEngine`.

    Raises:
        PromptPrismError: invalid settings, the results folder cannot be written, or the disk is full.
        KeyboardInterrupt: Ctrl-C, with a message that says what was kept.
    """
    cells, outcome = list(suite.cells()), Outcome()
    work, state = (
        Work(Store(out), backbone, _from(root), lists, stage, progress, devices),
        Progress(len(cells)),
    )
    waiting: Sequence[Cell] = cells
    results: dict[int, CellResult] = {}
    places = {id(cell): place for place, cell in enumerate(cells)}
    with _told(state, out), backbone.keeping_stems():
        while waiting:
            running: dict[int, Cell] = {}
            elsewhere = []
            with closing(engine(work, waiting)) as events:
                for cell, settled in events:
                    running[id(cell)] = cell
                    if settled:
                        del running[id(cell)]
                        if settled.elsewhere:
                            elsewhere.append(cell)
                        elif settled.error is not None:
                            outcome.failures.append((cell, settled.error))
                            state.failed += 1
                        else:
                            outcome.ran += settled.ran
                            state.done += 1
                        if settled.result:
                            results[places[id(cell)]] = settled.result
                    one = next(iter(running.values()), "")
                    state.running = str(one) if len(running) < 2 else f"{len(running)} cells"
                    show(state)
            if elsewhere and len(elsewhere) == len(waiting):
                state.running = f"waiting for {len(elsewhere)} cells that run elsewhere"
                show(state)
                time.sleep(5)
            waiting = elsewhere
    state.running = ""
    show(state)
    outcome.results = [results[place] for place in sorted(results)]
    return outcome


def cells_left(
    suite: Suite,
    out: Path,
    backbone: Backbone,
    *,
    root: Path | None = None,
    lists: Path | None = None,
    stage: Stage = "all",
) -> tuple[list[tuple[str, Cell]], Outcome]:
    """Row and cell of what `run_suite` would run, and what has become of the others; its arguments."""
    work, outcome, left = Work(Store(out), backbone, _from(root), lists, stage), Outcome(), []
    for row, cell in suite.grid():
        settled = work.look(cell)
        if settled is None:
            left.append((row, cell))
        elif settled.error is not None:
            outcome.failures.append((cell, settled.error))
        elif settled.result:
            outcome.results.append(settled.result)
    return left, outcome


def _from(root: Path | None) -> Callable[[str], Dataset]:
    return lambda name: load_data(name, root)


@contextmanager
def _told(state: Progress, out: Path) -> Iterator[None]:
    """Say of an interrupted run what was kept."""
    try:
        yield
    except KeyboardInterrupt:
        raise KeyboardInterrupt(
            f"stopped: {state.done} of {state.total} cells are finished and kept in '{out}'; the same "
            "command goes on from there"
        ) from None


def _no_space(error: BaseException | None) -> bool:
    """Whether nothing can be written any more: every other cell would be learned in vain."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in _NO_SPACE:
            return True
        error = error.__cause__ or error.__context__
    return False
