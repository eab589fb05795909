"""One training step: CDC with M templates against the plain reference, in one process, interleaved.

    python -m benchmarks.step --classes 50 --templates 4 --json -

The references train MaPLe's objective as its public code does (77 tokens, every class whole, one template at
a time): M = 1 in float32, and M as ours in the same dtype. Ours trains all of CDC's losses. Before anything
is timed, both ways must agree in float32 on features and gradients to 1e-4 on the same objective.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from torch import Tensor

from benchmarks.measure import BackboneName, CsvFile, Templates, append_rows, machine
from benchmarks.reference import plain_gradients
from promptprism.backbones import Precision
from promptprism.backbones.build import random_model
from promptprism.backbones.loading import random_backbone
from promptprism.cost.arithmetic import image_flops, text_flops
from promptprism.cost.speed import build, class_names, draw, interleave, training_step
from promptprism.data.names import LabelSpace
from promptprism.errors import PromptPrismError
from promptprism.evaluation.estimate import measure_gigaflops
from promptprism.methods import Cdc, CdcSettings

TOLERANCE = 1e-4
#: With these CDC's loss is MaPLe's, averaged over templates: what the reference computes.
PLAIN_LOSS = {"head": "softmax", "diversity_weight": 0.0, "consistency_weight": 0.0}


def plain_step(
    model: Any, method: Cdc, space: LabelSpace, views: Tensor, labels: Tensor
) -> Callable[[], None]:
    """Our path's step by the reference; of the method only learner and tokens are used."""
    tokens = method.texts(space).tokens
    optimizer = torch.optim.SGD(method.parameters(), lr=1e-5, momentum=0.9)

    def run() -> None:
        optimizer.zero_grad()
        plain_gradients(model, method.learner, tokens, views, labels)
        optimizer.step()

    return run


def differences(
    name: str, space: LabelSpace, settings: CdcSettings, views: Tensor, labels: Tensor
) -> dict[str, float]:
    """Largest differences of both ways in float32; gradients in units of the largest one."""
    method = build(random_backbone(name, "float32"), settings.model_copy(update=PLAIN_LOSS))
    texts = method.texts(space)
    method(views, labels, texts, 0).backward()
    ours = {key: value.grad for key, value in method.named_parameters()}
    with torch.no_grad():
        text, image = method.text_features(texts), method.image_features(views)
    method.zero_grad()
    plain_text, plain_image = plain_gradients(random_model(name), method.learner, texts.tokens, views, labels)
    found = {"text": text - plain_text, "image": image - plain_image}
    for key, value in method.named_parameters():
        gradient, expected = ours[key], value.grad
        assert gradient is not None and expected is not None
        found[f"gradient of {key}"] = (gradient - expected) / expected.abs().max()
    return {key: float(value.abs().max()) for key, value in found.items()}


def compare(
    backbone: str,
    classes: int,
    templates: int,
    batch: int,
    depth: int,
    precision: Precision,
    repeats: int,
    same_m: bool = True,
    agreement_classes: int = 50,
) -> dict[str, Any]:
    """Measure one point; see the module.

    Raises:
        PromptPrismError: the two ways disagree.
    """
    names, settings = class_names(classes), CdcSettings(templates=templates, depth=depth, class_offsets=False)
    space = LabelSpace(tuple(names))
    fast = build(random_backbone(backbone, precision), settings)
    views, labels = draw(fast.backbone, templates, batch, classes)

    few = LabelSpace(tuple(names[:: max(1, classes // agreement_classes)]))
    found = differences(backbone, few, settings, views, labels % len(few))
    worst = max(found.values())
    if not worst <= TOLERANCE:
        raise PromptPrismError(f"our path and the plain one differ by up to {worst:.1e}: {found}")

    work = {"ours": training_step(fast, space, views, labels)}
    one = build(fast.backbone, settings.model_copy(update={"templates": 1}))
    work["reference_m1"] = plain_step(random_model(backbone), one, space, views[:1], labels)
    if same_m:
        other = build(fast.backbone, settings)
        work["reference_same_m"] = plain_step(random_model(backbone, precision), other, space, views, labels)
    samples = interleave(work, repeats)

    n, tokens = fast.settings.context_length, fast.texts(space).tokens
    text, image = text_flops(fast.backbone, tokens, n), image_flops(fast.backbone, n)
    rate = measure_gigaflops(precision)
    ours = samples["ours"]
    result: dict[str, Any] = {
        "backbone": backbone,
        "classes": classes,
        "templates": templates,
        "batch": batch,
        "depth": depth,
        "precision": precision,
    }
    for name, reference in samples.items():
        if name != "ours":
            result[f"ratio_to_{name}"] = ours.median / reference.median
            result[f"cpu_ratio_to_{name}"] = ours.cpu_median / reference.cpu_median
    return result | {
        "max_abs_difference": worst,
        "agreement_classes": len(few),
        "differences": found,
        # Forward, and backward to the inputs: frozen weights want no gradient.
        "floor_seconds": 2 * templates * (batch * image + text) / rate / 1e9,
        "image_floor_seconds": 2 * templates * batch * image / rate / 1e9,
        "gigaflops_per_second": rate,
        "paths": {name: sample.row() for name, sample in samples.items()},
        **machine(),
    }


def rows(result: dict[str, Any]) -> list[dict[str, Any]]:
    """One row of CSV for each path."""
    shared = ("backbone", "classes", "batch", "depth")
    return [
        {key: result[key] for key in shared}
        | {
            "path": name,
            "templates": 1 if name == "reference_m1" else result["templates"],
            "precision": "float32" if name == "reference_m1" else result["precision"],
            **sample,
            "ours_to_this": round(result.get(f"ratio_to_{name}", 1.0), 4),
            "ours_to_this_cpu": round(result.get(f"cpu_ratio_to_{name}", 1.0), 4),
            "max_abs_difference": f"{result['max_abs_difference']:.1e}",
            "floor_seconds": round(result["floor_seconds"], 3) if name == "ours" else "",
            **{key: result[key] for key in ("revision", "device", "threads", "torch", "open_clip")},
        }
        for name, sample in result["paths"].items()
    ]


def main(
    classes: Annotated[int, typer.Option(min=2, help="K.")] = 50,
    templates: Templates = 4,
    batch: Annotated[int, typer.Option(min=1, help="Images per step.")] = 4,
    depth: Annotated[int, typer.Option(min=1, help="J, layers with prompts.")] = 9,
    backbone: BackboneName = "ViT-B-16-quickgelu",
    precision: Annotated[Precision, typer.Option(help="Of ours.")] = "bfloat16",
    repeats: Annotated[int, typer.Option(min=1, help="Rounds; medians are reported.")] = 3,
    agreement_classes: Annotated[int, typer.Option(min=2, help="Classes that both ways agree on.")] = 50,
    threads: Annotated[int | None, typer.Option(min=1, help="PyTorch's threads; all by default.")] = None,
    same_m: Annotated[bool, typer.Option(help="Measure the reference with M templates as well.")] = True,
    json_file: Annotated[
        str | None, typer.Option("--json", metavar="FILE", help="Write JSON; - is standard output.")
    ] = None,
    csv_file: CsvFile = None,
) -> None:
    """Measure a training step against the plain reference."""
    if threads:
        torch.set_num_threads(threads)
    result = compare(
        backbone, classes, templates, batch, depth, precision, repeats, same_m, agreement_classes
    )
    if csv_file:
        append_rows(csv_file, rows(result))
    text = json.dumps(result, indent=2)
    if json_file and json_file != "-":
        Path(json_file).write_text(text + "\n", encoding="utf-8")
    else:
        typer.echo(text)


if __name__ == "__main__":
    typer.run(main)
