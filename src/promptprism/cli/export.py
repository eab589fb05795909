"""``promptprism export``."""

from pathlib import Path
from typing import Annotated

from promptprism.cli.options import Adapter, AdapterSettings, Classes, Json, ModelOnCpu, flag, grouped, option
from promptprism.cli.output import Output
from promptprism.errors import PromptPrismError


@grouped
def export(
    *,
    adapter: Adapter,
    onnx: Annotated[Path, option("FOLDER", "A new folder for it.", "--onnx")],
    int8: Annotated[bool, flag("--int8", "8-bit weights in matrix products; says what that costs.")] = False,
    check: Annotated[str | None, option("DATA", "Labelled images to measure --int8 on.", "--check")] = None,
    classes: Classes = None,
    settings: AdapterSettings = None,
    opening: ModelOnCpu,
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
    model = opening.open(adapter, settings, classes, precision="float32")
    facts = export_onnx(model.classifier_, onnx, read_card(adapter), int8=int8, check=data)
    output.show(f"{onnx}: {len(facts['class_names'])} classes, {facts['difference']:.1g} from torch at most")
    if (cost := facts["int8"]) is not None:
        output.show(f"int8: the same class for {cost['agreement']:.1%} of {cost['images']} ({cost['data']})")
        if cost["accuracy"] is not None:
            output.show(f"accuracy {cost['accuracy']:.1%}, with float32 {cost['accuracy_float32']:.1%}")
    output.write(folder=str(onnx), **{name: value for name, value in facts.items() if name != "promptprism"})
