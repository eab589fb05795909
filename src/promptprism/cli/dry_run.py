"""What ``suite --dry-run`` says."""

from dataclasses import asdict
from typing import Any

from rich.table import Table

from promptprism.evaluation.estimate import Estimate
from promptprism.evaluation.suites import Suite

_STATES = {"present": "✓", "missing": "✗", "made on demand": "✓"}


def estimate_lines(suite: Suite, estimate: Estimate, rate: str) -> list[Any]:
    """What a person reads: cells that differ only in their seed share a line."""
    spec, cells = suite.backbone, estimate.cells
    several = len({one.cell.shots for one in cells}) > 1
    table = Table(box=None, pad_edge=False, collapse_padding=True)
    for column in ("data", "method", *(["shots"] if several else []), "seeds"):
        table.add_column(column, no_wrap=True, vertical="bottom")
    for column in ("learned", "steps", "TFLOP\ntrain", "TFLOP\ntest", "GiB", "hours"):
        table.add_column(column, justify="right", no_wrap=True, vertical="bottom")
    seeds: dict[tuple[str, str, int], list[int]] = {}
    for one in cells:
        seeds.setdefault((one.cell.data, one.row, one.cell.shots), []).append(one.cell.seed)
    for one in cells:
        data, row, shots = one.cell.data, one.row, one.cell.shots
        if one.cell.seed == seeds[data, row, shots][0]:
            table.add_row(
                *(data, row, *([str(shots)] if several else [])),
                ",".join(map(str, seeds[data, row, shots])),
                f"{one.trainable:,}",
                f"{one.steps:,}",
                f"{one.train_flops / 1e12:,.1f}",
                f"{one.test_flops / 1e12:,.1f}",
                f"{one.memory_mb / 1024:.1f}",
                hours(one.hours),
            )
    name = spec.name + (f" with weights {spec.pretrained}" if spec.pretrained else "")
    flops = sum(one.train_flops + one.test_flops for one in cells)
    return [
        f"{suite.name}: {len(cells)} cells of protocol {suite.protocol}. {suite.note}",
        f"backbone: {name}, {estimate.backbone_numbers:,} frozen numbers, {spec.precision}",
        "cells (costs are of one seed):",
        table,
        f"all cells: {flops / 1e15:,.1f} PFLOP, about {hours(sum(one.hours for one in cells))} hours, at "
        f"most {max((one.memory_mb for one in cells), default=0) / 1024:.1f} GiB at a time",
        f"hours are at {estimate.gigaflops:,.0f} GFLOP/s in {spec.precision} ({rate}), the rate of large "
        "matrix products: a lower bound, to which reading images and all that is no matrix product adds",
        "data:",
        *(
            f"  {_STATES[one.state]} {one.data} {one.state}"
            + (f": {one.problem}" if one.problem else f", {one.classes} classes, {one.test:,} test images")
            for one in estimate.data
        ),
    ]


def estimate_content(suite: Suite, estimate: Estimate) -> dict[str, Any]:
    """What goes into JSON."""
    cells = [
        {"row": one.row, **one.cell.model_dump(mode="json")}
        | {name: value for name, value in asdict(one).items() if name not in ("row", "cell")}
        for one in estimate.cells
    ]
    return {
        "suite": suite.name,
        "backbone": {**suite.backbone.model_dump(mode="json"), "numbers": estimate.backbone_numbers},
        "gigaflops_per_second": estimate.gigaflops,
        "hours": sum(one.hours for one in estimate.cells),
        "cells": cells,
        "data": [asdict(one) for one in estimate.data],
    }


def hours(value: float) -> str:
    """Hours with two digits that mean something."""
    return f"{value:,.0f}" if value >= 10 else f"{value:.2g}"
