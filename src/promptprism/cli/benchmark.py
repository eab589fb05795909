"""``promptprism benchmark``: the paper's table of templates against parameters and speed, on this machine."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from promptprism.cli.options import Device, Json, Precision, option
from promptprism.cli.output import Output
from promptprism.errors import PromptPrismError

if TYPE_CHECKING:
    from rich.table import Table

    from promptprism.backbones import Backbone
    from promptprism.backbones import Precision as Products
    from promptprism.cost.speed import Speed


def benchmark(
    backbone: Annotated[
        str, option("NAME", "As for fit. An open_clip name without --pretrained runs with random weights.")
    ] = "mini",
    pretrained: Annotated[str | None, option("TAG|FILE", "Tag or .safetensors file of the weights.")] = None,
    classes: Annotated[int, option("N", "K.", min=2)] = 50,
    templates: Annotated[str, option("1,2,...", "M; several separated by commas.")] = "1,2,4",
    batch: Annotated[int, option("N", "Images of a training step.", min=1)] = 4,
    predict_batch: Annotated[int, option("N", "Images predicted at a time.", min=1)] = 32,
    depth: Annotated[int, option("N", "J, layers with prompts.", min=1)] = 9,
    vision_from: Annotated[int, option("N", "L0, vision layers below the prompts.", min=0)] = 0,
    precision: Precision = "auto",
    device: Device = "auto",
    seconds: Annotated[float, option("X", "To spend on each M, at least.", min=0)] = 5.0,
    repeats: Annotated[int, option("N", "Measurements of each, at least.", min=1)] = 3,
    json_file: Json = None,
) -> None:
    """Measure what CDC's templates cost in parameters, time and memory.

    Takes about half a minute.
    """
    output = Output("benchmark", json_file)
    counts = _counts(templates)
    from promptprism.cost.speed import measure
    from promptprism.methods import CdcSettings
    from promptprism.provenance import BackboneFacts, Meter

    tower, random = _load(backbone, pretrained, precision, device)
    rows = measure(
        tower,
        classes,
        counts,
        CdcSettings(depth=depth, vision_from=vision_from),
        batch=batch,
        predict_batch=predict_batch,
        seconds=seconds,
        repeats=repeats,
    )
    cost, facts = Meter(tower.device).cost(), BackboneFacts.of(tower)
    weights = "random weights: speed does not depend on them" if random else f"weights {tower.fingerprint}"
    output.show(
        f"{tower.name}, {weights}; {facts.precision} on {cost.device}, {cost.threads} threads",
        f"{classes} classes, {batch} images a training step, {predict_batch} predicted at a time, "
        "already decoded",
        _table(rows),
        "Cached: the hand-made phrase's text features, in training; all text features, in prediction, made "
        "once per label space in the time shown under text.",
    )
    output.write(
        backbone=facts.model_dump() | {"random": random},
        classes=classes,
        batch=batch,
        predict_batch=predict_batch,
        depth=depth,
        vision_from=vision_from,
        rows=[row.model_dump() for row in rows],
        device=cost.device,
        threads=cost.threads,
        versions=cost.versions,
    )


def _counts(text: str) -> list[int]:
    parts = [part.strip() for part in text.split(",")]
    if wrong := [part for part in parts if not part.isdecimal() or int(part) < 1]:
        raise PromptPrismError(f"templates '{wrong[0]}' is no number from 1: write --templates 1,2,4")
    return [int(part) for part in parts]


def _load(name: str, pretrained: str | None, precision: Products, device: str) -> tuple[Backbone, bool]:
    """A backbone, and whether its weights are random."""
    from promptprism.backbones import load_backbone
    from promptprism.backbones.loading import find_device, names, random_backbone

    if pretrained is not None or name not in names():
        return load_backbone(name, pretrained, precision=precision, device=device), False
    return random_backbone(name, precision, find_device(device)), True


def _table(rows: list[Speed]) -> Table:
    from rich.table import Column

    from promptprism.cli.tables import duration, grid, numbers

    training = numbers("\nlearned", "GFLOP\n/step", "steps\n/s", "\nMiB")
    prediction = numbers("GFLOP\n/image", "images\n/s", "\nMiB", "\ntext")
    table = grid(
        Column("\nM", justify="right", style="bold", no_wrap=True),
        *(*training, *prediction),
        caption="M = 0: zero-shot CLIP. MiB: on top of the weights",
    )
    table.collapse_padding = True
    for row in rows:
        table.add_row(
            str(row.templates),
            f"{row.trainable:,}" if row.trainable else "–",
            _short(row.step_gflops),
            _short(row.steps_per_second),
            _short(row.step_memory_mb),
            _short(row.image_gflops),
            _short(row.images_per_second),
            _short(row.predict_memory_mb),
            duration(row.text_seconds),
        )
    return table


def _short(value: float | None) -> str:
    """Three digits, without an exponent."""
    if value is None:
        return "–"
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
