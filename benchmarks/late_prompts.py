"""What starting the vision prompts at a later layer saves, and what it costs in accuracy.

    python -m benchmarks.late_prompts --csv benchmarks/results/late_prompts.csv

Below layer L0 templates share what they see: no gradient goes through those layers, and where all templates
see the same image, as in prediction, they are computed once. For each development set of MiniWorld, L0 and
seed: the seconds of a training step and of a prediction, interleaved with those of L0 = 0, and the
base-to-new accuracies with the settings of the suite mini/base-to-new. A row that the file has is not run
again. With --cost a row has only the seconds, of an architecture with random weights.
"""

from collections.abc import Callable
from typing import Annotated, Any

import typer

from benchmarks.measure import CsvFile, is_there, machine, tell
from promptprism.backbones import Backbone, Precision, load_backbone
from promptprism.backbones.loading import random_backbone
from promptprism.cost.speed import build, class_names, draw, interleave, prediction, training_step
from promptprism.data.miniworld import DEVELOPMENT
from promptprism.data.names import LabelSpace
from promptprism.data.records import Dataset
from promptprism.data.registry import load_data
from promptprism.data.splits import base_new
from promptprism.evaluation import protocols
from promptprism.evaluation.protocols import PROTOCOLS, score
from promptprism.evaluation.suites import load_suite
from promptprism.methods import CdcSettings
from promptprism.training.loop import learn


def cost(
    backbone: Backbone, space: LabelSpace, settings: CdcSettings, batch: int, repeats: int
) -> dict[str, Any]:
    """Seconds of a step and of a prediction of 32 images, and their ratios to those of L0 = 0."""
    work: dict[tuple[str, int], Callable[[], object]] = {}
    views, labels = draw(backbone, settings.templates, batch, len(space))
    plain, _ = draw(backbone, 1, 32, len(space))
    for first in dict.fromkeys((0, settings.vision_from)):
        method = build(backbone, settings.model_copy(update={"vision_from": first}))
        work["step", first] = training_step(method, space, views, labels)
        work["predict", first] = prediction(method.classifier(space), plain)
    found = interleave(work, repeats)
    row: dict[str, Any] = {}
    for name in ("step", "predict"):
        late, usual = found[name, settings.vision_from], found[name, 0]
        row[f"{name}_seconds"] = round(late.median, 4)
        row[f"{name}_to_0"] = round(late.median / usual.median, 4)
        row[f"{name}_to_0_cpu"] = round(late.cpu_median / usual.cpu_median, 4)
    return row


def accuracy(
    backbone: Backbone, dataset: Dataset, settings: CdcSettings, seed: int, shots: int
) -> dict[str, Any]:
    """Base-to-new accuracies in per cent."""
    protocol = PROTOCOLS["base-to-new"]
    base, records = protocols.draw(protocol, dataset, shots, seed)
    trained = learn(settings, backbone, base.label_space, records, seed=seed, progress=True)
    scores = score(trained.method, trained.space, protocol.scored(dataset, {}))
    accuracies = {part: found.accuracy for part, found in scores.items()}
    if trained.training.collapsed is None:
        accuracies |= protocol.summary(accuracies)
    return {
        **{part: round(100 * accuracies[part], 3) if part in accuracies else "" for part in _SCORES[:3]},
        "trainable": trained.training.trainable,
        "seconds_per_step": round(trained.training.seconds_per_step or 0.0, 4),
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
    given = {"batch_size": batch} if cost_of else load_suite("mini/few-shot").methods["cdc"]
    tower = random_backbone(cost_of, precision) if cost_of else load_backbone(precision=precision)
    layers = min(9, tower.text_layers, tower.vision_layers)
    for name in [f"{classes} classes"] if cost_of else data or DEVELOPMENT:
        for seed in range(1, 2 if cost_of else seeds + 1):
            for vision_from in range(layers):
                key = {"backbone": tower.name, "data": name, "vision_from": vision_from, "seed": seed}
                key["precision"] = precision
                if is_there(csv_file, key):
                    continue
                settings = CdcSettings(**given | {"vision_from": vision_from})
                if cost_of:
                    space, scores = (
                        LabelSpace(tuple(class_names(classes))),
                        dict[str, Any].fromkeys(_SCORES, ""),
                    )
                else:
                    dataset = load_data(name)
                    space = base_new(dataset)[0].label_space
                    scores = accuracy(tower, dataset, settings, seed, shots)
                templates, size = settings.templates, settings.batch_size
                seconds = cost(tower, space, settings, size, repeats)
                facts = {"layers": layers, "templates": templates, "batch": size}
                row = key | facts | seconds | scores | machine()
                tell([row], (*key, *seconds, *_SCORES[:3]), csv_file)


_SCORES = ("base", "new", "hm", "trainable", "seconds_per_step")


if __name__ == "__main__":
    typer.run(main)
