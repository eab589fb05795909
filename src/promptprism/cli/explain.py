"""``promptprism explain``."""

from pathlib import Path
from typing import Annotated

from promptprism.cli.options import (
    Adapter,
    AdapterSettings,
    Classes,
    Json,
    ModelOptions,
    argument,
    grouped,
    option,
)
from promptprism.cli.output import Output


@grouped
def explain(
    *,
    adapter: Adapter,
    image: Annotated[Path, argument("IMAGE", "Image file.")],
    out: Annotated[Path, option("FILE", "Picture to make: .png, .svg or .pdf.", "--out", "-o")],
    classes: Classes = None,
    settings: AdapterSettings = None,
    opening: ModelOptions,
    json_file: Json = None,
) -> None:
    """Draw what each template says of an image, and where it looks.

    Also why the answer came out, and the words nearest to what each template learned.
    """
    output = Output("explain", json_file)
    from promptprism.reports.drawing import check_figure, save_figure
    from promptprism.reports.explanation import draw_explanation

    check_figure(out)
    explanation = opening.open(adapter, settings, classes).explain(image)
    save_figure(draw_explanation(explanation), out)
    best = explanation.top[0]
    output.show(f"{image}: {best.name}, probability {best.probability:.1%}. See {out}")
    output.write(adapter=str(adapter), out=str(out), **explanation.model_dump(mode="json", by_alias=True))
