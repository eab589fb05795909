"""``promptprism evaluate``."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from promptprism.cli.options import (
    Adapter,
    AdapterSettings,
    Data,
    DataOptions,
    Json,
    Margin,
    ModelOptions,
    flag,
    grouped,
    open_data,
    option,
)
from promptprism.cli.output import Output
from promptprism.errors import PromptPrismError

if TYPE_CHECKING:
    from promptprism.data.names import LabelSpace
    from promptprism.data.records import Dataset
    from promptprism.estimator import PromptPrism


# Classes of which the whole confusion matrix fits on a screen.
_FEW = 12


@grouped
def evaluate(
    *,
    adapter: Adapter,
    data: Data,
    data_classes: Annotated[
        bool, flag("--data-classes", "Score among the classes of DATA, also such never trained.")
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
    others: Annotated[
        str | None, option("DATA", "Photos of other classes: how well they are told from the adapter's own.")
    ] = None,
    html: Annotated[Path | None, option("FILE", "Page with the worst mistakes as pictures.")] = None,
    reading: DataOptions,
    opening: ModelOptions,
    json_file: Json = None,
) -> None:
    """Score an adapter on test images, or on all without a test split.

    Images that were learned from are told apart. The scores are kept in the adapter's card.
    """
    output = Output("evaluate", json_file)
    from promptprism.adapter import note
    from promptprism.cli import tables
    from promptprism.evaluation.scores import score
    from promptprism.files import check_place, write_text
    from promptprism.reports.mistakes import mistakes_page

    if html is not None:
        check_place(html)
    dataset, model = reading.open(data, output), opening.open(adapter, settings)
    strange = None if others is None else open_data(others, output, reading.root)
    if strange:
        if data_classes:
            raise PromptPrismError(
                "--others are told from the adapter's own classes: leave out --data-classes"
            )
        _check_others(strange, model.classifier_.space)
    # Of other classes or settings it is another model than the card tells of.
    plain = not data_classes and not settings
    if data_classes:
        model = model.with_classes(dataset.class_names)
    early = None
    if margin is not None or budget is not None:
        early = early_row(model, dataset, margin, budget)
    dataset, records = model.labelled(dataset)
    found = score(
        model.classifier_, records, dataset.name, model.data_, strange.evaluation if strange else ()
    )
    result, held_out = found.result, found.held_out
    content = result.model_dump(mode="json") | found.mistakes
    if html is not None:
        title = f"{result.data}: mistakes of {adapter.name}"
        write_text(html, mistakes_page(title, content, [record.source for record in records]))
    if held_out:
        output.warn(
            f"{found.learned_from} of {result.images} images were learned from and flatter: on the other "
            f"{held_out.images} the accuracy is {tables.percent(held_out.accuracy)} %"
        )
    elif not dataset.test and model.data_ and found.learned_from != 0:
        output.warn("no test split: all images are scored; those learned from, if any, flatter")
    output.show(
        f"{result.images} images of {result.data}, {result.classes} classes, "
        f"{result.images_per_second:.0f} images/s",
        tables.evaluation(content),
        tables.classes(content["by_class"]),
        tables.confusion(content["confusion"], [str(name) for name in model.classes_])
        if result.classes <= _FEW
        else tables.confused(content["confused"]),
    )
    if others is not None:
        output.show(
            f"Photos of {others} are told from these with an AUROC of "
            f"{tables.percent(result.metrics['ood/auroc_max_prob'])} % (1 - probability); FPR at 95 %: "
            f"{tables.percent(result.metrics['ood/fpr95_max_prob'])} %"
        )
    if early is not None:
        output.show(tables.facts("stopping early", early_facts(early)))
    split = "test" if dataset.test else "all"
    if plain:
        try:
            note(adapter, found.scored(split))
        except (PromptPrismError, OSError) as error:
            output.warn(f"the scores are not in the adapter's card: {error}")
    output.write(
        adapter=str(adapter),
        method=model.method,
        split=split,
        accuracy=result.accuracy,
        learned_from=found.learned_from,
        held_out=held_out
        and {"images": held_out.images, "accuracy": held_out.accuracy, "metrics": held_out.metrics},
        early=early,
        **content,
    )


def _check_others(others: Dataset, own: LabelSpace) -> None:
    """Refuse photos of other classes that are of the same."""
    from promptprism.data.names import name_key

    if same := [name for name in others.class_names if name_key(name) in own.keys]:
        raise PromptPrismError(
            f"--others '{others.name}' has class '{same[0]}', which the adapter has too: give photos of "
            "other classes"
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
