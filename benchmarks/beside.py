"""Learned classes beside new ones: how much of its own a learned class keeps, and how new ones get offsets.

    python -m benchmarks.beside --csv benchmarks/results/beside.csv

CDC learns the base classes of each development set, with its defaults; images of base and of new classes
are told among all, by each pair of the two constants of `promptprism.methods.learner`. A strength without
end gives every new class the mean of the learned offsets. Images are looked at once for all pairs. Rows are
written after each run; one that the file has is not measured again, and one that was stopped goes on. At the
end it prints the table of docs/results/transfer.md.
"""

import math
from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path
from statistics import fmean
from typing import Annotated, Any, cast
from unittest.mock import patch

import torch
import typer
from torch import Tensor

from benchmarks.measure import CsvFile, is_there, machine, read_rows, tell
from promptprism.backbones import Precision, as_backbone
from promptprism.data.batches import labels_of
from promptprism.data.miniworld import DEVELOPMENT
from promptprism.data.records import Records
from promptprism.data.registry import load_data
from promptprism.evaluation.metrics import harmonic_mean
from promptprism.evaluation.protocols import PROTOCOLS, draw
from promptprism.inference.predictor import Predictor
from promptprism.methods import learner, make_settings
from promptprism.methods.cdc_classifier import CdcClassifier, scaled
from promptprism.training.loop import Trained, learn

OWN = (0.4, 0.5, 0.6, 0.7, 0.8, 1.0)
RIDGE = (0.5, 1.0, 2.0, 5.0, 10.0, math.inf)
_SHOTS, _BATCH = 16, 64
_PROTOCOL = PROTOCOLS["base-to-all"]
_AS_GOOD_AS_ENDLESS = 1e9  # products of features are at most 1


@torch.no_grad()
def looked_at(classifier: CdcClassifier, records: Records) -> Tensor:
    """Image features [M, B, D] under the templates."""
    batches = Predictor(classifier).views([record.source for record in records], _BATCH, None)
    return torch.cat([classifier.image_features(views) for _, views in batches], dim=1)


@torch.no_grad()
def accuracy(classifier: CdcClassifier, features: Tensor, labels: Tensor) -> float:
    """Of images [M, B, D], their labels [B]."""
    assert classifier.text is not None
    logits = classifier.backbone.logits(features, classifier.text)
    if classifier.factors is not None:
        logits = scaled(logits, classifier.factors)
    return (classifier.probabilities(logits).argmax(-1) == labels).double().mean().item()


def grid(trained: Trained, halves: Mapping[str, tuple[Records, Any]]) -> list[dict[str, Any]]:
    """A row for each pair of the constants, of the test images of both halves in the whole label space."""
    rows, seen = [], {}
    for own, ridge in product(OWN, RIDGE):
        with patch.multiple(learner, OWN=own, RIDGE=min(ridge, _AS_GOOD_AS_ENDLESS)):
            found = {}
            for part, (records, space) in halves.items():
                classifier = cast(CdcClassifier, trained.classifier(space))
                if part not in seen:  # what is seen of images is the same for all pairs
                    seen[part] = (
                        looked_at(classifier, records),
                        labels_of(records, classifier.backbone.device),
                    )
                found[part] = accuracy(classifier, *seen[part])
        rows.append({"own": own, "ridge": ridge, **found, "hm": harmonic_mean(found["base"], found["new"])})
    return [{name: round(value, 5) for name, value in row.items()} for row in rows]


def measure(run: Mapping[str, Any], precision: Precision, folder: Path) -> list[dict[str, Any]]:
    """Learn the base classes once, and try all pairs."""
    dataset = load_data(run["data"])
    base, records = draw(_PROTOCOL, dataset, _SHOTS, run["seed"])
    folder.mkdir(parents=True, exist_ok=True)
    place = folder / f"{run['data'].replace('/', '-')}-{run['seed']}-{precision}.checkpoint"
    trained = learn(
        make_settings("cdc"),
        as_backbone("auto", dataset.name, None, precision, "auto"),
        base.label_space,
        records,
        seed=run["seed"],
        checkpoint=place,
        progress=True,
    )
    halves = {part: (of.test, of.label_space) for part, of in _PROTOCOL.scored(dataset, {}).items()}
    facts = {"precision": precision, "collapsed": trained.training.collapsed or ""}
    rows = [dict(run) | row | facts | machine() for row in grid(trained, halves)]
    place.unlink()
    return rows


def table(rows: Sequence[Mapping[str, str]]) -> str:
    """Mean HM in per cent over the runs of a file, as Markdown: rows by what is kept, columns by strength."""
    found: dict[tuple[float, float], list[float]] = {}
    for row in rows:
        found.setdefault((float(row["own"]), float(row["ridge"])), []).append(100 * float(row["hm"]))
    heads = " | ".join("mean" if ridge == math.inf else f"{ridge:g}" for ridge in RIDGE)
    lines = [f"| kept | {heads} |", f"|---|{'---:|' * len(RIDGE)}"]
    for own in OWN:
        lines.append(f"| {own:g} | {' | '.join(f'{fmean(found[own, ridge]):.1f}' for ridge in RIDGE)} |")
    return "\n".join(lines)


def main(
    data: Annotated[
        list[str] | None, typer.Option(help="Instead of the development sets; repeatable.")
    ] = None,
    seeds: Annotated[int, typer.Option(min=1, help="How many, from 1.")] = 3,
    precision: Annotated[Precision, typer.Option(help="Of the matrix products.")] = "float32",
    folder: Annotated[Path, typer.Option(help="Where unfinished runs are kept.")] = Path("build/beside"),
    csv_file: CsvFile = None,
) -> None:
    """Measure what the two constants are worth."""
    for seed, name in product(range(1, seeds + 1), data or DEVELOPMENT):
        run = {"data": name, "seed": seed}
        if not is_there(csv_file, run):
            tell(
                measure(run, precision, folder),
                ("data", "seed", "own", "ridge", "base", "new", "hm"),
                csv_file,
            )
    if csv_file:
        typer.echo(table(read_rows(csv_file)))


if __name__ == "__main__":
    typer.run(main)
