import matplotlib as mpl
import pytest
from made_results import result, two

from promptprism.errors import PromptPrismError, PromptPrismWarning
from promptprism.evaluation.suites import Suite
from promptprism.reports.drawing import BLUE, VERMILION, looks, new_figure, save_figure, styled
from promptprism.reports.plots import make_plot, to_svg

BASE_NEW = [
    result(method, data, seed, two(0.6 + 0.05 * place, 0.5 + 0.01 * seed))
    for place, method in enumerate(("zero-shot", "maple", "cdc")) for data in "ab" for seed in (1, 2)
    if method != "zero-shot" or seed == 1
]  # fmt: skip


@pytest.mark.slow
def test_base_new_scatter(tmp_path):
    drawing = make_plot(BASE_NEW, "base-new")
    (axes,) = drawing.axes
    points = {
        container.get_label(): (float(line.get_xdata()[0]), float(line.get_ydata()[0]))
        for container in axes.containers
        for line in container.lines[:1]
    }
    assert points["maple: HM 57.5"] == pytest.approx((65, 51.5))
    assert points["cdc: HM 59.3"] == pytest.approx((70, 51.5))
    assert to_svg(drawing) == to_svg(make_plot(BASE_NEW, "base-new"))
    for ending, start in (("svg", b"<?xml"), ("png", b"\x89PNG"), ("pdf", b"%PDF")):
        save_figure(drawing, tmp_path / f"x.{ending}")
        assert (tmp_path / f"x.{ending}").read_bytes().startswith(start)


def test_shots_curve():
    results = [
        result("cdc", data, seed, {"test": 0.5 + n / 100 + seed / 100}, "few-shot", shots=n)
        for n in (1, 4, 16) for data in "ab" for seed in (1, 2)
    ]  # fmt: skip
    results.append(result("maple", "a", 1, {"test": 0.6}, "few-shot", shots=1))
    results += [result("zero-shot", data, 1, {"test": 0.4}, "few-shot", shots=1) for data in "ab"]
    average, first, _ = make_plot(results, "shots").axes
    (curve,) = average.containers  # maple has not every data set: no point in the average
    assert list(curve.lines[0].get_xdata()) == [1, 4, 16]
    assert list(curve.lines[0].get_ydata()) == pytest.approx([52.5, 55.5, 67.5])
    assert len(first.containers) == 2 and "average of 2" in average.get_title("left")
    level = [line for line in average.lines if line.get_linestyle() == "--"]
    assert [float(line.get_ydata()[0]) for line in level] == pytest.approx([40])


def test_every_thing_has_a_look_of_its_own():
    every = list(looks(range(18)))
    assert [thing for thing, _, _ in every] == list(range(18))
    assert len({colour for _, colour, _ in every}) == 18
    assert len({(thing % 6, marker) for thing, _, marker in every}) == 18
    assert [colour for _, colour, _ in every[:2]] == [BLUE, VERMILION] and every[6][1] not in (
        BLUE,
        VERMILION,
    )


def test_letters_that_no_font_draws_are_told_of(tmp_path):
    drawing = new_figure(3, 2)
    with styled():
        drawing.text(0.5, 0.5, "rose \U000f1234")
    with pytest.warns(
        PromptPrismWarning, match="no font of this machine draws, such as \U000f1234: "
    ) as told:
        save_figure(drawing, tmp_path / "x.png")
    assert len(told) == 1 and (tmp_path / "x.png").exists()


def test_letters_are_taken_from_a_wide_font_where_there_is_one(monkeypatch):
    fonts = ["Yu Gothic", "DejaVu Sans", "Noto Sans CJK JP"]
    monkeypatch.setattr("matplotlib.font_manager.fontManager.get_font_names", lambda: fonts)
    with styled():
        assert mpl.rcParams["font.family"] == ["sans-serif", "Noto Sans CJK JP", "Yu Gothic"]


def test_no_row_is_left_out_of_a_plot():
    names = [f"row {number}" for number in range(8)]
    methods = {name: {"method": "cdc", "templates": m} for m, name in enumerate(names, start=1)}
    suite = Suite.model_validate(
        {"name": "x", "protocol": "base-to-new", "datasets": ["a"], "seeds": [1], "methods": methods}
    )
    results = [result("cdc", "a", 1, two(0.5 + m / 100, 0.5), templates=m) for m in range(1, 9)]
    drawing = make_plot(results, "base-new", suite)
    labels = [text.get_text().partition(":")[0] for text in drawing.axes[0].get_legend().get_texts()]
    assert labels == names


def test_unknown_or_empty():
    with pytest.raises(
        PromptPrismError, match="unknown plot 'x': choose one of base-new, shots, reliability"
    ):
        make_plot(BASE_NEW, "x")
    with pytest.raises(PromptPrismError, match="no results of protocol 'few-shot'"):
        make_plot(BASE_NEW, "shots")
