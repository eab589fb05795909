"""Gains and intervals against a row that is named, worked out by hand."""

import re

import pytest
from made_results import OPENAI, result, rows, two
from typer.testing import CliRunner

from promptprism.cli import app
from promptprism.errors import PromptPrismError
from promptprism.evaluation.metrics import harmonic_mean
from promptprism.reports.report import make_table

RESULTS = [
    result(method, data, seed, two(base, base), **settings)
    for method, base, settings in (
        ("coop", 0.60, {}), ("maple", 0.64, {}), ("cdc", 0.70, {}), ("cdc", 0.72, {"templates": 2}),
    )
    for data in "abc" for seed in (1, 2)
]  # fmt: skip


def gains(table, data="average"):
    return {label: values[3] for (name, label), values in rows(table).items() if name == data}


@pytest.mark.slow
def test_gain_is_over_the_row_that_is_named():
    plain = make_table(RESULTS, "base-to-new")
    assert gains(plain) == {"coop": None, "maple": None, "cdc": "+6.00", "cdc (templates=2)": "+8.00"}
    against = make_table(RESULTS, "base-to-new", against="coop")
    expected = {"coop": None, "maple": "+4.00", "cdc": "+10.00", "cdc (templates=2)": "+12.00"}
    assert gains(against) == expected and gains(against, "b") == expected
    assert "gain: HM less that of coop" in " ".join(against.notes)
    ours = make_table(RESULTS, "base-to-new", against="cdc (templates=2)")
    assert gains(ours)["maple"] == "-8.00" and gains(ours)["cdc"] == "-2.00"


def test_intervals_are_of_all_others_against_it():
    def compared(table):
        return [note.split(" in HM")[0] for note in table.notes if "95 % interval" in note]

    assert compared(make_table(RESULTS, "base-to-new")) == [
        "cdc less maple", "cdc (templates=2) less maple", "cdc (templates=2) less cdc",
    ]  # fmt: skip
    table = make_table(RESULTS, "base-to-new", against="coop")
    assert compared(table) == ["maple less coop", "cdc less coop", "cdc (templates=2) less coop"]
    (note,) = [note for note in table.notes if note.startswith("maple less coop")]
    # All seeds and data sets alike: there is nothing to doubt.
    assert note.startswith("maple less coop in HM: +4.00, 95 % interval +4.00 to +4.00")


def test_all_that_is_no_gain_or_interval_stays_as_it_is():
    plain, against = (make_table(RESULTS, "base-to-new", against=row) for row in (None, "coop"))
    assert [row[:5] + row[6:] for row in plain.rows] == [row[:5] + row[6:] for row in against.rows]
    assert plain.columns == against.columns


def test_an_average_over_fewer_data_sets_is_no_rival():
    fewer = [one for one in RESULTS if one.cell.method != "coop" or one.cell.data != "c"]
    assert set(gains(make_table(fewer, "base-to-new", against="coop")).values()) == {None}
    assert gains(make_table(fewer, "base-to-new", against="coop"), "a")["maple"] == "+4.00"
    assert gains(make_table(fewer, "base-to-new", against="maple"))["cdc"] == "+6.00"
    assert gains(make_table(fewer, "base-to-new", against="maple"))["coop"] is None


def test_published_rows_can_be_compared_with():
    results = [result("cdc", "dtd", seed, two(0.8, 0.6), backbone=OPENAI) for seed in (1, 2)]
    table = rows(make_table(results, "base-to-new"))
    theirs = next(label for _, label in table if label not in ("cdc",))
    figure = rows(make_table(results, "base-to-new", against=theirs))["dtd", "cdc"][3]
    expected = 100 * (harmonic_mean(0.8, 0.6) - table["dtd", theirs][2].mean)
    assert float(figure) == pytest.approx(expected, abs=0.006)


def test_gains_of_transfer_and_of_seeds():
    parts = {"source": 0.7, "t": 0.5}
    results = [
        result(method, "imagenet", seed, {**parts, "t": 0.5 + gain + 0.01 * seed}, "cross-dataset")
        for method, gain in (("coop", 0.0), ("maple", 0.1), ("cdc", 0.2)) for seed in (1, 2)
    ]  # fmt: skip
    found = rows(make_table(results, "cross-dataset", against="coop"))
    assert [found["imagenet", label][3] for label in ("coop", "maple", "cdc")] == [None, "+10.00", "+20.00"]
    each = rows(make_table(results, "cross-dataset", per_seed=True, against="maple"))
    assert each["imagenet", "cdc, seed 2"][3] == "+10.00" and each["imagenet", "coop, seed 1"][3] == "-10.00"


@pytest.mark.parametrize(
    ("table", "row", "said"),
    [
        ("base-to-new", "map", "no row 'map' to compare with .* such as 'maple'$"),
        ("base-to-new", "xyz", "such as 'coop', 'maple', 'cdc', 'cdc .templates=2.'$"),
        ("trust", "maple", "table 'trust' has no gains: leave out against"),
        ("few-shot", "maple", "table 'few-shot' has no gains"),
    ],
)
def test_rows_that_are_not_there_and_tables_without_gains(table, row, said):
    results = [*RESULTS, result("cdc", "a", 1, {"test": 0.5}, "few-shot")]
    with pytest.raises(PromptPrismError, match=said):
        make_table(results, table, against=row)


def test_a_name_that_two_rows_have_names_both():
    named = [result("cdc", data, 1, two(0.7, 0.7), templates=m) for data in "abc" for m in (1, 2)]
    with pytest.raises(PromptPrismError, match=r"such as 'cdc .templates=1.', 'cdc .templates=2.'"):
        make_table(named, "base-to-new", against="cdc")


@pytest.mark.slow
def test_report_against_by_the_command_line(tmp_path):
    store = tmp_path / "results.jsonl"
    store.write_text("".join(one.model_dump_json() + "\n" for one in RESULTS))
    made = CliRunner().invoke(app, ["report", str(store), "--table", "base-to-new", "--against", "coop"])
    assert made.exit_code == 0, made.output
    assert re.search(r"\| average \| maple .*\+4\.00", made.stdout)
    wrong = CliRunner().invoke(app, ["report", str(store), "--table", "base-to-new", "--against", "cop"])
    assert wrong.exit_code == 2 and "such as 'coop'" in " ".join(wrong.stderr.split())
