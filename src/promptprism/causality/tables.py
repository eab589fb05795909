"""What interventions show: means over data sets and seeds, as rows for JSON and as Markdown to paste."""

import statistics
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from promptprism.causality.interventions import CONTROL, FACTORS
from promptprism.causality.run_interventions import Interventions
from promptprism.data.miniworld.worlds import RHO

Found = Mapping[str, Sequence[Interventions]]
Rows = list[dict[str, Any]]


def summarise(found: Found) -> dict[str, Any]:
    """Average measurements over data sets, then over seeds; every ``_std`` is over seeds, null for one.

    Args:
        found: by method. Collapsed runs are named and left out.
    """
    collapsed = [str(one.cell) for every in found.values() for one in every if one.collapsed]
    cells = [one for every in found.values() for one in every if not one.collapsed]
    content: dict[str, Any] = {
        "data": sorted({one.cell.data.partition("@")[0] for one in cells}),
        "seeds": sorted({one.cell.seed for one in cells}),
        "rhos": sorted({one.rho for one in cells}),
        "shots": sorted({one.cell.shots for one in cells}),
        "cells": len(cells),
        "collapsed": collapsed,
    }
    tables: dict[str, Rows] = {"predictions": [], "templates": [], "front_door": []}
    for method, rho, runs in _groups(found):
        head, seeds = {"method": method, "rho": rho}, [run.cell.seed for run in runs]
        for who in runs[0].accuracy:
            row = head | {"who": who}
            row |= over_seeds("accuracy", seeds, [run.accuracy[who] for run in runs])
            row |= over_seeds("pull", seeds, [run.pull[who] for run in runs])
            for factor in (*FACTORS, CONTROL):
                moved = [run.moved[factor][who] for run in runs]
                row |= over_seeds(f"{factor} flips", seeds, [one.flips for one in moved])
                row |= over_seeds(f"{factor} variation", seeds, [one.total_variation for one in moved])
            tables["predictions"].append(row)
        factors = tuple(runs[0].probes)
        for place in range(len(runs[0].probes[factors[0]])):
            row = head | {"template": f"S{place + 1}"}
            for factor in factors:
                row |= over_seeds(f"{factor} chance", seeds, [run.chance[factor] for run in runs])
                row |= over_seeds(f"{factor} probe", seeds, [run.probes[factor][place] for run in runs])
                row |= over_seeds(f"{factor} variance", seeds, [run.variance[factor][place] for run in runs])
            tables["templates"].append(row)
        for way in runs[0].front_door:
            row = head | {"way": way}
            for name in ("accuracy", "ece", "nll", "distance", "agreement"):
                row |= over_seeds(name, seeds, [getattr(run.front_door[way], name) for run in runs])
            tables["front_door"].append(row)
    return content | tables


def detail_rho(content: Mapping[str, Any]) -> float:
    """The rho that templates are shown at: MiniWorld's own if it was run, else the largest."""
    return RHO if RHO in content["rhos"] else max(content["rhos"])


def markdown(content: Mapping[str, Any]) -> str:
    """Write what `summarise` made as Markdown tables, in per cent."""
    rho = detail_rho(content)
    several = {row["method"] for row in content["predictions"] if row["who"] == "S2"}
    seeds = ", ".join(map(str, content["seeds"]))
    spread = f"± deviation over seeds {seeds}" if len(content["seeds"]) > 1 else f"seed {seeds}"
    about = (
        f"{', '.join(content['data'])}; all classes, {content['shots'][0]} shots; mean over data sets, "
        f"{spread}; {content['cells']} runs."
    )
    everything, factors = (*FACTORS, CONTROL), ("object", *FACTORS)
    fused = [row for row in content["predictions"] if row["who"] == "fused"]
    voices = [row for row in content["predictions"] if row["method"] in several and row["rho"] == rho]
    asked = [row for row in content["templates"] if row["rho"] == rho]
    ways = [
        row
        for row in content["front_door"]
        if row["method"] in several or row["way"] in ("fused", "front-door")
    ]
    chance = ", ".join(f"{factor} {100 * asked[0][f'{factor} chance']:.0f}" for factor in factors)
    parts = [
        about,
        "**Flips**: predictions that change when one factor is set to another value, in %.",
        _table(fused, ("method", "rho"), ("accuracy",), everything, "flips"),
        "**Total variation** of the predicted probabilities, in %; *pull*: probability that do(colour) moves "
        "to the classes whose usual colour in training it is.",
        _table(fused, ("method", "rho"), ("pull",), everything, "variation"),
        f"**Each template**, rho = {rho:g}: flips in %, and pull.",
        _table(voices, ("method", "who"), ("accuracy", "pull"), everything, "flips"),
        f"**Linear probes** of image features, rho = {rho:g}: accuracy in %. Chance: {chance}.",
        _table(asked, ("method", "template"), (), factors, "probe"),
        f"**Variance** of image features that goes with each factor, rho = {rho:g}, in %.",
        _table(asked, ("method", "template"), (), factors, "variance"),
        "**Front door**: distance is the mean total variation from the front-door estimate, in %; nll in "
        "nats.",
        _table(ways, ("method", "rho", "way"), ("accuracy", "ece", "nll", "distance", "agreement")),
    ]
    if content["collapsed"]:
        parts.append(f"Left out, as they collapsed: {'; '.join(content['collapsed'])}.")
    return "\n\n".join(filter(None, parts)) + "\n"


def _groups(found: Found) -> Iterator[tuple[str, float, list[Interventions]]]:
    for method, every in found.items():
        runs = [one for one in every if not one.collapsed]
        for rho in sorted({one.rho for one in runs}):
            yield method, rho, [one for one in runs if one.rho == rho]


def over_seeds(name: str, seeds: Sequence[int], values: Sequence[float]) -> dict[str, float | None]:
    """Average values that share a seed, then over seeds: ``name`` and ``name_std``."""
    by_seed: dict[int, list[float]] = {}
    for seed, value in zip(seeds, values, strict=True):
        by_seed.setdefault(seed, []).append(value)
    means = [statistics.fmean(of_seed) for of_seed in by_seed.values()]
    deviation = statistics.stdev(means) if len(means) > 1 else None
    return {name: statistics.fmean(means), f"{name}_std": deviation}


def _table(
    rows: Rows, heads: Sequence[str], plain: Sequence[str], factors: Sequence[str] = (), of: str = ""
) -> str:
    """A Markdown table with the columns ``plain``, and one ``of`` each factor; nothing without rows."""
    if not rows:
        return ""
    columns = (*plain, *(f"{factor} {of}" for factor in factors))
    lines = [
        f"| {' | '.join((*heads, *plain, *factors))} |",
        "|" + "---|" * len(heads) + "---:|" * len(columns),
    ]
    for row in rows:
        told = [f"{row[head]:g}" if head == "rho" else str(row[head]) for head in heads]
        lines.append(f"| {' | '.join((*told, *(_cell(row, column) for column in columns)))} |")
    return "\n".join(lines)


def _cell(row: Mapping[str, Any], column: str) -> str:
    factor, digits = (1, 2) if column == "nll" else (100, 1)
    value, deviation = row[column], row[f"{column}_std"]
    told = f"{factor * value:.{digits}f}"
    return told if deviation is None else f"{told} ± {factor * deviation:.{digits}f}"
