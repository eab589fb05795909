"""``promptprism evaluate``."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated

import typer

from promptprism.cli.options import (
    Adapter,
    AdapterBackbone,
    AdapterSettings,
    Data,
    Device,
    Json,
    LabelColumn,
    Margin,
    Names,
    PathColumn,
    Pretrained,
    Root,
    SplitColumn,
    Splits,
    TrustBackbone,
    make_reading,
    open_adapter,
    open_data,
    option,
)
from promptprism.cli.output import Output
from promptprism.errors import PromptPrismError

if TYPE_CHECKING:
    from promptprism.data.records import Dataset
    from promptprism.estimator import PromptPrism


def evaluate(
    adapter: Adapter,
    data: Data,
    data_classes: Annotated[
        bool, typer.Option("--data-classes", help="Score among the classes of DATA, also such never trained.")
    ] = False,
    settings: AdapterSettings = None,
    margin: Margin = None,
    budget: Annotated[
        float | None,
        option(
            "N",
            "Templates per image on average: finds the margin on validation (else training) images.",
            min=1,
        ),
    ] = None,
    root: Root = None,
    splits: Splits = None,
    names: Names = None,
    path_column: PathColumn = "path",
    label_column: LabelColumn = "label",
    split_column: SplitColumn = "split",
    backbone: AdapterBackbone = None,
    pretrained: Pretrained = None,
    trust_backbone: TrustBackbone = False,
    device: Device = "auto",
    json_file: Json = None,
) -> None:
    """Score an adapter on test images, or on all without a test split."""
    output = Output("evaluate", json_file)
    from promptprism.cli import tables

    reading = make_reading(splits, names, path_column, label_column, split_column)
    dataset = open_data(data, output, root, reading)
    model = open_adapter(adapter, backbone, pretrained, trust_backbone, device, settings)
    if not dataset.test and model.data_:
        output.warn("no test split: all images are scored; those learned from, if any, flatter")
    if data_classes:
        model = model.with_classes(dataset.class_names)
    early = None
    if margin is not None or budget is not None:
        early = early_row(model, dataset, margin, budget)
    result = model.evaluate(dataset)
    content = result.model_dump(mode="json")
    output.show(
        f"{result.images} images of {result.data}, {result.classes} classes, "
        f"{result.images_per_second:.0f} images/s",
        tables.evaluation(content),
    )
    if early is not None:
        output.show(tables.facts("stopping early", early_facts(early)))
    output.write(
        adapter=str(adapter),
        method=model.method,
        split="test" if dataset.test else "all",
        accuracy=result.accuracy,
        early=early,
        **content,
    )


def early_row(
    model: PromptPrism, dataset: Dataset, margin: float | None, budget: float | None
) -> dict[str, float | None]:
    """What early opinions are worth on data; a budget finds its margin on images that are not scored.

    Raises:
        PromptPrismError: both are given, there are no images to find the margin on, or the method has no
            opinions.
    """
    if budget is not None:
        if margin is not None:
            raise PromptPrismError("a budget finds its margin itself: leave out one of the two")
        if not math.isfinite(budget):
            raise PromptPrismError(f"the budget is {budget}: give a number of templates per image")
        others = (dataset.val or dataset.train) if dataset.test else ()
        if not others:
            raise PromptPrismError(
                f"data '{dataset.name}' has only images to score on, and a budget needs others to find its "
                "margin on: put some into a val/ folder, or give --margin"
            )
        margin = model.margin_for([record.source for record in others], budget)
    assert margin is not None
    score = model.score_early(dataset, margin=margin)
    shown = margin if math.isfinite(margin) else None  # JSON knows no infinity
    return {"budget": budget, "margin": shown, **score._asdict()}


def early_facts(row: Mapping[str, float | None]) -> dict[str, str | None]:
    """What `early_row` found as a person reads it."""
    from promptprism.cli.tables import percent

    return {
        "margin": f"{row['margin']:.3g}" if row["margin"] is not None else "infinite",
        "templates used": f"{row['templates_used']:.2f} per image",
        "accuracy": f"{percent(row['accuracy'])} %",
        "speed": f"{row['images_per_second']:.0f} images/s",
    }
