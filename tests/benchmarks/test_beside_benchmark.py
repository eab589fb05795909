import math

import pytest
from toys import colours

from benchmarks import beside
from promptprism.data.splits import base_new, few_shot, told_among_all
from promptprism.evaluation.protocols import score
from promptprism.methods import learner, make_settings
from promptprism.training.loop import learn

pytestmark = pytest.mark.filterwarnings("ignore:the run collapsed")  # random weights see little


@pytest.fixture
def trained(tiny):
    base, _ = base_new(colours())
    settings = make_settings("cdc", templates=2, epochs=1, class_offsets=True)
    return learn(settings, tiny, base.label_space, few_shot(base.train, 2, 1), seed=1)


@pytest.mark.slow
def test_a_pair_of_constants_scores_as_evaluation_does_with_them(trained, monkeypatch):
    parts = dict(zip(("base", "new"), told_among_all(colours()), strict=True))
    before = learner.OWN, learner.RIDGE
    rows = beside.grid(trained, {name: (part.test, part.label_space) for name, part in parts.items()})
    assert before == (learner.OWN, learner.RIDGE)
    assert [(row["own"], row["ridge"]) for row in rows] == [(a, b) for a in beside.OWN for b in beside.RIDGE]
    for own, ridge in ((0.4, 0.5), (0.7, 5.0), (1.0, math.inf)):
        monkeypatch.setattr(learner, "OWN", own)
        monkeypatch.setattr(learner, "RIDGE", min(ridge, 1e9))
        scored = score(trained.method, trained.space, parts)
        (row,) = (row for row in rows if (row["own"], row["ridge"]) == (own, ridge))
        for part, one in scored.items():
            assert row[part] == pytest.approx(one.accuracy, abs=1e-5)


def test_the_table_is_of_means():
    rows = [
        {"own": str(own), "ridge": str(ridge), "hm": str(hm + own / 10)}
        for own in beside.OWN
        for ridge in beside.RIDGE
        for hm in (0.5, 0.7)
    ]
    told = beside.table(rows).splitlines()
    assert told[0] == "| kept | 0.5 | 1 | 2 | 5 | 10 | mean |"
    assert told[2] == "| 0.4 | 64.0 | 64.0 | 64.0 | 64.0 | 64.0 | 64.0 |" and told[-1].startswith(
        "| 1 | 70.0"
    )
