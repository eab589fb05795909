import csv
from dataclasses import replace

import numpy as np
import pytest
from toys import colours

from benchmarks import drift
from promptprism import PromptPrism
from promptprism.drift import Reference
from promptprism.errors import PromptPrismError

pytestmark = pytest.mark.filterwarnings("ignore:the run collapsed")


@pytest.mark.slow
def test_found_is_the_share_of_draws_that_are_called_shifted():
    even = np.linspace(0.2, 0.8, 300)
    reference = Reference.of("x", even, 1 - even)
    same = drift.rows(reference, "a", (even.tolist(), (1 - even).tolist()), 200)
    assert [row["photos"] for row in same] == [20, 50, 100, 200, 300]
    assert [row["draws"] for row in same] == [200] * 4 + [1]
    assert all(row["found"] <= 0.03 for row in same) and {row["effect"] for row in same} == {0.0}
    far = drift.rows(reference, "b", ((even - 0.6).tolist(), None), 20)
    assert {row["found"] for row in far} == {1.0} and far[0]["distance"] == pytest.approx(1, abs=0.01)
    # What moves a little is found with many photos, and not with few.
    mild = [row["found"] for row in drift.rows(reference, "c", ((even - 0.08).tolist(), None), 200)]
    assert mild[0] < 0.4 and mild[-1] == 1 and mild == sorted(mild)


@pytest.mark.slow
def test_adapter_and_data_make_a_table(tiny, tmp_path, monkeypatch):
    data = colours(train=8, test=16)
    data = replace(data, val=data.test)
    model = PromptPrism("zero-shot", tiny).fit(data)
    model.save(tmp_path / "A")
    monkeypatch.setattr(drift, "load_model", lambda place: model)
    monkeypatch.setattr(drift, "load_data", lambda name, root: data)
    drift.main(tmp_path / "A", ["toy", "DATA/toys/test"], draws=3, csv_file=tmp_path / "drift.csv")
    with (tmp_path / "drift.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["data"], row["photos"]) for row in rows] == [
        (name, photos) for name in ("toy", "toys/test") for photos in ("20", "50", "64")
    ]
    assert drift.table(rows).splitlines()[2].startswith("| A | toy | 0.0 | 0.0 | ")
    assert rows[2] | {"found": "0.0", "effect": "0.0", "reference": "64", "draws": "1"} == rows[2]
    model.reference_ = None
    with pytest.raises(PromptPrismError, match="tells of no held-out photos: fit it with fewer shots"):
        drift.main(tmp_path / "A", ["toy"])
