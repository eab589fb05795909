import csv
from statistics import stdev

import pytest
from made_results import OPENAI, result, rows, two

from promptprism.errors import PromptPrismError
from promptprism.evaluation.metrics import harmonic_mean
from promptprism.evaluation.suites import load_suite
from promptprism.reports.formats import render
from promptprism.reports.html import Page
from promptprism.reports.report import make_table
from promptprism.reports.table import Line, ResultTable


def test_base_to_new_is_averaged_as_the_field_does():
    results = [
        result("cdc", "a", 1, two(0.8, 0.6)), result("cdc", "a", 2, two(0.9, 0.5)),
        result("cdc", "b", 1, two(0.5, 0.4)), result("cdc", "b", 2, two(0.7, 0.4)),
        result("maple", "a", 1, two(0.8, 0.5)), result("maple", "a", 2, two(0.8, 0.5)),
        result("maple", "b", 1, two(0.6, 0.3)), result("maple", "b", 2, two(0.6, 0.3)),
    ]  # fmt: skip
    found = rows(make_table(results, "base-to-new"))
    base, new, hm, gain, note = found["average", "cdc"]
    assert (base.mean, new.mean) == pytest.approx((0.725, 0.475)) and note is None
    assert hm.mean == pytest.approx(harmonic_mean(0.725, 0.475))  # not the mean of 2 x 2 HMs
    by_seed = [harmonic_mean(0.65, 0.5), harmonic_mean(0.8, 0.45)]
    assert hm.std == pytest.approx(stdev(by_seed)) and base.std == pytest.approx(stdev([0.65, 0.8]))
    rival = harmonic_mean(0.7, 0.4)
    assert gain == f"{100 * (harmonic_mean(0.725, 0.475) - rival):+.2f}"
    assert (
        found["a", "maple"][2].mean == pytest.approx(harmonic_mean(0.8, 0.5))
        and found["a", "maple"][3] is None
    )


def test_a_line_has_a_value_for_each_column():
    with pytest.raises(ValueError, match=r"line 'cdc' has 1 values for .'base', 'new'."):
        ResultTable(("base", "new"), (Line("a", "cdc", (0.5,)),), ())


def test_collapsed_and_missing_seeds_are_marked_and_not_averaged():
    results = [
        result("cdc", "a", 1, two(0.8, 0.6)), result("cdc", "a", 2, two(0.1, 0.1), collapsed="so"),
        result("maple", "a", 1, two(0.8, 0.5)), result("maple", "a", 2, two(0.8, 0.5)),
        result("maple", "a", 3, two(0.8, 0.5)), result("zero-shot", "a", 1, two(0.7, 0.7)),
        result("zero-shot", "a", 3, two(0.7, 0.7)),
    ]  # fmt: skip
    found = rows(make_table(results, "base-to-new"))
    base, new, hm, _, note = found["a", "cdc"]
    assert (base.mean, new.mean, hm.std) == (0.8, 0.6, None)
    assert note == "seed 2 collapsed; seed 3 missing" and found["a", "zero-shot"][4] is None
    assert found["a", "zero-shot"][0].std is None  # seeds mean nothing to it
    fewer = [*results, result("cdc", "b", 1, two(0.9, 0.9))]
    assert "of 1 of 2 data sets" in rows(make_table(fewer, "base-to-new"))["average", "maple"][4]
    assert rows(make_table(fewer, "base-to-new"))["average", "cdc"][3] is None  # no gain over another average


def test_rows_tell_settings_apart_and_published_figures_need_their_backbone():
    results = [result("cdc", "dtd", 1, two(0.8, 0.6)), result("cdc", "dtd", 1, two(0.8, 0.7), templates=2)]
    assert {row[1] for row in make_table(results, "base-to-new").rows} == {
        "cdc",  # with the defaults
        "cdc (templates=2)",
    }
    each = [result("cdc", data, 1, two(0.8, 0.6), epochs=n, lr=0.1) for data, n in (("dtd", 2), ("pets", 3))]
    found = rows(make_table(each, "base-to-new"))
    assert found["average", "cdc (epochs by data set)"][0].mean == pytest.approx(0.8) and len(found) == 3
    more = [*each, result("cdc", "pets", 1, two(0.8, 0.6), epochs=2, lr=0.1)]
    found = rows(make_table(more, "base-to-new"))
    assert ("pets", "cdc (epochs=2)") in found and ("pets", "cdc (epochs=3)") in found
    table = make_table([result("cdc", "dtd", 1, two(0.8, 0.6), backbone=OPENAI)], "base-to-new")
    base, new, hm, *_ = rows(table)["dtd", "MaPLe (published)"]
    assert (base.mean, new.mean) == pytest.approx((0.8036, 0.5918)) and hm.mean == pytest.approx(
        0.6816, abs=1e-4
    )
    assert any("not re-run" in note for note in table.notes)
    assert not any("published" in str(row[1]) for row in make_table(results, "base-to-new").rows)


def test_versions_of_a_method_and_what_learns_nothing_are_rows_of_their_own():
    one, two_ = (result("cdc", "a", seed, two(0.8, 0.6)) for seed in (1, 2))
    newer = one.model_copy(update={"key": "n", "cell": one.cell.model_copy(update={"version": 3})})
    assert {row[1] for row in make_table([one, newer], "base-to-new").rows} == {
        "cdc (version=2)", "cdc (version=3)"
    }  # fmt: skip
    found = rows(make_table([one, two_, result("cdc", "a", 1, two(0.7, 0.7), epochs=0)], "base-to-new"))
    assert found["a", "cdc (epochs=0)"][-1] is None  # no seed is missing, whatever its method does elsewhere


def test_transfer_and_few_shot():
    parts = {"source": 0.7, "imagenetv2": 0.6, "imagenet_sketch": 0.4, "imagenet_a": 0.5, "imagenet_r": 0.7}
    table = make_table([result("cdc", "imagenet", 1, parts, "cross-domain", OPENAI)], "cross-domain")
    assert table.columns[2:] == (*parts, "average", "gain", "note")
    assert rows(table)["imagenet", "cdc"][-3].mean == pytest.approx(0.55)
    assert rows(table)["imagenet", "MaPLe (published)"][-3].mean == pytest.approx(0.60275)
    few = [
        result("cdc", "a", s, {"test": 0.1 * n + 0.01 * s}, "few-shot", shots=n)
        for n in (1, 2)
        for s in (1, 2)
    ]
    table = make_table(few, "few-shot")
    assert table.columns == ("data", "method", "1 shots", "2 shots", "note")
    assert [figure.mean for figure in rows(table)["a", "cdc"][:2]] == pytest.approx([0.115, 0.215])
    with pytest.raises(
        PromptPrismError, match="no results of protocol 'base-to-new': there are those of few-shot"
    ):
        make_table(few, "base-to-new")


def test_rows_of_a_suite_may_have_any_name_and_be_equal(tmp_path):
    suite = tmp_path / "s.yaml"
    suite.write_text(
        "protocol: base-to-new\nmethods:\n  cdc (mine): {method: cdc}\n  again: {method: cdc, templates: 4}\n"
        "  zero-shot: {}\ndatasets: [mini/food]\nseeds: [1]\n"
    )
    results = [
        result("cdc", "mini/food", 1, two(0.8, 0.6)),
        result("zero-shot", "mini/food", 1, two(0.7, 0.7)),
    ]
    table = make_table(results, "base-to-new", load_suite(str(suite)))
    assert [row[1] for row in table.rows if row[0] == "mini/food"] == ["cdc (mine)", "again", "zero-shot"]
    assert rows(table)["mini/food", "cdc (mine)"][:3] == rows(table)["mini/food", "again"][:3]


def test_formats():
    table = make_table([result("cdc", "a_b", s, two(0.8, 0.1 * s)) for s in (1, 2)], "base-to-new")
    assert "| a_b | cdc | 80.00 ± 0.00 | 15.00 ± 7.07 | 25.26 ± " in render(Page(table), "md")
    latex = render(Page(table), "latex")
    assert r"a\_b & cdc & $80.00 \pm 0.00$" in latex and latex.count(r"\\") == 2
    read = list(csv.DictReader(render(Page(table), "csv").splitlines()))
    assert float(read[0]["new"]) == pytest.approx(15) and float(read[0]["new std"]) == pytest.approx(
        7.0710678
    )
    with pytest.raises(PromptPrismError, match="unknown format"):
        render(Page(table), "doc")
