"""``promptprism predict``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from promptprism.cli.options import (
    Adapter,
    AdapterBackbone,
    AdapterSettings,
    Classes,
    Device,
    Json,
    Margin,
    Pretrained,
    TrustBackbone,
    argument,
    open_adapter,
)
from promptprism.cli.output import Output
from promptprism.errors import PromptPrismError

if TYPE_CHECKING:
    from promptprism.data.images import ImageSource
    from promptprism.estimator import PromptPrism
    from promptprism.evidence import Opinion

_TOP = 5


def predict(
    adapter: Adapter,
    images: Annotated[list[Path], argument("IMAGE", "Image files.")],
    templates: Annotated[
        bool, typer.Option("--templates", help="Show the opinion of each template.")
    ] = False,
    classes: Classes = None,
    settings: AdapterSettings = None,
    margin: Margin = None,
    backbone: AdapterBackbone = None,
    pretrained: Pretrained = None,
    trust_backbone: TrustBackbone = False,
    device: Device = "auto",
    json_file: Json = None,
) -> None:
    """Name the class of images, and say how sure that is.

    Images that cannot be read are listed, and the code is 1 then; 2 if there is no answer at all.
    """
    output = Output("predict", json_file)
    from promptprism.cli import tables

    model = open_adapter(adapter, backbone, pretrained, trust_backbone, device, settings, classes)
    unread: dict[int, str] = {}
    rows = prediction_rows(model, images, [str(image) for image in images], templates, margin, unread)
    output.show(tables.predictions(rows))
    for reason in unread.values():
        output.warn(f"✗ {reason}")
    if margin is not None:
        output.show(f"{sum(row['templates_used'] for row in rows) / len(rows):.2f} templates per image")
    output.write(
        adapter=str(adapter),
        method=model.method,
        classes=len(model.classes_),
        predictions=rows,
        unread=[{"image": str(images[place]), "reason": reason} for place, reason in unread.items()],
    )
    if unread:
        raise typer.Exit(1)


def prediction_rows(
    model: PromptPrism,
    sources: Sequence[ImageSource],
    names: Sequence[str],
    templates: bool = False,
    margin: float | None = None,
    unread: dict[int, str] | None = None,
) -> list[dict[str, Any]]:
    """Predict images; one row each, with ``names`` to call them by; with a margin by early opinions.

    Raises:
        PromptPrismError: templates or a margin are asked of a method without opinions, or both at once; or
            see `PromptPrism.predict`, also about ``unread``.
    """
    classes = [str(name) for name in model.classes_]
    used: list[int] | None = None
    if margin is not None:
        if templates:
            raise PromptPrismError("with a margin not all templates are asked: leave out one of the two")
        early = model.early_opinions(sources, margin, unread=unread)
        fused, probabilities, used = early.fused, early.fused.probability, early.templates_used.tolist()
    elif model.classifier_.evidential or templates:
        fused, each = model.opinions(sources, unread=unread)
        probabilities = fused.probability
    else:
        import torch

        fused, probabilities = None, torch.from_numpy(model.predict_proba(sources, unread=unread))

    shares, places = probabilities.topk(min(_TOP, len(classes)))
    tops = [
        [{"class": classes[k], "probability": share} for k, share in zip(at, of, strict=True)]
        for at, of in zip(places.tolist(), shares.tolist(), strict=True)
    ]
    leaders = None if fused is None else _leaders(fused, classes)
    voices = [_leaders(each[m], classes) for m in range(len(each.weight))] if templates else []
    rows = []
    for i, name in enumerate(name for place, name in enumerate(names) if place not in (unread or {})):
        row: dict[str, Any] = {"image": name}
        row |= leaders[i] if leaders else {**tops[i][0], "belief": None, "uncertainty": None}
        row["top"] = tops[i]
        if used is not None:
            row["templates_used"] = used[i]
        if templates:
            row["templates"] = [voice[i] for voice in voices]
        rows.append(row)
    return rows


def _leaders(opinion: Opinion, classes: Sequence[str]) -> list[dict[str, Any]]:
    """The leading class of each image as an opinion [B, K] sees it."""
    best = opinion.prediction
    probability, belief = (of.gather(-1, best[:, None])[:, 0] for of in (opinion.probability, opinion.belief))
    columns = (best, probability, belief, opinion.uncertainty)
    return [
        {"class": classes[k], "probability": p, "belief": b, "uncertainty": u}
        for k, p, b, u in zip(*(column.tolist() for column in columns), strict=True)
    ]
