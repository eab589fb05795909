"""Every format of a table, by name. Nothing heavy is imported: the command line lists them in its help."""

from collections.abc import Callable

from promptprism.errors import PromptPrismError
from promptprism.reports.html import Page, to_html
from promptprism.reports.render import to_csv, to_latex, to_markdown

FORMATS: dict[str, Callable[[Page], str]] = {
    "md": lambda page: to_markdown(page.table),
    "csv": lambda page: to_csv(page.table),
    "latex": lambda page: to_latex(page.table),
    "html": to_html,
}


def find_format(form: str) -> str:
    """The name of a format, if there is such.

    Raises:
        PromptPrismError: there is none.
    """
    if form not in FORMATS:
        raise PromptPrismError(f"unknown format '{form}': choose one of {', '.join(FORMATS)}")
    return form


def render(page: Page, form: str) -> str:
    """Write a table in a format; only a page shows what is beside it.

    Raises:
        PromptPrismError: no such format.
    """
    return FORMATS[find_format(form)](page)
