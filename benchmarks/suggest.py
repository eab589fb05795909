"""Accuracy as labels are added: those that `promptprism suggest` asks for, and as many at random.

    python -m benchmarks.suggest --data mini/clothing --data mini/wildlife --data DATA/flowers12 \
        --csv benchmarks/results/suggest.csv

One labelled image per class to begin with; each round adds as many labels as there are classes. The learner
is logistic regression on the frozen image features (linear-probe), which takes seconds where training takes
minutes; images are chosen from the training images, and accuracy is that on the test images. Data
with a backbone of its own kind: the one for drawings, or the one for photos. Rows are written after each data
set; one that the file has is not measured again.
"""

from statistics import mean, stdev
from typing import Annotated, Any

import torch
import typer
from torch import Tensor
from torch.nn import functional as F

from benchmarks.measure import CsvFile, append_rows, called, is_there, machine
from promptprism.backbones import as_backbone
from promptprism.data.batches import labels_of
from promptprism.data.registry import load_data
from promptprism.data.splits import few_shot
from promptprism.inference.suggest import worth_labelling
from promptprism.methods.frozen import frozen_features
from promptprism.methods.linear_probe import solve

_STRENGTH = 0.316  # CLIP's own, and linear-probe's where there are no validation images


def accuracies(
    train: Tensor,
    labels: Tensor,
    test: Tensor,
    truth: Tensor,
    start: list[int],
    rounds: int,
    suggested: bool,
    seed: int,
) -> list[float]:
    """Accuracy [rounds + 1] as labels are added.

    Args:
        train: features [N, D] of the images to choose from.
        labels: of these, [N].
        test: features [B, D] of the images to score on.
        truth: labels of these, [B].
        start: places that are labelled from the beginning, one of each class.
        rounds: times that labels are added.
        suggested: choose by `worth_labelling`, not at random.
        seed: of the choice.
    """
    classes = int(labels.max()) + 1
    known, generator = list(start), torch.Generator().manual_seed(seed)
    found = []
    for number in range(rounds + 1):
        weight, bias = solve(train[known], labels[known], classes, _STRENGTH)
        found.append((F.linear(test, weight, bias).argmax(-1) == truth).double().mean().item())
        if number == rounds:
            break
        rest = torch.tensor(sorted(set(range(len(train))) - set(known)))
        if suggested:
            shown = train[rest]
            shares = F.linear(shown, weight, bias).softmax(-1)
            places = worth_labelling(shares, F.normalize(shown, dim=-1), classes, seed * rounds + number)
        else:
            places = torch.randperm(len(rest), generator=generator)[:classes].tolist()
        known += rest[places].tolist()
    return found


def measure(data: str, rounds: int, seeds: int) -> list[dict[str, Any]]:
    """A row for each way to choose and number of labels, mean and deviation over the seeds."""
    dataset = load_data(data)
    backbone = as_backbone("auto", dataset.name, None, "auto", "auto")
    train, test = (frozen_features(backbone, records) for records in (dataset.train, dataset.test))
    labels, truth = labels_of(dataset.train, train.device), labels_of(dataset.test, test.device)
    place = {id(record): number for number, record in enumerate(dataset.train)}
    rows = []
    for chosen in ("suggest", "random"):
        curves = []
        for seed in range(1, seeds + 1):
            start = [place[id(record)] for record in few_shot(dataset.train, 1, seed)]
            suggested = chosen == "suggest"
            curves.append(accuracies(train, labels, test, truth, start, rounds, suggested, seed))
        rows += [
            {
                "data": called(data),
                "backbone": backbone.name,
                "chosen": chosen,
                "labels": (number + 1) * len(dataset.class_names),
                "classes": len(dataset.class_names),
                "accuracy": round(mean(found), 4),
                "deviation": round(stdev(found), 4) if seeds > 1 else None,
                "seeds": seeds,
                **machine(),
            }
            for number, found in enumerate(zip(*curves, strict=True))
        ]
    return rows


def main(
    data: Annotated[list[str], typer.Option(help="Data; may be given more than once.")],
    rounds: Annotated[int, typer.Option(min=1, help="Times that labels are added.")] = 4,
    seeds: Annotated[int, typer.Option(min=1, help="Runs of each.")] = 10,
    csv_file: CsvFile = None,
) -> None:
    """Measure how accuracy grows with labels."""
    for name in data:
        if is_there(csv_file, {"data": called(name)}):
            continue
        rows = measure(name, rounds, seeds)
        for row in rows:
            typer.echo(f"{row['data']} {row['chosen']} {row['labels']}: {row['accuracy']:.4f}")
        if csv_file:
            append_rows(csv_file, rows)


if __name__ == "__main__":
    typer.run(main)
