"""Images per second of CDC at test time against plain CLIP's image tower, in one process, interleaved.

    python -m benchmarks.evaluation --csv benchmarks/results/evaluation.csv

M templates are M passes of the image tower, so the best to hope for is 1/M of plain CLIP's images per second,
and `share_of_quarter` (with M = 4) says how much of that is there. Text features are made once and not timed.
Plain CLIP is open_clip's own forward in the same precision, and zero-shot CLIP by our forward. Ours is
measured on tensors, and from JPEG files, where decoding and resizing overlap with the model.
"""

import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from PIL import Image
from torch.nn import functional as F

from benchmarks.measure import BackboneName, CsvFile, Templates, append_rows, machine
from promptprism.backbones import Precision
from promptprism.backbones.build import random_model
from promptprism.backbones.loading import random_backbone
from promptprism.cost.speed import build, class_names, draw, interleave, prediction
from promptprism.data.names import LabelSpace
from promptprism.inference.predictor import Predictor
from promptprism.methods import CdcSettings, ZeroShot


def write_photos(folder: Path, count: int, size: tuple[int, int] = (500, 375)) -> list[Path]:
    """Smooth random JPEGs of the size of the field's photos."""
    generator = np.random.default_rng(0)
    paths = [folder / f"{number}.jpg" for number in range(count)]
    for path in paths:
        coarse = Image.fromarray(generator.integers(0, 256, (12, 16, 3), dtype=np.uint8))
        coarse.resize(size, Image.Resampling.BICUBIC).save(path, quality=90)
    return paths


def compare(
    backbone: str, classes: int, templates: int, batch: int, precision: Precision, repeats: int
) -> list[dict[str, Any]]:
    """Rows of all paths."""
    tower, space = random_backbone(backbone, precision), LabelSpace(tuple(class_names(classes)))
    cdc = build(tower, CdcSettings(templates=templates)).classifier(space)
    zero_shot = ZeroShot(tower).classifier(space)
    plain = random_model(backbone, precision)
    views, _ = draw(tower, 1, batch, classes)
    predictor = Predictor(cdc)

    def open_clip() -> torch.Tensor:
        with torch.no_grad():
            image = F.normalize(plain.encode_image(views[0].to(tower.dtype)).float(), dim=-1)
            return zero_shot.probabilities(tower.logits(image.unsqueeze(0), zero_shot.zero_shot_features))

    with tempfile.TemporaryDirectory() as folder:
        photos = write_photos(Path(folder), 2 * batch)

        def from_files() -> None:
            for logits in predictor.logits(photos, batch):
                cdc.probabilities(logits)

        work: dict[str, Callable[[], object]] = {
            "open_clip": open_clip,
            "zero-shot": prediction(zero_shot, views),
            "cdc": prediction(cdc, views),
            "cdc from files": from_files,
        }
        samples = interleave(work, repeats)
    images = {name: len(photos) if name == "cdc from files" else batch for name in work}
    speed = {name: images[name] / sample.median for name, sample in samples.items()}
    cpu_speed = {name: images[name] / sample.cpu_median for name, sample in samples.items()}
    return [
        {
            "backbone": backbone,
            "path": name,
            "classes": classes,
            "templates": templates if name.startswith("cdc") else 1,
            "batch": batch,
            "precision": precision,
            **sample.row(),
            "images_per_second": round(speed[name], 3),
            "share_of_quarter": round(speed[name] * templates / speed["open_clip"], 4),
            "share_of_quarter_cpu": round(cpu_speed[name] * templates / cpu_speed["open_clip"], 4),
            "share_of_our_zero_shot": round(speed[name] * templates / speed["zero-shot"], 4),
            **machine(),
        }
        for name, sample in samples.items()
    ]


def main(
    backbone: BackboneName = "ViT-B-16-quickgelu",
    classes: Annotated[int, typer.Option(min=2, help="K.")] = 100,
    templates: Templates = 4,
    batch: Annotated[int, typer.Option(min=1, help="Images at a time.")] = 32,
    precision: Annotated[Precision, typer.Option(help="Of all paths.")] = "bfloat16",
    repeats: Annotated[int, typer.Option(min=1, help="Rounds; medians are reported.")] = 5,
    csv_file: CsvFile = None,
) -> None:
    """Measure prediction against plain CLIP."""
    rows = compare(backbone, classes, templates, batch, precision, repeats)
    if csv_file:
        append_rows(csv_file, rows)
    typer.echo(json.dumps(rows, indent=2))


if __name__ == "__main__":
    typer.run(main)
