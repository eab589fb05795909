"""Seconds and memory of our training step as the label space grows.

    python -m benchmarks.classes --classes 10 --classes 100 --classes 1000

Beyond the text tower's memory budget classes are recomputed in the backward pass, so memory levels off.
"""

from typing import Annotated, Any

import typer

from benchmarks.measure import BackboneName, CsvFile, Templates, append_rows, machine
from promptprism.backbones import Backbone
from promptprism.backbones.loading import random_backbone
from promptprism.cost.speed import build, class_names, draw, interleave, training_step
from promptprism.data.names import LabelSpace
from promptprism.methods import CdcSettings
from promptprism.prompts.text import TEXT_MEMORY_MB


def measure(
    backbone: Backbone, classes: int, templates: int, batch: int, repeats: int, text_memory_mb: float
) -> dict[str, Any]:
    """One row: a step with so many classes."""
    method = build(
        backbone, CdcSettings(templates=templates, text_memory_mb=text_memory_mb, class_offsets=False)
    )
    space = LabelSpace(tuple(class_names(classes)))
    run = training_step(method, space, *draw(backbone, templates, batch, classes))
    samples = interleave({"step": run}, repeats)["step"]
    return {
        "backbone": backbone.name,
        "classes": classes,
        "templates": templates,
        "batch": batch,
        "precision": str(backbone.dtype).removeprefix("torch."),
        "text_memory_mb": text_memory_mb,
        **samples.row(),
        **machine(),
    }


def main(
    classes: Annotated[list[int], typer.Option(help="K; may be given more than once.")],
    templates: Templates = 4,
    batch: Annotated[int, typer.Option(min=1, help="Images per step.")] = 4,
    backbone: BackboneName = "ViT-B-16-quickgelu",
    repeats: Annotated[int, typer.Option(min=1)] = 3,
    text_memory_mb: Annotated[float, typer.Option(min=0, help="The budget.")] = TEXT_MEMORY_MB,
    csv_file: CsvFile = None,
) -> None:
    """Measure the growth with K, in bfloat16."""
    tower = random_backbone(backbone, "bfloat16")
    for count in classes:
        row = measure(tower, count, templates, batch, repeats, text_memory_mb)
        typer.echo(f"K={count}: {row['seconds']} s, {row['memory_mb']} MiB")
        if csv_file:
            append_rows(csv_file, [row])


if __name__ == "__main__":
    typer.run(main)
