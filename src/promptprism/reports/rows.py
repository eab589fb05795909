"""Rows of tables and JSON, made from a model's answers, its card, and the machine."""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from promptprism.errors import PromptPrismError
from promptprism.reports.tables import duration, percent

if TYPE_CHECKING:
    from promptprism.data.images import ImageSource
    from promptprism.data.records import Dataset
    from promptprism.estimator import PromptPrism

_TOP = 5


def prediction_rows(
    model: PromptPrism,
    sources: Sequence[ImageSource],
    names: Sequence[str],
    templates: bool = False,
    margin: float | None = None,
) -> list[dict[str, Any]]:
    """Predict images; one row each, with ``names`` to call them by; with a margin by early opinions.

    Raises:
        PromptPrismError: templates or a margin are asked of a method without opinions, or both at once; or
            an image cannot be read.
    """
    classes = [str(name) for name in model.classes_]
    used: list[int] | None = None
    if margin is not None:
        if templates:
            raise PromptPrismError("with a margin not all templates are asked: leave out one of the two")
        early = model.early_opinions(sources, margin)
        fused, probabilities, used = early.fused, early.fused.probability, early.templates_used.tolist()
    elif model.method_.evidential or templates:
        fused, each = model.opinions(sources)
        probabilities = fused.probability
    else:
        import torch

        fused, probabilities = None, torch.from_numpy(model.predict_proba(sources))

    def opinion(of: Any, at: tuple[int, ...]) -> dict[str, Any]:
        best = int(of.prediction[at])
        return {
            "class": classes[best],
            "probability": float(of.probability[at][best]),
            "belief": float(of.belief[at][best]),
            "uncertainty": float(of.uncertainty[at]),
        }

    rows = []
    for i, name in enumerate(names):
        shares, places = probabilities[i].topk(min(_TOP, len(classes)))
        top = [
            {"class": classes[place], "probability": share}
            for place, share in zip(places.tolist(), shares.tolist(), strict=True)
        ]
        row: dict[str, Any] = {"image": name}
        row |= opinion(fused, (i,)) if fused is not None else {**top[0], "belief": None, "uncertainty": None}
        row["top"] = top
        if used is not None:
            row["templates_used"] = used[i]
        if templates:
            row["templates"] = [opinion(each, (m, i)) for m in range(len(each.weight))]
        rows.append(row)
    return rows


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
    return {
        "margin": f"{row['margin']:.3g}" if row["margin"] is not None else "infinite",
        "templates used": f"{row['templates_used']:.2f} per image",
        "accuracy": f"{percent(row['accuracy'])} %",
        "speed": f"{row['images_per_second']:.0f} images/s",
    }


def card_facts(card: Mapping[str, Any]) -> dict[str, str | None]:
    """An adapter's card as a person reads it."""
    training, backbone, data = card["training"], card["backbone"], card["data"]
    names = card["class_names"]
    shown = ", ".join(names[:6]) + (f", ... ({len(names)} in all)" if len(names) > 6 else "")
    learned = None
    if training["steps"]:
        losses = [epoch["loss"] for epoch in training["history"]]
        learned = (
            f"{training['steps']} steps in {duration(training['cost']['seconds'])}, "
            f"{duration(training['seconds_per_step'])} each; loss {losses[0]:.3f} to {losses[-1]:.3f}; "
            f"{percent(training['accuracy'])} % of the training images right"
        )
    return {
        "method": f"{card['method']}, {training['trainable']:,} trainable parameters",
        "backbone": " ".join(
            filter(
                None,
                (backbone["name"], backbone["pretrained"], backbone["fingerprint"], backbone["precision"]),
            )
        ),
        "classes": shown,
        "phrase": card["phrase"],
        "learned from": data
        and f"{sum(data['images'].values())} images of {data['name']}, seed {data['seed']}",
        "training": learned,
        **{
            f"score on {name}": f"{percent(scores['cls/accuracy'])} %"
            for name, scores in card["scores"].items()
        },
    }


def method_rows(name: str | None = None) -> dict[str, dict[str, Any]]:
    """Each method, or the one, with its summary and its settings: default and meaning by name.

    Raises:
        PromptPrismError: no such method.
    """
    from promptprism.methods import METHODS, make_settings

    rows: dict[str, dict[str, Any]] = {}
    for method in METHODS if name is None else (name,):
        defaults = make_settings(method).model_dump(mode="json")
        fields = METHODS[method].Settings.model_fields
        rows[method] = {
            "summary": inspect.cleandoc(METHODS[method].__doc__ or "").splitlines()[0],
            "settings": {
                key: {"default": value, "meaning": fields[key].description} for key, value in defaults.items()
            },
        }
    return rows


def machine() -> dict[str, Any]:
    """Versions, devices, methods and the shipped model."""
    import torch

    from promptprism.backbones import load_backbone
    from promptprism.methods import METHODS
    from promptprism.provenance import versions

    devices = [
        "cpu",
        *(f"cuda:{i} ({torch.cuda.get_device_name(i)})" for i in range(torch.cuda.device_count())),
    ]
    mini: dict[str, Any] | None
    try:
        model = load_backbone("mini", device="cpu")
        sizes = ("image_size", "embed_dim", "text_width", "vision_width", "text_layers", "vision_layers")
        facts = ("fingerprint", "activation", *sizes, "context_length", "logit_scale")
        mini = {name: getattr(model, name) for name in facts}
        mini["parameters"] = sum(value.numel() for value in model.parameters())
    except PromptPrismError:
        mini = None
    return {
        "versions": versions(),
        "devices": devices,
        "threads": torch.get_num_threads(),
        "methods": list(METHODS),
        "package": str(Path(__file__).parents[1]),
        "mini": mini,
    }


def machine_facts(content: Mapping[str, Any]) -> dict[str, str | None]:
    """What `machine` found as a person reads it."""
    mini = content["mini"]
    return {
        **content["versions"],
        "devices": f"{', '.join(content['devices'])}; {content['threads']} threads",
        "methods": ", ".join(content["methods"]),
        "mini CLIP": mini
        and f"{mini['parameters'] / 1e6:.1f} M parameters, {mini['image_size']} px, {mini['fingerprint']}",
        "package": content["package"],
    }
