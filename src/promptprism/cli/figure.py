"""``promptprism figure``: what the papers draw, and what interventions show, measured and drawn."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from promptprism.cli.options import Device, Json, option, parse_numbers, split_names
from promptprism.cli.output import Output, visible
from promptprism.errors import PromptPrismError

if TYPE_CHECKING:
    from promptprism.evaluation.suites import Suite

figure_app = typer.Typer(
    name="figure", help="Measure and draw misalignments and interventions.", no_args_is_help=True
)

Out = Annotated[Path, option("FILE", "Figure to make: .svg, .png or .pdf.", "--out", "-o")]
Results = Annotated[
    Path, option("FOLDER", "Folder of finished cells; a run goes on where others stopped.", "--results")
]
SuiteName = Annotated[str, option("NAME", "Suite whose methods, settings and backbone count.", "--suite")]
Datasets = Annotated[str, option("A,B,...", "MiniWorld data sets, separated by commas.", "--data")]
Methods = Annotated[str, option("A,B,...", "Rows of the suite, separated by commas.")]
Seeds = Annotated[str, option("1,2,...", "Separated by commas.")]
_DEVELOPMENT = "mini/mammals,mini/vehicles,mini/clothing"


@figure_app.command("task-misalignment")
def task(
    out: Out,
    data: Annotated[str, option("NAME", "MiniWorld data set.")] = "mini/general",
    scenes: Annotated[int, option("N", "Test scenes to look at.", min=2)] = 1000,
    backbone: Annotated[str, option("NAME", "mini, or any other of fit's.")] = "mini",
    pretrained: Annotated[str | None, option("TAG|FILE", "Tag or .safetensors file of the weights.")] = None,
    device: Device = "auto",
    json_file: Json = None,
) -> None:
    """Compare images with full and partial descriptions.

    CDC's fig. 1a.
    """
    output = Output("figure-task-misalignment", json_file)
    from promptprism.backbones import load_backbone
    from promptprism.causality.figures import draw_task_misalignment
    from promptprism.causality.misalignment import task_misalignment
    from promptprism.reports.drawing import check_figure, save_figure

    check_figure(out)
    frozen = load_backbone(backbone, pretrained, precision="float32", device=device)
    found = task_misalignment(frozen, data, scenes)
    save_figure(draw_task_misalignment(found), out)
    output.show(
        f"{scenes} scenes of {data}: {found.full_is_closest:.1%} are closest to their full description",
        *(f"  full is closer than {part}: {share:.1%}" for part, share in found.full_is_closer.items()),
        f"See {out}",
    )
    output.write(out=str(out), **found.summary())


@figure_app.command("data-misalignment")
def curves(
    out: Out,
    results: Results,
    data: Datasets = _DEVELOPMENT,
    methods: Methods = "zero-shot,coop,maple,cdc",
    epochs: Annotated[
        int | None, option("N", "Of every method that learns; else the suite's.", min=1)
    ] = None,
    seeds: Seeds = "1,2,3",
    suite: SuiteName = "mini/base-to-new",
    device: Device = "auto",
    json_file: Json = None,
) -> None:
    """Score base and new classes after every epoch of training.

    CDC's fig. 1b.
    """
    output = Output("figure-data-misalignment", json_file)
    from promptprism.backbones import load_backbone
    from promptprism.causality.figures import draw_data_misalignment, summarise_curves
    from promptprism.causality.run_curves import run_curves
    from promptprism.reports.drawing import check_figure, save_figure

    check_figure(out)
    chosen, sets = _chosen(suite, methods, seeds), split_names(data)
    backbone = load_backbone(**chosen.backbone.model_dump(), device=device)
    found, failures = run_curves(chosen, sets, epochs, results, backbone, show=_teller())
    content = summarise_curves(found)
    _stop_without(content, failures)
    collapsed = [str(one.cell) for every in found.values() for one in every if one.collapsed]
    about = f"{', '.join(sets)}; seeds {', '.join(map(str, chosen.seeds))}"
    save_figure(draw_data_misalignment(content, about), out)
    for line in content:
        output.show(
            f"{line['method']:10} epoch {line['epoch']:3} base {line['base']:.1%} new {line['new']:.1%}"
        )
    _name_collapsed(output, collapsed)
    output.show(f"See {out}")
    output.write(
        out=str(out),
        data=sets,
        seeds=list(chosen.seeds),
        settings={
            row: every[0].cell.settings.model_dump(mode="json") for row, every in found.items() if every
        },
        curves=content,
        collapsed=collapsed,
        failures=failures,
    )
    output.end(failures)


@figure_app.command()
def interventions(
    out: Out,
    results: Results,
    data: Datasets = _DEVELOPMENT,
    methods: Methods = "zero-shot,coop,maple,cdc",
    rhos: Annotated[str, option("0,0.5,...", "Of training, separated by commas.", "--rho")] = "0,0.5,0.7,0.9",
    seeds: Seeds = "1,2,3",
    scenes: Annotated[int, option("N", "Test scenes of each class to intervene on.", min=1)] = 12,
    draws: Annotated[int, option("N", "Contexts of a scene for the front-door estimate.", min=1)] = 6,
    suite: SuiteName = "mini/base-to-new",
    markdown_file: Annotated[Path | None, option("FILE", "Write the tables there.", "--markdown")] = None,
    device: Device = "auto",
    json_file: Json = None,
) -> None:
    """Set one factor of scenes to another value.

    Draws what moves, and prints tables as Markdown.
    """
    output = Output("figure-interventions", json_file)
    from promptprism.backbones import load_backbone
    from promptprism.causality.figures import draw_interventions
    from promptprism.causality.run_interventions import run_interventions
    from promptprism.causality.tables import markdown, summarise
    from promptprism.files import check_place, write_text
    from promptprism.reports.drawing import check_figure, save_figure

    check_figure(out)
    if markdown_file is not None:
        check_place(markdown_file)
    chosen = _chosen(suite, methods, seeds)
    chosen = chosen.model_copy(update={"shots": chosen.shots[:1]})
    found, failures = run_interventions(
        chosen,
        split_names(data),
        _numbers(rhos),
        results,
        load_backbone(**chosen.backbone.model_dump(), device=device),
        per_class=scenes,
        draws=draws,
        show=_teller(),
    )
    _stop_without([one for every in found.values() for one in every if not one.collapsed], failures)
    content = summarise(found)
    save_figure(draw_interventions(content), out)
    text = visible(markdown(content))
    if markdown_file is not None:
        write_text(markdown_file, text)
    if json_file != "-":
        typer.echo(text)
    _name_collapsed(output, content["collapsed"])
    output.show(f"See {out}")
    output.write(out=str(out), **content, failures=failures)
    output.end(failures)


def _chosen(suite: str, methods: str, seeds: str) -> Suite:
    from promptprism.evaluation.suites import load_suite

    return load_suite(suite).only(split_names(methods), (), parse_numbers(seeds))


def _stop_without(found: Any, failures: list[str]) -> None:
    if not found:
        raise PromptPrismError(f"there is nothing to draw: every run failed. {'; '.join(failures[:1])}")


def _name_collapsed(output: Output, collapsed: list[str]) -> None:
    for run in collapsed:
        output.warn(f"left out, as it collapsed: {run}")


def _teller() -> Callable[[str], None]:
    """Tells what is new on standard error."""
    last = ""

    def tell(text: str) -> None:
        nonlocal last
        if text != last:
            typer.echo(visible(text), err=True)
        last = text

    return tell


def _numbers(text: str) -> list[float]:
    try:
        return [float(number) for number in split_names(text)]
    except ValueError as error:
        raise PromptPrismError(f"'{text}' are no numbers: write --rho 0,0.5,0.9") from error
