"""Accuracy against the average number of templates asked, on MiniWorld's development sets.

    python -m benchmarks.anytime --csv benchmarks/results/anytime.csv

Trains CDC on each set (all classes, 16 shots, seed 1, the settings of the suite mini/few-shot) or takes the
adapters that are given, asks all templates about all images once, and replays early stopping. The margin of
each budget is found on the validation images, and scored on the test images. Besides the package's rule (how
far the leading class is ahead) the rows have two others, and besides the learned order of the templates the
one that has the best on validation images first. `chosen` marks the budget from which on at most 0.2
points of accuracy are lost, in the mean of the sets' validation images.
"""

import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from torch import Tensor

from benchmarks.measure import CsvFile, machine, write_rows
from promptprism.adapter import read_card
from promptprism.backbones import Precision
from promptprism.data.miniworld import DEVELOPMENT
from promptprism.data.records import Records
from promptprism.data.registry import load_data
from promptprism.errors import PromptPrismError
from promptprism.estimator import PromptPrism, load_model
from promptprism.evaluation.suites import load_suite
from promptprism.evidence import FusionRule, Opinion
from promptprism.inference.early import check_early, fused_so_far, lead, margin_for, templates_needed

#: Points of accuracy that may be lost.
TOLERANCE = 0.2
RULES = ("lead", "lead per template to come", "uncertainty")
ORDERS = ("learned", "best first")


@dataclass(frozen=True)
class Split:
    """Opinions of the templates about images, [M, B, K], and the truth, [B]."""

    opinions: Opinion
    labels: Tensor

    def accuracies(self) -> Tensor:
        """Of each template, [M]."""
        return (self.opinions.prediction == self.labels).double().mean(-1)


@dataclass(frozen=True)
class Source:
    """One data set under one adapter."""

    data: str
    fusion: FusionRule
    val: Split
    test: Split


def read_source(model: PromptPrism, data: str) -> Source:
    """Ask all templates about the validation and test images.

    Raises:
        PromptPrismError: the data lacks one of the two splits, or the model has no opinions.
    """
    dataset, rule = load_data(data), check_early(model.classifier_, 0.0)
    if not (dataset.val and dataset.test):
        raise PromptPrismError(f"data '{data}' needs validation and test images")

    def split(records: Records) -> Split:
        opinions = model.opinions([record.source for record in records]).templates
        return Split(opinions, torch.tensor([record.label for record in records]))

    return Source(data, rule, split(dataset.val), split(dataset.test))


def certainty(so_far: Opinion, rule: str) -> Tensor:
    """What a rule compares with the margin, [M, B] of [M, B, K]: more is more certain."""
    if rule == "uncertainty":
        return -so_far.uncertainty.double().log()
    found = lead(so_far)
    if rule == "lead":
        return found
    to_come = torch.arange(len(found) - 1, -1, -1)
    return found / to_come.clamp(min=1).unsqueeze(-1)


def replay(split: Split, order: list[int], fusion: FusionRule, rule: str) -> tuple[Tensor, Tensor]:
    """Certainty after each template [M, B], and whether the prediction there is right [M, B]."""
    so_far = fused_so_far(Opinion(split.opinions.weight[order]), fusion)
    return certainty(so_far, rule), so_far.prediction == split.labels


def curve(source: Source, rule: str, order_name: str, budgets: list[float]) -> list[dict[str, Any]]:
    """One row for each budget."""
    order = list(range(len(source.val.opinions.weight)))
    if order_name == "best first":
        order = source.val.accuracies().argsort(descending=True, stable=True).tolist()
    splits = {
        name: replay(split, order, source.fusion, rule)
        for name, split in (("val", source.val), ("test", source.test))
    }
    rows = []
    for budget in budgets:
        margin = margin_for(splits["val"][0], budget)
        row: dict[str, Any] = {"data": source.data, "rule": rule, "order": order_name, "budget": budget}
        row["margin"] = round(margin, 5)
        for name, (scores, right) in splits.items():
            used = templates_needed(scores, margin)
            accuracy = right.gather(0, used.unsqueeze(0) - 1).double().mean().item()
            full = right[-1].double().mean().item()
            row |= {
                f"{name}_templates": round(used.double().mean().item(), 4),
                f"{name}_accuracy": round(100 * accuracy, 3),
                f"{name}_points_to_all": round(100 * (accuracy - full), 3),
            }
        rows.append(row)
    return rows


def curves(sources: list[Source], budgets: list[float]) -> list[dict[str, Any]]:
    """Rows of all data sets, and of their mean, for every rule and order."""
    rows: list[dict[str, Any]] = []
    for rule in RULES:
        for order in ORDERS:
            each = [curve(source, rule, order, budgets) for source in sources]
            mean = [_mean(found) for found in zip(*each, strict=True)]
            losing = [row["budget"] for row in mean if row["val_points_to_all"] < -TOLERANCE]
            chosen = min(budget for budget in budgets if budget > max(losing, default=0.0))
            rows += [row | {"chosen": row["budget"] == chosen} for part in (*each, mean) for row in part]
    return rows


def _mean(rows: tuple[dict[str, Any], ...]) -> dict[str, Any]:
    first = rows[0]
    figures = [name for name in first if name.startswith(("val_", "test_"))]
    means = {name: round(statistics.mean(row[name] for row in rows), 4) for name in figures}
    return first | {"data": "mean", "margin": ""} | means


def learn(data: str, folder: Path, precision: Precision) -> Path:
    """Train an adapter as the suite mini/few-shot does, unless it is there."""
    path = folder / data.replace("/", "-")
    if not path.exists():
        settings = load_suite("mini/few-shot").methods["cdc"]
        model = PromptPrism("cdc", precision=precision, shots=16, seed=1, progress=True, **settings)
        model.fit(data, checkpoint=path.with_name(f"{path.name}.checkpoint")).save(path)
    return path


def main(
    adapters: Annotated[
        list[Path] | None,
        typer.Argument(metavar="[ADAPTER]...", help="Instead of training.", show_default=False),
    ] = None,
    folder: Annotated[Path, typer.Option(help="Where adapters are trained to.")] = Path("build/anytime"),
    data: Annotated[
        list[str] | None, typer.Option(help="To train on, instead of the development sets; may be repeated.")
    ] = None,
    precision: Annotated[Precision, typer.Option(help="To train in.")] = "bfloat16",
    step: Annotated[float, typer.Option(min=0.01, help="Between budgets.")] = 0.125,
    csv_file: CsvFile = None,
) -> None:
    """Measure what stopping early costs in accuracy."""
    sources = []
    for path in adapters or [learn(name, folder, precision) for name in data or DEVELOPMENT]:
        card = read_card(path)
        if card.data is None:
            raise PromptPrismError(f"adapter '{path}' was not trained on data")
        sources.append(read_source(load_model(path), card.data.name))
    templates = min(len(source.val.opinions.weight) for source in sources)
    budgets = [1 + step * i for i in range(round((templates - 1) / step) + 1)]
    rows = curves(sources, budgets)
    if csv_file:
        write_rows(csv_file, [row | machine() for row in rows])
    for row in rows:
        if row["chosen"]:
            typer.echo(
                f"{row['data']:16} {row['rule']}, {row['order']}: {row['test_templates']:.2f} templates, "
                f"{row['test_accuracy']:.2f} %, {row['test_points_to_all']:+.2f} points"
            )


if __name__ == "__main__":
    typer.run(main)
