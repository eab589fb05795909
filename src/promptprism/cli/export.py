"""``promptprism export``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from promptprism.cli.options import (
    Adapter,
    AdapterBackbone,
    AdapterSettings,
    Classes,
    Json,
    Pretrained,
    TrustBackbone,
    open_adapter,
)
from promptprism.cli.output import Output
from promptprism.errors import PromptPrismError


def export(
    adapter: Adapter,
    onnx: Annotated[
        Path, typer.Option("--onnx", metavar="FOLDER", help="A new folder for it.", show_default=False)
    ],
    int8: Annotated[
        bool, typer.Option("--int8", help="8-bit weights in matrix products; says what that costs.")
    ] = False,
    check: Annotated[
        str | None,
        typer.Option(
            "--check", metavar="DATA", help="Labelled images to measure --int8 on.", show_default=False
        ),
    ] = None,
    classes: Classes = None,
    settings: AdapterSettings = None,
    backbone: AdapterBackbone = None,
    pretrained: Pretrained = None,
    trust_backbone: TrustBackbone = False,
    json_file: Json = None,
) -> None:
    """Write an adapter as one ONNX graph that predicts without torch.

    The folder is what 'python -m promptprism.runtime' and 'promptprism serve' take.
    """
    output = Output("export", json_file)
    from promptprism.adapter import read_card
    from promptprism.data.registry import load_data
    from promptprism.export import export_onnx

    if check is not None and not int8:
        raise PromptPrismError("--check measures what --int8 costs: add --int8, or leave it out")
    data = None if check is None else load_data(check)
    model = open_adapter(
        adapter, backbone, pretrained, trust_backbone, "cpu", settings, classes, precision="float32"
    )
    facts = export_onnx(model.classifier_, onnx, read_card(adapter), int8=int8, check=data)
    output.show(f"{onnx}: {len(facts['class_names'])} classes, {facts['difference']:.1g} from torch at most")
    if (cost := facts["int8"]) is not None:
        output.show(f"int8: the same class for {cost['agreement']:.1%} of {cost['images']} ({cost['data']})")
        if cost["accuracy"] is not None:
            output.show(f"accuracy {cost['accuracy']:.1%}, with float32 {cost['accuracy_float32']:.1%}")
    output.write(folder=str(onnx), **{name: value for name, value in facts.items() if name != "promptprism"})
