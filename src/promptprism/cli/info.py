"""``promptprism info``, ``methods`` and ``datasets``: what there is."""

import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from promptprism.cli.options import Json, OptionalAdapter, argument
from promptprism.cli.output import Output
from promptprism.errors import PromptPrismError


def info(adapter: OptionalAdapter = None, json_file: Json = None) -> None:
    """Show versions and devices, or what an adapter is."""
    output = Output("info", json_file)
    from promptprism.adapter import read_card
    from promptprism.cli import tables

    if adapter is not None:
        card = read_card(adapter).model_dump(mode="json")
        output.show(tables.facts(str(adapter), card_facts(card)))
        output.write(adapter=str(adapter), **card)
        return
    content = machine()
    output.show(tables.facts("promptprism", machine_facts(content)))
    output.write(**content)


def methods(
    name: Annotated[str | None, argument("METHOD", "Show the settings of one.")] = None,
    json_file: Json = None,
) -> None:
    """List the methods, or the settings of one for fit --set."""
    output = Output("methods", json_file)
    from promptprism.cli import tables

    rows = method_rows(name)
    output.show(tables.settings(rows[name]["settings"]) if name else tables.summaries(rows))
    output.write(methods=rows)


def datasets(json_file: Json = None) -> None:
    """List the registered data sets."""
    output = Output("datasets", json_file)
    from promptprism.cli import tables
    from promptprism.data.registry import registered

    rows = [
        {
            "name": entry.name,
            "summary": entry.summary,
            "classes": entry.classes,
            "images": {split: entry.images.get(split, 0) for split in ("train", "val", "test")},
        }
        for entry in registered().values()
    ]
    output.show(tables.datasets(rows))
    output.write(datasets=rows)


def card_facts(card: Mapping[str, Any]) -> dict[str, str | None]:
    """An adapter's card as a person reads it."""
    from promptprism.cli.tables import calibration, duration, percent

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
        and f"{sum(data['images'].values())} images of {data['name']}, seed {data['seed']}"
        + (f"; {data['corrections']} of them corrected" if data["corrections"] else "")
        + (f"; going on from what had been learned ({data['started_from']})" if data["started_from"] else ""),
        "training": learned,
        **{
            f"score on {name}": f"{percent(scores['cls/accuracy'])} %"
            for name, scores in card["scores"].items()
        },
        "evaluated": "\n".join(
            f"{one['data']}, {one['split']}: {percent(one['accuracy'])} % of {one['images']} images right, "
            f"calibration error {percent(one['ece'])} %, {one['date'][:10]}"
            + (f"; learned from {one['learned_from']} of them" if one["learned_from"] else "")
            for one in card["evaluations"]
        )
        or None,
        **(calibration(card["calibration"]) if card["calibration"] else {}),
    }


def method_rows(name: str | None = None) -> dict[str, dict[str, Any]]:
    """Each method, or the one, with its summary and its settings: default, paper's and meaning by name.

    Raises:
        PromptPrismError: no such method.
    """
    from promptprism.methods import METHODS, make_settings

    rows: dict[str, dict[str, Any]] = {}
    for method in METHODS if name is None else (name,):
        defaults = make_settings(method).model_dump(mode="json")
        kind = METHODS[method].Settings
        paper, fields = make_settings(method, preset="paper").model_dump(mode="json"), kind.model_fields
        rows[method] = {
            "summary": inspect.cleandoc(METHODS[method].__doc__ or "").partition("\n")[0],
            "settings": {
                key: {"default": value, "paper": paper[key], "meaning": fields[key].description}
                for key, value in defaults.items()
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
