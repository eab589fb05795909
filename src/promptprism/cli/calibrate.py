"""``promptprism calibrate``."""

from typing import Annotated, Literal

import typer

from promptprism.cli.options import Adapter, Data, DataOptions, Json, ModelOptions, flag, grouped, option
from promptprism.cli.output import Output


@grouped
def calibrate(
    *,
    adapter: Adapter,
    data: Data,
    risk: Annotated[float, option("SHARE", "Wrong answers that the threshold allows.")] = 0.05,
    alpha: Annotated[float, option("SHARE", "Photos whose class may be missing in their set.")] = 0.1,
    score: Annotated[
        Literal["lac", "aps"],
        typer.Option(help="lac: small sets; aps: sets that grow where a photo is hard."),
    ] = "lac",
    per_class: Annotated[
        bool, flag("--per-class", "Keep alpha within each class; takes photos of each.")
    ] = False,
    reading: DataOptions,
    opening: ModelOptions,
    json_file: Json = None,
) -> None:
    """Learn from held-out photos how far to trust an adapter.

    Takes the test photos of DATA, or all without a test split; refused if any was learned from. Its card then
    keeps a temperature, with which predict shows probabilities; a threshold, for predict --abstain-below
    calibrated; and conformal sets, for predict --sets.
    """
    output = Output("calibrate", json_file)
    from promptprism.adapter import check_own, note
    from promptprism.cli import tables
    from promptprism.evaluation.selective import fewest_answers

    check_own(adapter)
    dataset, model = reading.open(data, output), opening.open(adapter)
    found = model.calibrate(dataset, risk=risk, alpha=alpha, score=score, per_class=per_class)
    note(adapter, found)
    content = found.model_dump(mode="json")
    output.show(tables.facts(str(adapter), tables.calibration(content)))
    if found.threshold is None:
        output.warn(
            f"no threshold is shown to keep errors at {risk:.2%}: answers are wrong too often, or {found.n} "
            f"photos are too few to show it ({fewest_answers(risk)} must be above it even if all are right). "
            "Give more photos, or a larger --risk"
        )
    output.write(adapter=str(adapter), method=model.method, **content)
