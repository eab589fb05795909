"""The command line: parse, call, print. Nothing heavy is imported before a command runs."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from typer.core import TyperGroup

from promptprism import __version__
from promptprism.cli.benchmark import benchmark
from promptprism.cli.data import data_app
from promptprism.cli.explain import explain
from promptprism.cli.figure import figure_app
from promptprism.cli.options import (
    AdapterBackbone,
    AdapterSettings,
    Classes,
    Device,
    Json,
    Pretrained,
    Root,
    open_adapter,
    parse_settings,
)
from promptprism.cli.output import Output
from promptprism.cli.results import results_app
from promptprism.cli.suite import report, suite
from promptprism.errors import PromptPrismError

if TYPE_CHECKING:
    from promptprism.data.records import Dataset


class _Commands(TyperGroup):
    """Prints an error that a user is meant to read as one line, and ends with code 2."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except PromptPrismError as error:
            typer.secho(f"error: {error}", fg="red", err=True)
            raise typer.Exit(2) from None
        except KeyboardInterrupt as stop:
            typer.secho(f"\n{stop or 'stopped'}", fg="yellow", err=True)
            raise typer.Exit(130) from None


app = typer.Typer(
    cls=_Commands,
    help="Adapt a frozen CLIP to your classes from a few labelled images, and know how sure it is.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

app.add_typer(data_app, name="data")
app.add_typer(figure_app, name="figure")
app.add_typer(results_app, name="results")
app.command()(suite)
app.command()(report)
app.command()(benchmark)
app.command()(explain)

Data = Annotated[
    str,
    typer.Argument(
        metavar="DATA",
        help="Folder with one subfolder per class (inside train/ and test/, or not), CSV of "
        "path,label[,split], a name such as mini/food or caltech101, hf:NAME, or wds:SHARDS.",
        show_default=False,
    ),
]
Adapter = Annotated[Path, typer.Argument(metavar="ADAPTER", help="Folder that fit made.", show_default=False)]
BackboneName = Annotated[
    str, typer.Option("--backbone", help="mini, an open_clip name, hf-hub:..., or local-dir:...")
]
Precision = Annotated[Literal["float32", "bfloat16"], typer.Option(help="Of the matrix products.")]
Margin = Annotated[
    float | None,
    typer.Option(
        min=0,
        help="Ask one template after the other and stop when the leading class is this far ahead, in nats.",
        show_default=False,
    ),
]
Seed = Annotated[int, typer.Option(min=0, help="Of the draw of images, start values, order and views.")]


@app.callback(invoke_without_command=True)
def _main(
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False,
) -> None:
    if version:
        typer.echo(__version__)
        raise typer.Exit


@app.command()
def fit(
    data: Data,
    out: Annotated[
        Path, typer.Option("--out", "-o", help="Folder to make for the adapter.", show_default=False)
    ],
    method: Annotated[str, typer.Option(help="cdc, maple, cocoop, coop or zero-shot.")] = "cdc",
    shots: Annotated[int, typer.Option(min=1, help="Training images drawn per class.")] = 16,
    root: Root = None,
    seed: Seed = 1,
    backbone: BackboneName = "mini",
    pretrained: Pretrained = None,
    precision: Precision = "float32",
    device: Device = "auto",
    phrase: Annotated[
        str | None, typer.Option(help="Text with {} for the class name, instead of the data's own.")
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="NAME=VALUE", help="A setting of the method; may be repeated."),
    ] = None,
    allow_fewer: Annotated[
        bool, typer.Option("--allow-fewer", help="Go on with classes short of images.")
    ] = False,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with an interrupted run.")] = False,
    json_file: Json = None,
) -> None:
    """Learn from a few labelled images per class, and save an adapter."""
    output = Output("fit", json_file)
    chosen = parse_settings(settings)
    checkpoint = _check_out(out, resume)
    from promptprism.adapter import read_card
    from promptprism.estimator import PromptPrism
    from promptprism.methods import make_settings
    from promptprism.reports import tables
    from promptprism.reports.rows import card_facts

    make_settings(method, **chosen)
    dataset = _load(data, output, root)
    if resume and not checkpoint.exists():
        output.warn(f"no '{checkpoint}' to go on from: starting from the beginning")
    model = PromptPrism(
        method,
        backbone,
        pretrained,
        precision=precision,
        device=device,
        shots=shots,
        allow_fewer=allow_fewer,
        seed=seed,
        phrase=phrase,
        progress=True,
        **chosen,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # a collapse is told below, as an error
        model.fit(dataset, checkpoint=checkpoint)
    if model.training_.collapsed:
        checkpoint.unlink(missing_ok=True)
        raise PromptPrismError(
            f"the run collapsed: {model.training_.collapsed}. Nothing was saved; try a smaller lr"
        )
    model.save(out)
    checkpoint.unlink(missing_ok=True)
    card = read_card(out).model_dump(mode="json")
    output.show(tables.facts(str(out), card_facts(card)))
    output.show(f"Next: promptprism evaluate {out} DATA, or promptprism predict {out} IMAGE...")
    output.write(adapter=str(out), skipped=len(dataset.skipped), **card)


@app.command()
def predict(
    adapter: Adapter,
    images: Annotated[
        list[Path], typer.Argument(metavar="IMAGE...", help="Image files.", show_default=False)
    ],
    templates: Annotated[
        bool, typer.Option("--templates", help="Show the opinion of each template.")
    ] = False,
    classes: Classes = None,
    settings: AdapterSettings = None,
    margin: Margin = None,
    backbone: AdapterBackbone = None,
    pretrained: Pretrained = None,
    device: Device = "auto",
    json_file: Json = None,
) -> None:
    """Name the class of images, and say how sure that is."""
    output = Output("predict", json_file)
    from promptprism.reports import tables
    from promptprism.reports.rows import prediction_rows

    model = open_adapter(adapter, backbone, pretrained, device, settings, classes)
    rows = prediction_rows(model, images, [str(image) for image in images], templates, margin)
    output.show(tables.predictions(rows))
    if margin is not None:
        output.show(f"{sum(row['templates_used'] for row in rows) / len(rows):.2f} templates per image")
    output.write(adapter=str(adapter), method=model.method, classes=len(model.classes_), predictions=rows)


@app.command()
def evaluate(
    adapter: Adapter,
    data: Data,
    data_classes: Annotated[
        bool, typer.Option("--data-classes", help="Score among the classes of DATA, also such never trained.")
    ] = False,
    settings: AdapterSettings = None,
    margin: Margin = None,
    budget: Annotated[
        float | None,
        typer.Option(
            min=1,
            help="Templates per image on average: finds the margin on validation (else training) images.",
            show_default=False,
        ),
    ] = None,
    root: Root = None,
    backbone: AdapterBackbone = None,
    pretrained: Pretrained = None,
    device: Device = "auto",
    json_file: Json = None,
) -> None:
    """Score an adapter on the test images of data, or on all where there is no test split."""
    output = Output("evaluate", json_file)
    from promptprism.reports import tables
    from promptprism.reports.rows import early_facts, early_row

    dataset = _load(data, output, root)
    model = open_adapter(adapter, backbone, pretrained, device, settings)
    if not dataset.test and model.data_:
        output.warn("no test split: all images are scored; those learned from, if any, flatter")
    if data_classes:
        model = model.with_classes(dataset.class_names)
    early = None
    if margin is not None or budget is not None:
        early = early_row(model, dataset, margin, budget)
    result = model.evaluate(dataset)
    content = result.model_dump(mode="json")
    output.show(
        f"{result.images} images of {result.data}, {result.classes} classes, "
        f"{result.images_per_second:.0f} images/s",
        tables.evaluation(content),
    )
    if early is not None:
        output.show(tables.facts("stopping early", early_facts(early)))
    output.write(
        adapter=str(adapter),
        method=model.method,
        split="test" if dataset.test else "all",
        accuracy=result.accuracy,
        early=early,
        **content,
    )


@app.command()
def demo(
    data: Annotated[str, typer.Option(help="Data set with a test split.")] = "mini/food",
    root: Root = None,
    backbone: BackboneName = "mini",
    pretrained: Pretrained = None,
    device: Device = "auto",
    seed: Seed = 1,
    json_file: Json = None,
) -> None:
    """Compare the five methods from base to new classes, and look at some opinions."""
    output = Output("demo", json_file)
    from promptprism.backbones import load_backbone
    from promptprism.cli.demo import run_demo
    from promptprism.reports import tables

    dataset = _load(data, output, root)
    frozen = load_backbone(backbone, pretrained, device=device)
    content, pictures = run_demo(dataset, frozen, seed, output.show)
    colours = output.console.color_system in {"truecolor", "256"}
    rows = content["images"]
    output.show(
        tables.methods(content["methods"]),
        tables.album(rows, pictures) if colours else tables.predictions(rows),
    )
    output.write(**content)


@app.command()
def datasets(json_file: Json = None) -> None:
    """List the registered data sets."""
    output = Output("datasets", json_file)
    from promptprism.data.registry import registered
    from promptprism.reports import tables

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


@app.command()
def methods(
    name: Annotated[
        str | None, typer.Argument(metavar="[METHOD]", help="Show the settings of one.", show_default=False)
    ] = None,
    json_file: Json = None,
) -> None:
    """List the methods, or the settings of one for fit --set."""
    output = Output("methods", json_file)
    from promptprism.reports import tables
    from promptprism.reports.rows import method_rows

    rows = method_rows(name)
    output.show(tables.settings(rows[name]["settings"]) if name else tables.summaries(rows))
    output.write(methods=rows)


@app.command()
def info(
    adapter: Annotated[
        Path | None, typer.Argument(metavar="[ADAPTER]", help="Show what an adapter is.", show_default=False)
    ] = None,
    json_file: Json = None,
) -> None:
    """Show versions, device and the shipped model; or what an adapter is."""
    output = Output("info", json_file)
    from promptprism.adapter import read_card
    from promptprism.reports import tables
    from promptprism.reports.rows import card_facts, machine, machine_facts

    if adapter is not None:
        card = read_card(adapter).model_dump(mode="json")
        output.show(tables.facts(str(adapter), card_facts(card)))
        output.write(adapter=str(adapter), **card)
        return
    content = machine()
    output.show(tables.facts("promptprism", machine_facts(content)))
    output.write(**content)


def _load(data: str, output: Output, root: Path | None = None) -> Dataset:
    from promptprism.data.registry import load_data

    dataset = load_data(data, root)
    if dataset.skipped:
        output.warn(
            f"{len(dataset.skipped)} files are left out, such as '{dataset.skipped[0]}': they are no images, "
            "or lie outside of the class folders (of train, val and test, if there are such)"
        )
    return dataset


def _check_out(out: Path, resume: bool) -> Path:
    """Refuse a place that cannot be used before anything is trained; return where the checkpoint goes."""
    from promptprism.reports.documents import check_place

    if out.exists():
        raise PromptPrismError(f"'{out}' exists: choose another folder for the adapter, or remove it first")
    checkpoint = out.with_name(f"{out.name}.checkpoint")
    if checkpoint.exists() and not resume:
        raise PromptPrismError(
            f"'{checkpoint}' is left of an unfinished run: add --resume to go on, or remove it"
        )
    check_place(out)
    return checkpoint
