"""The command line: parse, call, print. Nothing heavy is imported before a command runs."""

import errno
import inspect
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from promptprism import __version__
from promptprism.cli.backbones import backbones
from promptprism.cli.benchmark import benchmark
from promptprism.cli.calibrate import calibrate
from promptprism.cli.data import data_app
from promptprism.cli.demo import demo
from promptprism.cli.drift import drift
from promptprism.cli.evaluate import evaluate
from promptprism.cli.explain import explain
from promptprism.cli.export import export
from promptprism.cli.figure import figure_app
from promptprism.cli.fit import fit
from promptprism.cli.info import datasets, info, methods
from promptprism.cli.options import flag
from promptprism.cli.output import tell, told_warnings
from promptprism.cli.predict import predict
from promptprism.cli.push import push
from promptprism.cli.report import report
from promptprism.cli.results import results_app
from promptprism.cli.review import review
from promptprism.cli.serve import serve
from promptprism.cli.suggest import suggest
from promptprism.cli.suite import suite
from promptprism.errors import PromptPrismError

_ISSUES = "https://github.com/promptprism/promptprism/issues"
# Typer brings its own Click from some version on; this is whichever it raises.
_UsageError: type[Exception] = next(
    kind for kind in typer.BadParameter.__mro__ if kind.__name__ == "ClickException"
)


class _Commands(TyperGroup):
    """Prints an error that a user is meant to read as one line (code 2); what is left is a bug."""

    def invoke(self, ctx: Any) -> Any:
        stopped = signal.SIGINT

        def stop(number: int, frame: FrameType | None) -> None:  # noqa: ARG001
            nonlocal stopped
            stopped = signal.Signals(number)
            raise KeyboardInterrupt

        try:
            with _stopping(stop), told_warnings():
                return super().invoke(ctx)
        except PromptPrismError as error:
            if _traced():
                raise
            tell(f"error: {error}", "red")
            raise typer.Exit(2) from None
        except KeyboardInterrupt as reason:
            tell(str(reason) or "stopped", "yellow")
            raise typer.Exit(128 + stopped) from None
        except (typer.Exit, typer.Abort):
            raise
        except _UsageError as error:
            raise _with_settings(error) from None
        except Exception as error:
            if isinstance(error, OSError) and error.errno == errno.EPIPE:
                raise  # who read the output has heard enough
            if _traced():
                raise
            tell(_bug(error), "red")
            raise typer.Exit(70) from None


def _with_settings(error: Any) -> Exception:
    """The error of an unknown option; says how to set what is none, but a setting of a method."""
    name = getattr(error, "option_name", "").lstrip("-").replace("-", "_")
    command = getattr(error.ctx, "command", None)
    if name and command and any("--set" in one.opts for one in command.params):
        from promptprism.methods import METHODS

        if any(name in METHODS[method].Settings.model_fields for method in METHODS):
            error.possibilities = [f"--set {name}=VALUE"]
    known: Exception = error
    return known


@contextmanager
def _stopping(stop: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    """End on SIGTERM and SIGHUP as on Ctrl-C: what is kept is said. What ignores them (nohup) goes on so."""
    before = {}
    if threading.current_thread() is threading.main_thread():
        for name in ("SIGTERM", "SIGHUP"):
            number = getattr(signal, name, None)
            if number is not None and signal.getsignal(number) is signal.SIG_DFL:
                before[number] = signal.signal(number, stop)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _traced() -> bool:
    """Whether errors are asked for with their traceback."""
    return os.environ.get("PROMPTPRISM_TRACEBACK", "0") not in ("", "0")


def _bug(error: Exception) -> str:
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        what = f" ({' '.join(str(error).split())[:300]})" if str(error) else ""
        return f"error: there is not enough memory{what}: take smaller numbers, or fewer images at once"
    what = " ".join(f"{type(error).__name__}: {error}".split())[:300]
    return (
        f"error: {what}. This is a bug in promptprism {__version__}: please report it at {_ISSUES}, with the "
        "command and what it says with PROMPTPRISM_TRACEBACK=1"
    )


app = typer.Typer(
    cls=_Commands,
    help="Adapt a frozen CLIP to your classes from a few labelled images, and know how sure it is.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback(invoke_without_command=True)
def _main(version: Annotated[bool, flag("--version", "Print the version and exit.")] = False) -> None:
    if version:
        typer.echo(__version__)
        raise typer.Exit


def _flowing(command: Callable[..., None]) -> str:
    """A command's docstring with each paragraph in one line: Typer would keep the source's line ends."""
    paragraphs = inspect.cleandoc(command.__doc__ or "").split("\n\n")
    return "\n\n".join(" ".join(paragraph.split()) for paragraph in paragraphs)


_PANELS: dict[str, tuple[Callable[..., None] | typer.Typer, ...]] = {
    "First steps": (demo, datasets, methods, backbones, info),
    "Your images": (fit, predict, review, suggest, evaluate, calibrate, explain),
    "Out of the notebook": (export, serve, drift, push),
    "Experiments": (data_app, suite, results_app, report, figure_app, benchmark),
}
for panel, commands in _PANELS.items():
    for command in commands:
        if isinstance(command, typer.Typer):
            app.add_typer(command, rich_help_panel=panel)
        else:
            app.command(help=_flowing(command), rich_help_panel=panel)(command)
