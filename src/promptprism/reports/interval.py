"""Whether a difference is more than luck: a confidence interval over data sets and seeds."""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from promptprism.evaluation.metrics import harmonic_mean
from promptprism.reports.results import OURS, Row, Run, Runs

#: The baseline that CDC builds on.
RIVAL = "maple"
_DRAWS = 10_000
#: With fewer data sets the bootstrap tells nothing.
FEWEST = 3

Accuracies = NDArray[np.float64]


def hm_interval(pairs: Mapping[str, Accuracies]) -> tuple[float, float, float]:
    """Difference of two methods in HM, and its 95 % interval, by a paired bootstrap of two levels.

    Each draw takes data sets with replacement, then seeds of each with replacement, both methods alike; its
    figure is the difference of the HM of the averages. The draws are always the same.

    Args:
        pairs: by data set, accuracies [seeds, 2 methods, base and new].

    Returns:
        The difference and the 2.5 % and 97.5 % quantiles of the draws.
    """
    generator, count = np.random.default_rng(0), len(pairs)
    means = np.stack([pair.mean(0) for pair in pairs.values()])  # [data sets, methods, parts]
    averages = np.zeros((_DRAWS, *means.shape[1:]))
    for _ in range(count):  # slot by slot: one data set of each draw, with seeds of its own
        redrawn = np.stack(
            [pair[generator.integers(len(pair), size=(_DRAWS, len(pair)))].mean(1) for pair in pairs.values()]
        )
        averages += redrawn[generator.integers(count, size=_DRAWS), np.arange(_DRAWS)] / count
    low, high = np.quantile([_difference(average) for average in averages], (0.025, 0.975))
    return _difference(means.mean(0)), float(low), float(high)


def interval_notes(runs: Runs, against: str | None = None) -> list[str]:
    """What to say of every other row against the one with a label.

    Without a label, of every row of CDC against every row of MaPLe, and against CDC's first.
    """
    if against is None:
        rivals = [row for row in runs.by_row if row.method == RIVAL]
        ours = [row for row in runs.by_row if row.method == OURS]
        asked = [
            (row, rival) for place, row in enumerate(ours) for rival in (*rivals, *ours[: min(place, 1)])
        ]
    else:
        rivals = [row for row in runs.by_row if row.label == against]
        asked = [(row, rival) for row in runs.by_row for rival in rivals if row != rival]
    notes = []
    for row, rival in asked:
        pairs = pairs_of(runs, row, rival)
        if len(pairs) >= FEWEST:
            difference, low, high = (100 * value for value in hm_interval(pairs))
            notes.append(
                f"{row.label} less {rival.label} in HM: {difference:+.2f}, 95 % interval {low:+.2f} to "
                f"{high:+.2f} (paired bootstrap over {len(pairs)} data sets and their seeds, "
                f"{sum(map(len, pairs.values()))} pairs, {_DRAWS:,} draws)"
            )
    return notes


def pairs_of(runs: Runs, row: Row, rival: Row) -> dict[str, Accuracies]:
    """Accuracies [seeds, 2, 2] of two rows by data set, for `hm_interval`: those seeds that both have."""
    found = {data: runs.at(data) for data in runs.datasets}
    pairs = {
        data: _pair({one: there[one] for one in (row, rival)})
        for data, there in found.items()
        if row in there and rival in there
    }
    return {data: pair for data, pair in pairs.items() if len(pair)}


def _pair(runs: Mapping[Row, Run]) -> Accuracies:
    """Accuracies [seeds, 2, 2] of two rows on the seeds that both have; what learns nothing has them all."""
    seeds = [set(run.sound) for row, run in runs.items() if row.learns or not run.sound]

    def accuracies(row: Row, seed: int) -> list[float]:
        sound = runs[row].sound
        result = sound[seed] if row.learns else next(iter(sound.values()))
        return [result.scores[part].accuracy for part in ("base", "new")]

    common = sorted(set.intersection(*seeds)) if seeds else [0]
    return np.array([[accuracies(row, seed) for row in runs] for seed in common], dtype=np.float64)


def _difference(accuracies: Accuracies) -> float:
    """HM of the first less that of the second, of [2, base and new]."""
    (base, new), (rival_base, rival_new) = accuracies.tolist()
    return harmonic_mean(base, new) - harmonic_mean(rival_base, rival_new)
