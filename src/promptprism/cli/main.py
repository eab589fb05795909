"""The command line: parse, call, print. Nothing heavy is imported before a command runs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from promptprism import __version__
from promptprism.cli.backbones import backbones
from promptprism.cli.benchmark import benchmark
from promptprism.cli.data import data_app
from promptprism.cli.demo import demo
from promptprism.cli.evaluate import evaluate
from promptprism.cli.explain import explain
from promptprism.cli.figure import figure_app
from promptprism.cli.fit import fit
from promptprism.cli.info import datasets, info, methods
from promptprism.cli.output import told_warnings
from promptprism.cli.predict import predict
from promptprism.cli.report import report
from promptprism.cli.results import results_app
from promptprism.cli.suite import suite
from promptprism.errors import PromptPrismError


class _Commands(TyperGroup):
    """Prints an error that a user is meant to read as one line, and ends with code 2."""

    def invoke(self, ctx: Any) -> Any:
        try:
            with told_warnings():
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
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback(invoke_without_command=True)
def _main(
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False,
) -> None:
    if version:
        typer.echo(__version__)
        raise typer.Exit


_PANELS: dict[str, tuple[Callable[..., None] | typer.Typer, ...]] = {
    "First steps": (demo, datasets, methods, backbones, info),
    "Your images": (fit, predict, evaluate, explain),
    "Experiments": (data_app, suite, results_app, report, figure_app, benchmark),
}
for panel, commands in _PANELS.items():
    for command in commands:
        if isinstance(command, typer.Typer):
            app.add_typer(command, rich_help_panel=panel)
        else:
            app.command(rich_help_panel=panel)(command)
