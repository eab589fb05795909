from statistics import stdev

import matplotlib.colors
import numpy as np
import pytest
from made_results import COST, result

from promptprism.errors import PromptPrismError
from promptprism.evaluation.calibration import Reliability
from promptprism.evaluation.evaluate import Evaluation
from promptprism.evaluation.suites import Suite
from promptprism.reports.drawing import BLUE
from promptprism.reports.plots_trust import reliability_diagram, risk_coverage
from promptprism.reports.trust import make_trust_table


def scored(own=True, bins=((5, 0.2, 0.4), (0, None, None), (15, 0.9, 0.8)), **metrics):
    curves = {"max_prob": (0.0, 0.1), "uncertainty": (0.1, 0.3)}
    count, confidence, accuracy = zip(*bins, strict=True)
    return Evaluation(
        data="d", classes=2, images=20, metrics={"cls/accuracy": 0.7, "cal/ece": 0.125} | metrics,
        templates=(), class_accuracy={},
        reliability=Reliability(count=count, confidence=confidence, accuracy=accuracy),
        risk_coverage=curves if own else {"max_prob": curves["max_prob"]}, images_per_second=1.0, cost=COST,
    )  # fmt: skip


def made(method, data, seed, scores, **more):
    accuracies = {part: score.accuracy for part, score in scores.items()}
    return result(method, data, seed, accuracies, **more).model_copy(update={"scores": scores})


def base_new(own=True, **metrics):
    return {"base": scored(own), "new": scored(own, **metrics)}


def rows(table):
    return {row[1:3]: dict(zip(table.columns, row, strict=True)) for row in table.rows}


def test_figures_are_averaged_over_data_sets_within_each_seed():
    def cell(data, seed, ece, nll, **more):
        return made("cdc", data, seed, base_new(**{"cal/ece_dac": ece, "cal/nll": nll} | more))

    found = rows(
        make_trust_table(
            [
                cell("a", 1, 0.1, 1.0, **{"ood/auroc_uncertainty": 0.8}),
                cell("a", 2, 0.2, 1.5),
                cell("b", 1, 0.3, 2.0, **{"ood/auroc_uncertainty": 0.6}),
                cell("b", 2, 0.6, 2.1),
                made("maple", "a", 1, base_new(False)),
            ]
        )
    )
    assert list(found) == [("maple", "base"), ("maple", "new"), ("cdc", "base"), ("cdc", "new")]
    new = found["cdc", "new"]
    assert new["data"] == "average" and new["note"] is None
    assert new["ECE, DAC"].mean == pytest.approx(0.3) and new["ECE, DAC"].std == pytest.approx(
        stdev([0.2, 0.4])
    )
    assert new["NLL"] == f"1.650 ± {stdev([1.5, 1.8]):.3f}"
    assert new["other by own"].mean == pytest.approx(0.7) and new["other by own"].std is None
    assert found["cdc", "base"]["ECE, DAC"] is None and found["maple", "new"]["wrong by own"] is None
    assert found["maple", "new"]["ECE"].mean == pytest.approx(0.125)
    assert found["maple", "new"]["note"] == "a: seed 2 missing; b: no results"


def test_collapsed_seeds_are_left_out_and_few_shot_takes_the_most():
    good, bad = base_new(**{"sc/aurc": 0.2}), base_new(**{"sc/aurc": 0.9})
    found = rows(make_trust_table([made("cdc", "a", 1, good), made("cdc", "a", 2, bad, collapsed="so")]))
    assert found["cdc", "new"]["AURC"].mean == 0.2 and found["cdc", "new"]["note"] == "a: seed 2 collapsed"
    shots = [
        made("cdc", "a", 1, {"test": scored(**{"sc/aurc": 0.1 * n})}, protocol="few-shot", shots=n)
        for n in (1, 4, 2)
    ]
    table = make_trust_table(shots)
    assert rows(table)["cdc", "test"]["AURC"].mean == pytest.approx(0.4) and "4 shots" in table.notes[0]
    with pytest.raises(PromptPrismError, match="no results"):
        make_trust_table([])


def test_a_suite_says_which_protocol_is_told():
    suite = Suite(name="s", protocol="few-shot", methods={"zero-shot": {}}, datasets=("a",), shots=(4,))
    shown = made("zero-shot", "a", 1, {"test": scored()}, protocol="few-shot", shots=4)
    both = [made("zero-shot", "a", 1, base_new()), shown]
    assert {row[2] for row in make_trust_table(both).rows} == {"base", "new"}
    assert {row[2] for row in make_trust_table(both, suite).rows} == {"test"}


def test_reliability_pools_the_images():
    two = {"new": scored(bins=((10, 0.3, 0.4), (5, 0.6, 0.6), (5, 1.0, 0.0))), "base": scored()}
    results = [made("cdc", "a", 1, base_new()), made("cdc", "a", 2, two), made("maple", "a", 1, base_new())]
    drawing = reliability_diagram(results)
    assert len(drawing.axes) == 4
    titles = [axes.get_title("left") for axes in drawing.axes]
    assert titles[0] == "maple, base: ECE 12.5 %" and titles[3] == "cdc, new: ECE 12.5 %"
    line = next(line for line in drawing.axes[3].lines if matplotlib.colors.to_hex(line.get_color()) == BLUE)
    assert np.allclose(line.get_xydata(), [[4 / 15, 0.4], [0.6, 0.6], [18.5 / 20, 0.6]])
    maple = drawing.axes[2].lines[-1].get_xydata()
    assert np.allclose(maple, [[0.2, 0.4], [0.9, 0.8]])  # the empty bin is not drawn


def test_risk_coverage_shows_own_uncertainty_where_there_is_one():
    drawing = risk_coverage([made("cdc", "a", 1, base_new()), made("maple", "a", 1, base_new(False))])
    base, new = drawing.axes
    assert (base.get_title("left"), new.get_title("left")) == ("base", "new")
    curves = {line.get_label(): line.get_xydata().tolist() for line in new.lines}
    assert curves["cdc"] == [[50, 0], [100, 10]] and curves["cdc, own uncertainty"] == [[50, 10], [100, 30]]
    assert "maple" in curves and "maple, own uncertainty" not in curves
