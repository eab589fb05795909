"""Calibrate an adapter with held-out photos, and predict with what was found, as users call it."""

import csv
import json
import re

import numpy as np
import pytest
from called import HEAD, documented, run
from PIL import Image
from toys import picture

from promptprism import PromptPrism, PromptPrismError, load_model
from promptprism.adapter import CARD, read_card
from promptprism.data.registry import load_data

pytestmark = pytest.mark.slow

COLOURS = ("red", "green", "blue")


def words(result):
    return " ".join(result.output.split())


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with data of three colours, of which 48 photos are held out, nine with a wrong label."""
    folder = tmp_path_factory.mktemp("calibrate")
    for part, numbers in (("train", range(2)), ("test", range(2, 18))):
        for colour in COLOURS:
            (folder / "data" / part / colour).mkdir(parents=True)
            for number in numbers:
                shown = COLOURS[COLOURS.index(colour) - (2 <= number <= 4)]
                Image.fromarray(picture(shown, number)).save(folder / f"data/{part}/{colour}/{number}.png")
    PromptPrism("cdc", "mini", templates=2, epochs=1).fit(folder / "data").save(folder / "plain")
    return folder


@pytest.fixture(scope="module")
def calibrated(place):
    """The adapter after the command, and what that wrote."""
    load_model(place / "plain").save(place / "a")
    result = run("calibrate", place / "a", place / "data", "--risk", "0.4", "--json", place / "c.json")
    assert "temperature" in result.output
    return place / "a", json.loads((place / "c.json").read_text())


def test_calibrate_writes_what_it_found_into_the_card(calibrated):
    adapter, content = calibrated
    assert content.keys() == documented("calibrate") | HEAD
    kept = read_card(adapter).calibration.model_dump(mode="json")
    assert kept.items() <= content.items() and kept["n"] == 36 and kept["sets"]["n"] == 36
    assert "calibrated by" in words(run("info", adapter))
    again = load_model(adapter)
    assert again.calibration_ == read_card(adapter).calibration
    assert again.classifier_.temperature == kept["temperature"] != 1


def test_probabilities_are_at_the_temperature_and_that_is_said(place, calibrated):
    adapter, content = calibrated
    photos = [place / f"data/test/{colour}/5.png" for colour in COLOURS]
    plain, after = (
        load_model(where).predict_proba(photos).astype(float) for where in (place / "plain", adapter)
    )
    powers = plain ** (1 / content["temperature"])
    assert after == pytest.approx(powers / powers.sum(1, keepdims=True), abs=1e-5)
    result = run("predict", adapter, *photos, "--json", place / "p.json")
    assert f"temperature {content['temperature']:.2f}, by" in words(result)
    found = json.loads((place / "p.json").read_text())
    assert found["temperature"] == content["temperature"]
    assert [row["probability"] for row in found["predictions"]] == pytest.approx(after.max(1), abs=1e-5)
    run("predict", place / "plain", *photos, "--json", place / "p.json")
    assert json.loads((place / "p.json").read_text())["temperature"] is None


def test_predict_shows_the_sets_of_the_estimator(place, calibrated):
    adapter, _ = calibrated
    photos = [place / f"data/test/{colour}/7.png" for colour in COLOURS]
    model = load_model(adapter)
    within = model.predict_sets(photos)
    table = place / "sets.csv"
    for again in range(2):
        run("predict", adapter, *photos, "--sets", "--out", table, "--json", place / "p.json")
        content = json.loads((place / "p.json").read_text())
        assert content["answered_before"] == 3 * again
        for row, of in zip(content["predictions"], within, strict=True):
            assert set(row["set"]) == set(model.classes_[of]) and row["set"][0] == row["class"]
    with table.open(newline="") as lines:
        assert [set(json.loads(line["set"])) for line in csv.DictReader(lines)] == [
            set(model.classes_[of]) for of in within
        ]


def test_the_threshold_is_what_abstain_below_calibrated_takes(place, calibrated):
    adapter, content = calibrated
    run("predict", adapter, place / "data/test", "--abstain-below", "calibrated", "--json", place / "p.json")
    assert json.loads((place / "p.json").read_text())["threshold"] == content["threshold"] is not None


def test_photos_that_were_learned_from_are_refused(place):
    message = words(run("calibrate", place / "plain", place / "data/train", code=2))
    assert re.search(r"6 of 6 photos of '.*train' were learned from, first .*held out", message)
    assert read_card(place / "plain").calibration is None


def test_an_adapter_that_does_not_know_what_it_learned_from_is_refused(place, tmp_path):
    load_model(place / "plain").save(tmp_path / "old")
    card = json.loads((tmp_path / "old" / CARD).read_text())
    for field in ("calibration", "checksum"):
        del card[field]
    del card["data"]["pictures"]
    (tmp_path / "old" / CARD).write_text(json.dumps(card))
    assert load_model(tmp_path / "old").calibration_ is None
    assert "does not say which photos" in words(run("calibrate", tmp_path / "old", place / "data", code=2))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--alpha", "0.02"], "36 photos are too few for sets at alpha 0.02: it takes 49"),
        (["--alpha", "0.05", "--per-class"], "it takes 19 of each class"),
        (["--risk", "1.5"], "risk is 1.5: give a share between 0 and 1"),
        (["--alpha", "0"], "alpha is 0: give a share between 0 and 1"),
    ],
)
def test_what_cannot_be_promised_is_refused(place, arguments, said):
    assert said in words(run("calibrate", place / "plain", place / "data", *arguments, code=2))


def test_a_threshold_that_no_data_reach_is_said_and_the_rest_kept(place, tmp_path):
    load_model(place / "plain").save(tmp_path / "b")
    result = run(
        "calibrate", tmp_path / "b", place / "data", "--risk", "0.01", "--per-class", "--score", "aps"
    )
    assert "36 photos are too few to show it (459 must be above it" in words(result)
    kept = read_card(tmp_path / "b").calibration
    assert kept.threshold is None and kept.answered is None and len(kept.sets.quantiles) == 3
    result = run("predict", tmp_path / "b", place / "data/test", "--abstain-below", "calibrated", code=2)
    assert "has no calibrated threshold" in words(result)


def test_sets_hold_for_nothing_but_what_was_calibrated(place, calibrated):
    adapter, _ = calibrated
    photo = place / "data/test/red/4.png"
    assert "there are no sets" in words(run("predict", place / "plain", photo, "--sets", code=2))
    assert "there are no sets" in words(run("predict", adapter, photo, "--sets", "--classes", "a,b", code=2))
    assert "leave out the margin" in words(run("predict", adapter, photo, "--sets", "--margin", "1", code=2))
    with pytest.raises(PromptPrismError, match="there are no sets"):
        load_model(adapter).with_classes(["red", "blue"]).predict_sets(photo)


def test_calibrating_again_begins_from_the_model_as_it_was_learned(place, calibrated):
    adapter, content = calibrated
    model = load_model(adapter)
    again = model.calibrate(load_data(place / "data"), risk=0.4)
    assert again.model_dump(mode="json") == {name: content[name] for name in again.model_dump()}
    model.save(place / "saved")
    assert read_card(place / "saved").calibration == again
    assert np.array_equal(
        load_model(place / "saved").predict_sets(place / "data/test/red/4.png"),
        model.predict_sets(place / "data/test/red/4.png"),
    )


def test_answers_of_another_calibration_are_not_gone_on_with(place, calibrated, tmp_path):
    load_model(calibrated[0]).save(tmp_path / "a")
    photos, table = place / "data/test/red", tmp_path / "answers.csv"
    run("predict", tmp_path / "a", photos, "--out", table)
    before = table.read_bytes()
    assert "16 were answered before" in words(run("predict", tmp_path / "a", photos, "--out", table))
    run("calibrate", tmp_path / "a", place / "data", "--alpha", "0.2")
    said = words(run("predict", tmp_path / "a", photos, "--out", table, code=2))
    assert "holds answers of another adapter" in said and table.read_bytes() == before
