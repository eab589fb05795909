import pytest

from promptprism.causality.figures import draw_data_misalignment, draw_interventions
from promptprism.causality.front_door import Estimate
from promptprism.causality.interventions import CONTROL, FACTORS, Moved
from promptprism.causality.run_interventions import Interventions
from promptprism.causality.tables import detail_rho, markdown, summarise
from promptprism.evaluation.suites import Cell
from promptprism.provenance import BackboneFacts, Cost


def made(data, seed, rho, flips, templates=2, collapsed=None):
    """A measurement in which everyone flips with this share, S1 half as often."""
    who = {"fused": flips} | (
        {f"S{m}": flips * m / 2 for m in range(1, templates + 1)} if templates > 1 else {}
    )
    everything = (*FACTORS, CONTROL)
    cell = Cell(protocol="few-shot", method="cdc", settings={}, data=f"{data}@{rho:g}", shots=16, seed=seed)
    return Interventions(
        cell=cell,
        backbone=BackboneFacts(name="tiny", pretrained=None, fingerprint="0", precision="float32"),
        rho=rho,
        collapsed=collapsed,
        images=10,
        draws=2,
        accuracy=dict.fromkeys(who, 0.8),
        moved={
            factor: {name: Moved(flips=share, total_variation=share / 2) for name, share in who.items()}
            for factor in everything
        },
        pull=dict.fromkeys(who, 0.1),
        probes=dict.fromkeys(("object", *FACTORS), (0.5,) * templates),
        chance=dict.fromkeys(("object", *FACTORS), 0.25),
        variance=dict.fromkeys(("object", *FACTORS), (0.125,) * templates),
        front_door={
            way: Estimate(accuracy=0.7, ece=0.1, nll=1.5, distance=0.2, agreement=0.9)
            for way in ("fused", "mixture", "fused, adjusted", "front-door", "index only")
        },
        cost=Cost(seconds=1, peak_memory_mb=1, device="cpu", threads=1, versions={}),
    )


def test_the_deviation_is_over_seeds_of_means_over_data():
    runs = [made("a", 1, 0.5, 0.1), made("b", 1, 0.5, 0.3), made("a", 2, 0.5, 0.5), made("b", 2, 0.5, 0.3)]
    content = summarise({"cdc": [*runs, made("a", 3, 0.5, 0.9, collapsed="all is fox")]})
    assert (content["cells"], content["seeds"], content["data"]) == (4, [1, 2], ["a", "b"])
    assert len(content["collapsed"]) == 1
    fused, first, second = content["predictions"]
    assert [row["who"] for row in content["predictions"]] == ["fused", "S1", "S2"]
    assert fused["colour flips"] == pytest.approx(0.3) and fused["colour variation"] == pytest.approx(0.15)
    assert fused["colour flips_std"] == pytest.approx((0.4 - 0.2) / 2**0.5)
    assert first["colour flips"] == pytest.approx(fused["colour flips"] / 2)
    assert second["colour flips"] == pytest.approx(fused["colour flips"])
    assert "Left out, as they collapsed: cdc on a@0.5" in markdown(content)


@pytest.mark.slow
def test_tables_and_figure():
    runs = [made("a", 1, rho, rho / 2) for rho in (0.0, 0.7, 0.9)]
    one = [made("a", 1, rho, rho, templates=1) for rho in (0.0, 0.7, 0.9)]
    content = summarise({"maple": one, "cdc": runs})
    assert detail_rho(content) == 0.7
    text = markdown(content)
    assert "| maple | 0.9 | 80.0 | 90.0 | 90.0 | 90.0 | 90.0 | 90.0 |" in text
    assert "| cdc | S1 | 80.0 | 10.0 | 17.5 |" in text
    assert (
        "| maple | S1 | 50.0 | 50.0 | 50.0 | 50.0 | 50.0 |" in text and "Chance: object 25, colour 25" in text
    )
    assert "| cdc | 0 | mixture | 70.0 | 10.0 | 1.50 | 20.0 | 90.0 |" in text
    assert "| maple | 0 | mixture |" not in text  # one template has nothing to mix
    draw_interventions(content)
    draw_interventions(summarise({"maple": one}))


@pytest.mark.slow
def test_no_method_is_left_out_of_the_figure():
    names = [f"method {number}" for number in range(8)]
    found = {name: [made("a", 1, rho, rho, templates=1) for rho in (0.0, 0.9)] for name in names}
    drawing = draw_interventions(summarise(found))
    (legend,) = [axes.get_legend() for axes in drawing.get_axes() if axes.get_legend()]
    assert [text.get_text() for text in legend.get_texts()] == names
    curves = [{"method": name, "epoch": epoch, "base": 0.5, "new": 0.5, "base_std": None, "new_std": None}
              for name in names for epoch in (0, 1)]  # fmt: skip
    drawing = draw_data_misalignment(curves, "a; seed 1")
    for axes in drawing.get_axes():
        assert len({line.get_color() for line in axes.get_lines()}) == 8
    (legend,) = drawing.legends
    assert [text.get_text() for text in legend.get_texts()] == names
