"""What several commands share: options, and the way from their texts to what they mean."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from promptprism.errors import PromptPrismError

if TYPE_CHECKING:
    from promptprism.estimator import PromptPrism

Root = Annotated[
    Path | None,
    typer.Option(
        envvar="PROMPTPRISM_DATA", help="Folder that holds the data sets' folders.", show_default=False
    ),
]
Json = Annotated[
    str | None,
    typer.Option("--json", metavar="FILE", help="Write the result as JSON; - means standard output."),
]
AdapterBackbone = Annotated[
    str | None,
    typer.Option(
        "--backbone",
        help="The adapter's backbone, such as local-dir:FOLDER, if not where its card says.",
        show_default=False,
    ),
]
Pretrained = Annotated[
    str | None, typer.Option(help="Tag or .safetensors file of the backbone's weights.", show_default=False)
]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, ...")]
Classes = Annotated[
    str | None,
    typer.Option(
        help="Names to choose among instead of those learned, separated by commas; also such never trained.",
        show_default=False,
    ),
]
AdapterSettings = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="NAME=VALUE",
        help="Another value of a setting that training does not see, such as distance_aware=true.",
        show_default=False,
    ),
]


def split_names(text: str | None) -> list[str]:
    """Names separated by commas."""
    return [name.strip() for name in (text or "").split(",") if name.strip()]


def parse_settings(pairs: Sequence[str] | None) -> dict[str, Any]:
    """NAME=VALUE, values as in JSON, or else text."""
    settings: dict[str, Any] = {}
    for pair in pairs or ():
        name, given, value = pair.partition("=")
        if not given or not name.strip() or not value.strip():
            raise PromptPrismError(f"--set '{pair}' is no setting: write NAME=VALUE, such as --set epochs=10")
        try:
            settings[name.strip()] = json.loads(value)
        except ValueError:
            settings[name.strip()] = value
    return settings


def open_adapter(
    adapter: Path,
    backbone: str | None,
    pretrained: str | None,
    device: str,
    settings: Sequence[str] | None,
    classes: str | None = None,
) -> PromptPrism:
    """Load an adapter, for other classes if there are any.

    Raises:
        PromptPrismError: see `make_settings`, `load_model` and `with_classes`.
    """
    from promptprism.adapter import read_card
    from promptprism.estimator import load_model
    from promptprism.methods import make_settings

    chosen = parse_settings(settings)
    make_settings(read_card(adapter).method, **chosen)
    model = load_model(adapter, backbone=backbone, pretrained=pretrained, device=device, **chosen)
    return model if classes is None else model.with_classes(split_names(classes))
