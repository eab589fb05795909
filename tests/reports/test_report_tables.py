import csv
import io
import json
import re

import pytest
from made_results import OPENAI, result, rows, two

from promptprism.errors import PromptPrismError, PromptPrismWarning
from promptprism.evaluation.metrics import harmonic_mean
from promptprism.evaluation.store import CellResult
from promptprism.evaluation.suites import Suite
from promptprism.reports.drawing import new_figure, styled
from promptprism.reports.formats import FORMATS, render
from promptprism.reports.html import Page, to_html
from promptprism.reports.render import plain, to_csv, to_latex, to_markdown
from promptprism.reports.report import make_table, write_table
from promptprism.reports.table import Line, ResultTable

SUITE = Suite.model_validate(
    {
        "name": "ablation", "protocol": "base-to-new", "datasets": ["a", "b"], "seeds": [1, 2],
        "methods": {
            "one": {"method": "cdc", "templates": 1}, "softmax": {"method": "cdc", "head": "softmax"},
            "maple": {},
        },
    }
)  # fmt: skip


def test_per_seed_rows_show_collapsed_seeds_and_no_mean_does():
    results = [
        result("cdc", "a", 1, two(0.8, 0.6)), result("cdc", "a", 2, two(0.2, 0.1), collapsed="all the same"),
        result("zero-shot", "a", 1, two(0.7, 0.7)),
    ]  # fmt: skip
    table = make_table(results, "base-to-new", per_seed=True)
    assert [row[1] for row in table.rows] == ["zero-shot", "cdc", "cdc, seed 1", "cdc, seed 2"]
    found = rows(table)
    assert found["a", "cdc"][0].mean == 0.8 and found["a", "cdc"][-1] == "seed 2 collapsed"
    first, second = found["a", "cdc, seed 1"], found["a", "cdc, seed 2"]
    assert (first[0].mean, first[1].std, first[-1]) == (0.8, None, None)
    assert (second[0].mean, second[-1]) == (0.2, "seed 2 collapsed")


def test_a_suite_says_what_belongs_to_it_what_it_is_called_and_what_is_missing():
    results = [
        result("cdc", "a", 1, two(0.6, 0.6), templates=1), result("cdc", "a", 2, two(0.7, 0.7), templates=1),
        result("maple", "a", 1, two(0.5, 0.5)), result("cdc", "a", 1, two(0.9, 0.9)),
        result("cdc", "a", 1, two(0.8, 0.8), head="softmax"),
    ]  # fmt: skip
    found = rows(make_table(results, "base-to-new", SUITE))
    assert [label for _, label in found][:3] == ["one", "softmax", "maple"]
    assert found["a", "one"][0].mean == pytest.approx(0.65) and found["a", "one"][3] == "+15.00"
    assert found["a", "softmax"][-1] == "seed 2 missing" and found["b", "maple"][-1] == "no results"
    assert found["average", "one"][-1] == "of 1 of 2 data sets"
    content = results[0].model_dump(mode="json") | {"format": 2}
    content["cell"]["settings"] = results[0].cell.settings.model_dump(
        mode="json"
    )  # all, as format 2 had them
    del content["cell"]["settings"]["fusion"]  # as if that setting were new
    old = CellResult.model_validate(content)
    assert ("a", "one") in rows(make_table([old], "base-to-new", SUITE))
    more = SUITE.model_copy(update={"methods": SUITE.methods | {"coop": {}, "kgcoop": {}}})
    with pytest.warns(PromptPrismWarning, match="'ablation' has rows without a result.*: coop, kgcoop$"):
        assert {label for _, label in rows(make_table(results, "base-to-new", more))} == {*SUITE.methods}
    other = SUITE.model_copy(update={"methods": {"coop": {}}})
    with pytest.raises(PromptPrismError, match="none of the results is a cell of suite 'ablation'"):
        make_table(results, "base-to-new", other)


def test_a_seed_that_is_there_twice_is_marked_and_the_latest_counts():
    results = [
        result("cdc", "a", 1, two(0.6, 0.6), finished="2026-02"),
        result("cdc", "a", 1, two(0.4, 0.4), finished="2026-01"),
    ]
    found = rows(make_table(results, "base-to-new"))["a", "cdc"]
    assert found[0].mean == 0.6 and found[-1] == "seed 1 there several times, the latest counts"


def test_settings_table_has_a_column_for_what_differs():
    results = [
        result("cdc", data, seed, two(0.5 + 0.1 * m, 0.5), templates=m)
        for m in (1, 2, 10) for data in "ab" for seed in (1, 2)
    ]  # fmt: skip
    table = make_table(results, "templates")
    head = ("data", "method", "templates", "base", "new", "HM", "trainable parameters")
    assert table.columns[:7] == head and [row[2] for row in table.rows] == [1, 2, 10]
    assert table.rows[0][3].mean == pytest.approx(0.6) and table.rows[0][6] == 1
    assert make_table(results, "ablation") == make_table(results, "settings") == table
    named = make_table(
        [result("cdc", "a", 1, two(0.6, 0.6), templates=1), result("maple", "a", 1, two(0.5, 0.5))],
        "ablation",
        SUITE,
    )
    assert [row[1] for row in named.rows] == ["one", "maple"]
    assert named.columns[2] == "base"  # no method is there with several settings
    with pytest.raises(PromptPrismError, match="has no rows per seed"):
        make_table(results, "settings", per_seed=True)
    with pytest.raises(PromptPrismError, match="unknown table 'x': choose one of base-to-new"):
        make_table(results, "x")


def test_study_table_sets_every_row_against_the_first_on_the_seeds_that_both_have():
    def cdc(data, seed, base, **settings):
        return result("cdc", data, seed, two(base, base), **settings)

    results = [
        *(cdc(data, 1, 0.5 + 0.2 * (data == "b"), templates=1) for data in "ab"),
        *(cdc(data, 1, 0.6 + 0.2 * (data == "b"), head="softmax") for data in "ab"),
        cdc("a", 2, 0.1, templates=1),
    ]  # fmt: skip
    table = make_table(results, "study", SUITE)
    assert table.columns[5] == "less one"
    one, softmax = (row[1:] for row in table.rows)
    assert one[0] == "one" and one[4:6] == (None, None) and one[-1] == "3 of 4"
    # Only seed 1 is common; two data sets are too few for an interval.
    assert softmax[3].mean == pytest.approx(0.7) and softmax[4:6] == ("+10.00", None)
    assert softmax[-1] == "2 of 4"
    table = make_table(results, "study", SUITE, against=softmax[0])
    assert table.columns[5] == f"less {softmax[0]}" and [row[5] for row in table.rows] == ["-10.00", None]
    with pytest.raises(PromptPrismError, match="no row 'three' to compare with"):
        make_table(results, "study", SUITE, against="three")
    three = [result("zero-shot", data, 1, two(0.5, 0.5)) for data in "abc"]
    three += [cdc(data, seed, 0.5 + 0.1 * seed) for data in "abc" for seed in (1, 2)]
    plain, ours = (row[1:] for row in make_table(three, "study").rows)
    # What learns nothing is there for every seed: +10 and +20, drawn with replacement thrice.
    assert plain[-1] == "3 of 3" and ours[4:6] == ("+15.00", "+11.67 to +18.33") and ours[-1] == "6 of 6"
    measured = [r.model_copy(deep=True) for r in results[:1]]
    measured[0].scores["new"].metrics["cal/ece"] = 0.25
    assert make_table(measured, "study").rows[0][8].mean == 0.25


def test_semantics_table_sets_each_template_against_all_together():
    def cdc(data, seed, base, new, **more):
        return result("cdc", data, seed, two(base, new), **more)

    results = [
        cdc("a", 1, 0.8, 0.6, each=(0.5, 0.7)), cdc("a", 2, 0.8, 0.6, each=(0.6, 0.5)),
        cdc("b", 1, 0.4, 0.2, each=(0.3, 0.1)), cdc("b", 2, 0.4, 0.2, each=(0.3, 0.1)),
        result("maple", "a", 1, two(0.9, 0.9), each=(0.9,)),
    ]  # fmt: skip
    table = make_table(results, "per-semantic")
    assert table.columns == ("data", "method", "part", "S1", "S2", "fused", "less best S", "note")
    found = {(row[0], row[2]): row[3:] for row in table.rows}
    s1, s2, fused, gain, note = found["a", "base"]
    assert (s1.mean, s2.mean, fused.mean) == pytest.approx((0.55, 0.6, 0.8))
    assert s1.std == pytest.approx(0.0707107, abs=1e-6) and gain == "+20.00" and note is None
    average = found["average", "new"]
    assert average[0].mean == pytest.approx((0.55 + 0.3) / 2) and average[2].mean == pytest.approx(0.4)
    assert average[0].std == pytest.approx(0.0353553, abs=1e-6)
    # A suite's table has no columns for templates that only other results have.
    more = [cdc("a", 1, 0.5, 0.5, each=(0.5,) * 8), cdc("a", 1, 0.8, 0.6, each=(0.5, 0.7), head="softmax")]
    assert make_table(more, "per-semantic", SUITE).columns[3:] == ("S1", "S2", "fused", "less best S", "note")
    with pytest.raises(PromptPrismError, match="no result has several templates"):
        make_table(results[-1:], "per-semantic")


def test_shots_are_averaged_over_data_sets_and_zero_shot_needs_none():
    few = [
        result("cdc", data, 1, {"test": value + n / 100}, "few-shot", shots=n)
        for n in (1, 2) for data, value in (("a", 0.5), ("b", 0.7))
    ]  # fmt: skip
    few += [result("zero-shot", data, 1, {"test": 0.4}, "few-shot", shots=1) for data in "ab"]
    found = rows(make_table(few, "few-shot"))
    assert [figure.mean for figure in found["average", "cdc"][:2]] == pytest.approx([0.61, 0.62])
    assert [figure.mean for figure in found["average", "zero-shot"][:2]] == pytest.approx([0.4, 0.4])
    fewer = rows(make_table(few[:3], "few-shot"))
    assert fewer["average", "cdc"][-1] == "2 shots: of 1 of 2 data sets"
    assert fewer["b", "cdc"][1:] == (None, "2 shots: no results")


def test_transfer_has_a_gain():
    parts = {"source": 0.7, "x": 0.6, "y": 0.4}
    better = {"source": 0.6, "x": 0.7, "y": 0.5}
    results = [
        result("maple", "s", 1, parts, "cross-dataset"), result("cdc", "s", 1, better, "cross-dataset"),
    ]  # fmt: skip
    found = rows(make_table(results, "cross-dataset"))
    assert found["s", "cdc"][3].mean == pytest.approx(0.6) and found["s", "cdc"][4] == "+10.00"


@pytest.mark.slow
def test_a_page_needs_nothing_else_and_json_is_plain():
    results = [result("cdc", "<a>", seed, two(0.8, 0.6), backbone=OPENAI) for seed in (1, 2)]
    results += [result("maple", "<a>", 1, two(0.7, 0.5), backbone=OPENAI)]
    table = make_table(results, "base-to-new", per_seed=True)
    page = write_table(table, "base-to-new", "html", results)
    assert "&lt;a&gt;" in page and "<a>" not in page and "80.00 ± 0.00" in page
    assert page.count("<svg") == 1 and "ViT-B-16 (eeeeeeeeeeeeeeee, float32)" in page
    assert "http://" not in page.replace("http://www.w3.org", "")
    assert re.findall('<tr class="(.*?)">', page) == ["start", "seed", "seed", "", "seed", "seed"]
    assert page.count('<td class="note">') == 6
    assert "<link" not in page and "<script" not in page and "src=" not in page
    assert [row[1] for row in table.rows][:4] == ["maple", "maple, seed 1", "maple, seed 2", "cdc"]
    assert table.rows[2][-1] == "seed 2 missing"
    content = json.loads(json.dumps(plain(table)))
    row = dict(zip(content["columns"], content["rows"][3], strict=True))
    assert row["HM"] == {"mean": pytest.approx(harmonic_mean(0.8, 0.6)), "std": 0.0}
    assert r"\num" not in render(Page(make_table(results, "settings")), "latex")


@pytest.mark.slow
def test_what_a_line_is_about_is_not_read_from_its_name():
    odd = Suite.model_validate(SUITE.model_dump() | {"methods": {"one, seed 1": {"method": "cdc"}}})
    results = [result("cdc", data, seed, two(0.8, 0.6)) for data in ("a", "b") for seed in (1, 2)]
    table = make_table(results, "base-to-new", odd, per_seed=True)
    page = write_table(table, "base-to-new", "html", results)
    assert re.findall('<tr class="(.*?)">', page) == ["start", "seed", "seed"] * 3
    assert [line.seed for line in table.lines] == [None, 1, 2] * 3
    assert [line.data for line in table.lines[::3]] == [None, "a", "b"]
    named = [row[1] for row in table.rows[:3]]
    assert named == ["one, seed 1", "one, seed 1, seed 1", "one, seed 1, seed 2"]


@pytest.mark.parametrize("form", FORMATS)
def test_every_format_shows_every_line(form):
    results = [result("cdc", "a", 1, two(0.8, 0.6)), result("maple", "a", 1, two(0.7, 0.5))]
    text = write_table(make_table(results, "base-to-new"), "base-to-new", form, results)
    assert "maple" in text and "cdc" in text and ("<html" in text) == (form == "html")


def test_hostile_names_are_text_in_every_format():
    name = '=HYPERLINK("x")\n| $x^2$ ~ \\input{/etc/passwd} <script>'
    lines = (Line(name, "-1+2", ("+1.20", "@SUM(A1)", None)),)
    table = ResultTable(("gain", "=new", "x"), lines, ("% a\n\\end{tabular}",), noted=False)
    rows = list(csv.reader(io.StringIO(to_csv(table))))
    assert rows == [["data", "method", "gain", "'=new", "x"], [f"'{name}", "'-1+2", "+1.20", "'@SUM(A1)", ""]]
    latex = to_latex(table).splitlines()
    assert latex[0] == "% % a \\end{tabular}" and len(latex) == 8
    assert r"\$x\textasciicircum{}2\$ \textasciitilde{} \textbackslash{}input\{/etc/passwd\}" in latex[5]
    markdown = to_markdown(table).splitlines()
    assert (
        len(markdown) == 5
        and markdown[2].startswith('| =HYPERLINK("x") \\| $x^2$')
        and "<" not in markdown[2]
    )
    assert "<script>" not in to_html(Page(table, name))


def test_two_dollars_are_no_formula():
    with styled():
        text = new_figure(1, 1).text(0, 0, "a $5 bill, $x^{$")
    assert not text.get_parse_math()
    text.figure.savefig(io.BytesIO(), format="svg")
