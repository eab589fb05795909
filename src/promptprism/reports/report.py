"""Every table by name."""

from collections.abc import Callable, Sequence

from promptprism.errors import PromptPrismError
from promptprism.evaluation.protocols import PROTOCOLS
from promptprism.evaluation.store import CellResult
from promptprism.evaluation.suites import Suite
from promptprism.reports.formats import render
from promptprism.reports.html import Page
from promptprism.reports.plots import PLOTS_OF, make_plot, to_svg
from promptprism.reports.protocols import protocol_table
from promptprism.reports.settings import semantics_table, settings_table, study_table
from promptprism.reports.table import ResultTable
from promptprism.reports.trust import make_trust_table

_Maker = Callable[[Sequence[CellResult], Suite | None], ResultTable]
_OTHERS: dict[str, _Maker] = {
    "trust": make_trust_table,
    "per-semantic": semantics_table,
    # The paper has a table of each; here one that shows whichever settings differ.
    **dict.fromkeys(("settings", "ablation", "templates", "augmentation"), settings_table),
}
TABLES = (*PROTOCOLS, *_OTHERS, "study")


def make_table(
    results: Sequence[CellResult],
    name: str,
    suite: Suite | None = None,
    per_seed: bool = False,
    against: str | None = None,
) -> ResultTable:
    """Make a table by name.

    Args:
        results: to make it of.
        name: one of `TABLES`.
        suite: take its cells only, and call the rows as it does.
        per_seed: show the rows of each seed too; tables of protocols only.
        against: the row that gains and intervals are against, as the table calls it; tables with gains only.

    Raises:
        PromptPrismError: no such table or row, or no results for it.
    """
    if name in PROTOCOLS:
        return protocol_table(results, name, suite, per_seed, against)
    if name not in TABLES:
        raise PromptPrismError(f"unknown table '{name}': choose one of {', '.join(TABLES)}")
    if per_seed:
        raise PromptPrismError(f"table '{name}' has no rows per seed: those of protocols have")
    if name == "study":
        return study_table(results, suite, against)
    if against is not None:
        raise PromptPrismError(f"table '{name}' has no gains: leave out against (--against)")
    return _OTHERS[name](results, suite)


def write_table(
    table: ResultTable, name: str, form: str, results: Sequence[CellResult], suite: Suite | None = None
) -> str:
    """Write a table in a format; a page shows plots too, and what it was made of.

    Raises:
        PromptPrismError: no such format.
    """
    used = [result for result in results if result.cell.protocol == name] or results

    def plots() -> list[str]:
        return [to_svg(make_plot(results, plot, suite)) for plot in PLOTS_OF.get(name, ())]

    return render(Page(table, f"{name}: {len(used)} results", plots, used), form)
