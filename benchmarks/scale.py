"""What a second process is worth, what an engine costs, and what very large work would cost by that.

    python -m benchmarks.scale --json -
    python -m benchmarks.scale --json benchmarks/results/scale.json --page docs/explanation/scale.md

One process against two on two cores, each of one thread: photos of MiniWorld in shards, the cells of a suite,
and training with 1,000 classes (`--devices`). Shards and cells are measured at two sizes each, and
a + b n + c n / w is fitted to the seconds of n of them by w processes: what a run starts with, what does not
divide, and what does. Then memory and seconds with 1,000 to 100,000 classes; then, on paper, by what was
measured, what is too large for this machine (`benchmarks.scale_paper`).
"""

import importlib
import io
import math
import multiprocessing
import os
import sys
import tarfile
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer

from benchmarks import scale_paper
from benchmarks.measure import machine
from promptprism.backbones import Backbone, load_backbone
from promptprism.cli.output import document, to_json
from promptprism.cost.estimate import image_prediction_flops
from promptprism.cost.speed import class_names
from promptprism.data.miniworld import load
from promptprism.data.miniworld.sprites import concepts
from promptprism.data.names import LabelSpace
from promptprism.distributed.naming import Named, Naming, attempt
from promptprism.distributed.processes import name_by_processes
from promptprism.evaluation.run_suite import run_suite
from promptprism.evaluation.suites import Suite
from promptprism.files import write_text
from promptprism.inference import answers
from promptprism.methods import base, build_method, make_settings
from promptprism.training.loop import learn

_SHARDS = 20
_CLASSES = (1_000, 10_000, 100_000)
_SPAWN = multiprocessing.get_context("spawn")


@dataclass(frozen=True)
class Point:
    """Seconds of so many things by so many processes."""

    n: int
    workers: int
    seconds: float


def fit_growth(points: Sequence[Point]) -> dict[str, float]:
    """The model a + b n + c n / w of seconds: ``start``, ``serial`` and ``parallel``, none below 0."""
    columns = {
        "start": np.array([1.0 for _ in points]),
        "serial": np.array([float(point.n) for point in points]),
        "parallel": np.array([point.n / point.workers for point in points]),
    }
    seconds = np.array([point.seconds for point in points])
    while True:
        found, *_ = np.linalg.lstsq(np.stack([*columns.values()], 1), seconds, rcond=None)
        if (found >= 0).all():
            return {"start": 0.0, "serial": 0.0, "parallel": 0.0} | dict(
                zip(columns, map(float, found), strict=True)
            )
        del columns[[*columns][int(found.argmin())]]


def growth(points: Sequence[Point]) -> dict[str, Any]:
    """The points, the model, how well it fits, and what two processes are worth at the larger size."""
    model, largest = fit_growth(points), max(point.n for point in points)
    one, two = (next(p.seconds for p in points if (p.n, p.workers) == (largest, w)) for w in (1, 2))
    off = [scale_paper.seconds(model, p.n, p.workers) / p.seconds - 1 for p in points]
    return {
        "points": [vars(point) for point in points],
        "speedup": one / two,
        "model": model,
        "largest_error": max(map(abs, off)),
        "workers_to_half": scale_paper.workers_to_half(model),
    }


def write_shards(folder: Path, count: int) -> list[str]:
    """So many scenes of MiniWorld in shards."""
    records, places = load("mini/general").train, []
    for number in range(_SHARDS):
        places.append(str(folder / f"{number:04}.tar"))
        with tarfile.open(places[-1], "w") as tar:
            for place in range(number * count // _SHARDS, (number + 1) * count // _SHARDS):
                file = io.BytesIO()
                records[place % len(records)].source.image().save(file, "JPEG")  # type: ignore[union-attr]
                info = tarfile.TarInfo(f"{place:07}.jpg")
                info.size = file.tell()
                tar.addfile(info, io.BytesIO(file.getvalue()))
    return places


def measure_shards(backbone: Backbone, folder: Path, scenes: int) -> dict[str, Any]:
    """Photos named by one process and by two; and by no engine at all."""
    method = build_method(make_settings("cdc", preset="paper"), backbone, 1)
    one = method.classifier(load("mini/general").label_space)
    points, tables = [], {}
    parquet = importlib.import_module("pyarrow.parquet")
    for count in (scenes // 4, scenes):
        (folder / str(count)).mkdir()
        places = write_shards(folder / str(count), count)
        for workers in (1, 2):
            out = folder / f"out-{count}-{workers}"
            began = time.perf_counter()
            named = list(name_by_processes(one, Naming(str(out), "scale"), places, workers))
            points.append(Point(count, workers, time.perf_counter() - began))
            assert all(isinstance(each, Named) for each in named)
            tables[count, workers] = [parquet.read_table(path) for path in sorted(out.glob("answers/*"))]
    began = time.perf_counter()
    for place in places:
        attempt(one, Naming(str(folder / "alone"), "scale"), place)
    alone = (time.perf_counter() - began) / scenes
    found = growth(points)
    model = found["model"]
    return found | {
        "shards": _SHARDS,
        "equal": all(a.equals(b) for a, b in zip(tables[scenes, 1], tables[scenes, 2], strict=True)),
        "alone_seconds_per_image": alone,
        "engine_seconds_per_image": model["serial"] + model["parallel"] - alone,
        "gflop_per_image": image_prediction_flops(method) / 1e9,
    }


def _cells(out: Path, suite: Suite) -> None:
    torch.set_num_threads(1)
    run_suite(suite, out, load_backbone("mini", precision="float32"))


def measure_cells(folder: Path, cells: int) -> dict[str, Any]:
    """Cells of a suite run by one process and by two into one folder, until the last result is there."""
    points = []
    for count in (max(2, cells // 4), cells):
        suite = Suite(
            name="scale",
            protocol="few-shot",
            methods={"cdc": {"epochs": 2}},
            datasets=("mini/clothing",),
            shots=(4,),
            seeds=tuple(range(1, count + 1)),
        )
        for workers in (1, 2):
            out = folder / f"cells-{count}-{workers}"
            began = time.time()
            run = [_SPAWN.Process(target=_cells, args=(out, suite)) for _ in range(workers)]
            for process in run:
                process.start()
            for process in run:
                process.join()
            last = max(path.stat().st_mtime for path in out.rglob("*.json"))
            points.append(Point(count, workers, last - began))
    backbone = load_backbone("mini", precision="float32")
    began = time.perf_counter()
    run_suite(suite, out, backbone)
    return growth(points) | {"engine_seconds_per_cell": (time.perf_counter() - began) / cells}


def measure_devices(backbone: Backbone, classes: int, count: int) -> dict[str, Any]:
    """Seconds of a step whose texts dominate, shared by one process and by two; one image of each class."""
    space, images = LabelSpace(tuple(class_names(classes))), load("mini/general").train
    records = [replace(images[label % len(images)], label=label) for label in range(classes)]
    steps = {}
    for devices in (1, 2):
        settings = make_settings("cdc", preset="paper", epochs=1, batch_size=math.ceil(classes / count))
        trained = learn(settings, backbone, space, records, devices=devices)
        steps[devices] = trained.training.seconds_per_step
    assert steps[1] and steps[2]
    return {
        "classes": classes,
        "templates": settings.templates,  # type: ignore[attr-defined]
        "seconds_per_step": {str(devices): took for devices, took in steps.items()},
        "speedup": steps[1] / steps[2],
    }


def _memory() -> tuple[float, float]:
    """MiB of this process: its own, and of files that are mapped."""
    lines = Path("/proc/self/status").read_text().splitlines()
    found = {line.split(":")[0]: int(line.split()[1]) / 1024 for line in lines if line.startswith("Rss")}
    return found["RssAnon"], found["RssFile"]


@contextmanager
def _peak() -> Iterator[Callable[[], float]]:
    """What this process takes at most of its own memory, MiB, on top of what it has."""
    before = highest = _memory()[0]
    over = threading.Event()

    def watch() -> None:
        nonlocal highest
        while not over.wait(0.002):
            highest = max(highest, _memory()[0])

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield lambda: highest - before
    finally:
        over.set()
        thread.join()


def _count(connection: Any, classes: int, images: int, whole: bool) -> None:
    torch.set_num_threads(1)
    backbone = load_backbone("mini", precision="float32")
    if whole:
        for module in (base, answers):
            setattr(module, "PART", 10**9)  # noqa: B010 - it is theirs, imported
    plain = sorted({concept.name for concept in concepts()})
    names = tuple(f"{plain[i % len(plain)]} {plain[i // len(plain)]}" for i in range(classes))
    method = build_method(make_settings("cdc", preset="paper"), backbone, 1)
    photos = [record.source for record in load("mini/general").train[:images]]
    began = time.perf_counter()
    with _peak() as build:
        one = method.classifier(LabelSpace(names))
    built = time.perf_counter()
    list(answers.answers(one, photos[:32]))
    warm = time.perf_counter()
    with _peak() as use:
        list(answers.answers(one, photos))
    connection.send(
        {
            "classes": classes,
            "whole": whole,
            "text_seconds": built - began,
            "text_peak_mb": build(),
            "text_features_mb": 4 * one.text.numel() / 2**20 if one.text is not None else 0.0,
            "seconds_per_image": (time.perf_counter() - warm) / images,
            "peak_mb": use(),
        }
    )


def measure_classes(counts: Sequence[int], images: int) -> list[dict[str, Any]]:
    """Seconds and memory against the number of classes, each in a process of its own."""
    rows = []
    for count in counts:
        for whole in (False, True):
            ours, theirs = _SPAWN.Pipe()
            process = _SPAWN.Process(target=_count, args=(theirs, count, images, whole))
            process.start()
            rows.append(ours.recv())
            process.join()
    return rows


def main(
    json_file: Annotated[str, typer.Option("--json", help="A file, or - for standard output.")] = "-",
    scenes: Annotated[
        int, typer.Option(min=80, help="Photos in shards; a quarter of them is measured too.")
    ] = 4000,
    cells: Annotated[int, typer.Option(min=4, help="Cells; a quarter of them is measured too.")] = 8,
    classes: Annotated[int, typer.Option(min=10, help="K of the training by several devices.")] = 1000,
    steps: Annotated[int, typer.Option(min=1, help="Of that training.")] = 8,
    most_classes: Annotated[int, typer.Option(min=1000, help="The end of the curve.")] = _CLASSES[-1],
    page: Annotated[Path | None, typer.Option(help="Write the tables into this page.")] = None,
) -> None:
    """Measure what grows with processes and with classes, and compute the rest."""
    os.environ["OMP_NUM_THREADS"] = "1"  # of the processes that are started
    torch.set_num_threads(1)
    backbone = load_backbone("mini", precision="float32")
    with tempfile.TemporaryDirectory() as name:
        found: dict[str, Any] = {
            "shards": measure_shards(backbone, Path(name), scenes),
            "cells": measure_cells(Path(name), cells),
        }
    found["devices"] = measure_devices(backbone, classes, steps)
    found["classes"] = measure_classes([count for count in _CLASSES if count <= most_classes], 64)
    found["read_seconds_per_image"] = scale_paper.read_seconds()
    found["paper"] = scale_paper.on_paper(found)
    text = to_json(document("benchmarks/scale", cores=os.cpu_count(), **machine(), **found))
    if json_file == "-":
        sys.stdout.write(text)
    else:
        write_text(Path(json_file), text)
    if page:
        write_text(page, scale_paper.filled(page.read_text(encoding="utf-8"), found))


if __name__ == "__main__":
    typer.run(main)
