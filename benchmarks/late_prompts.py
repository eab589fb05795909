"""What starting the vision prompts at a later layer saves, and what it costs in accuracy.

    python -m benchmarks.late_prompts --csv benchmarks/results/late_prompts.csv

Below layer L0 templates share what they see: no gradient goes through those layers, and where all templates
see the same image, as in prediction, they are computed once. For each development set of MiniWorld, L0 and
seed: the seconds of a training step and of a prediction, interleaved with those of L0 = 0, and the
base-to-new accuracies with the settings of the suite mini/base-to-new. A row that the file has is not run
again. With --cost a row has only the seconds, of an architecture with random weights.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any

import typer

from benchmarks.measure import CsvFile, append_rows, is_there, machine
from promptprism.backbones import Backbone, load_backbone
from promptprism.backbones.backbone import Precision
from promptprism.cost.speed import (
    build,
    class_names,
    draw,
    interleave,
    prediction,
    random_backbone,
    text_features,
    training_step,
)
from promptprism.data.miniworld import DEVELOPMENT
from promptprism.data.registry import load_data
from promptprism.data.splits import base_new
from promptprism.evaluation.base_to_new import base_to_new
from promptprism.evaluation.suites import load_suite


def cost(
    backbone: Backbone, names: list[str], vision_from: int, templates: int, batch: int, repeats: int
) -> dict[str, Any]:
    """Seconds of a step and of a prediction of 32 images, and their ratios to those of L0 = 0."""
    work: dict[tuple[str, int], Callable[[], object]] = {}
    views, labels = draw(backbone, templates, batch, len(names))
    plain, _ = draw(backbone, 1, 32, len(names))
    for first in dict.fromkeys((0, vision_from)):
        method = build(backbone, names, templates, vision_from=first)
        work["step", first] = training_step(method, views, labels)
        work["predict", first] = prediction(method, plain, text_features(method)())
    found = interleave(work, repeats)
    row: dict[str, Any] = {}
    for name in ("step", "predict"):
        late, usual = found[name, vision_from], found[name, 0]
        row[f"{name}_seconds"] = round(late.median, 4)
        row[f"{name}_to_0"] = round(late.median / usual.median, 4)
        row[f"{name}_to_0_cpu"] = round(late.cpu_median / usual.cpu_median, 4)
    return row


def accuracy(
    backbone: Backbone, data: str, vision_from: int, seed: int, shots: int, **settings: Any
) -> dict[str, Any]:
    """Base-to-new accuracies in per cent."""
    result = base_to_new(
        "cdc",
        backbone,
        load_data(data),
        shots=shots,
        seed=seed,
        progress=True,
        vision_from=vision_from,
        **settings,
    )
    return {
        "base": round(100 * result.base.accuracy, 3),
        "new": round(100 * result.new.accuracy, 3),
        "hm": "" if result.hm is None else round(100 * result.hm, 3),
        "trainable": result.training.trainable,
        "seconds_per_step": round(result.training.seconds_per_step or 0.0, 4),
    }


def main(
    data: Annotated[
        list[str] | None, typer.Option(help="Instead of the development sets; may be repeated.")
    ] = None,
    seeds: Annotated[int, typer.Option(min=1, help="How many, from 1.")] = 1,
    cost_of: Annotated[
        str | None,
        typer.Option("--cost", help="Only seconds, of this ViT of open_clip's.", show_default=False),
    ] = None,
    classes: Annotated[int, typer.Option(min=2, help="K, with --cost.")] = 50,
    batch: Annotated[int, typer.Option(min=1, help="Images of a step, with --cost.")] = 4,
    shots: Annotated[int, typer.Option(min=1, help="Training images per class.")] = 16,
    precision: Annotated[Precision, typer.Option(help="Of the matrix products.")] = "bfloat16",
    repeats: Annotated[int, typer.Option(min=1, help="Rounds of the seconds; medians are reported.")] = 10,
    csv_file: CsvFile = None,
) -> None:
    """Measure every L0 that leaves a layer with prompts."""
    settings = {"batch_size": batch} if cost_of else load_suite("mini/base-to-new").methods["cdc"]
    tower = random_backbone(cost_of, precision) if cost_of else load_backbone(precision=precision)
    layers = min(9, tower.text_layers, tower.vision_layers)
    for name in [f"{classes} classes"] if cost_of else data or DEVELOPMENT:
        for seed in range(1, 2 if cost_of else seeds + 1):
            for vision_from in range(layers):
                key = {"backbone": tower.name, "data": name, "vision_from": vision_from, "seed": seed}
                key["precision"] = precision
                if is_there(csv_file, key):
                    continue
                if cost_of:
                    names, scores = class_names(classes), dict[str, Any].fromkeys(_SCORES, "")
                else:
                    names = list(base_new(load_data(name))[0].class_names)
                    scores = accuracy(tower, name, vision_from, seed, shots, **settings)
                templates = settings.get("templates", 4)
                seconds = cost(tower, names, vision_from, templates, settings["batch_size"], repeats)
                facts = {"layers": layers, "templates": templates, "batch": settings["batch_size"]}
                row = key | facts | seconds | scores | machine()
                if csv_file:
                    append_rows(csv_file, [row])
                typer.echo(", ".join(f"{head} {row[head]}" for head in (*key, *seconds, *_SCORES[:3])))


_SCORES = ("base", "new", "hm", "trainable", "seconds_per_step")


if __name__ == "__main__":
    typer.run(main)
