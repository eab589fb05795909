from dataclasses import fields, replace
from types import SimpleNamespace

import pytest
import torch

from promptprism.causality.front_door import front_door, in_context
from promptprism.causality.interventions import (
    CONTROL,
    FACTORS,
    Answers,
    do,
    factors_of,
    moved,
    probe,
    pulled,
    usual_colours,
    variance_share,
)
from promptprism.data.miniworld import render, scenes
from promptprism.data.miniworld.scenes import COLOURS
from promptprism.data.miniworld.worlds import classes
from promptprism.evidence import Opinion

DATA = "mini/clothing"
SHOWN, LABELS = (list(column) for column in zip(*list(scenes(DATA, "test"))[::16], strict=True))
SPACE = classes(DATA)
ALLOWED = dict(zip((*FACTORS, CONTROL), ("colour", "pattern", "artist", "second", "noise_seed"), strict=True))


class Stub:
    """Answers by rule: a list of functions from a scene to logits [K], one for each template."""

    def __init__(self, *rules, trust=None):
        self.rules = rules
        self.classifier = SimpleNamespace(
            evidential=False, probabilities=lambda logits: logits.mean(0).softmax(-1)
        )

    def logits(self, sources, _batch):
        yield torch.tensor([[rule(source.scene) for source in sources] for rule in self.rules])


def sees_object(scene):
    return [9.0 * (concept == scene.concept) for concept in SPACE]


def sees_colour(scene):
    return [9.0 * (colour == scene.colour) for colour in usual_colours(DATA)]


@pytest.mark.parametrize("factor", [*FACTORS, CONTROL])
def test_an_intervention_changes_one_factor_only(factor):
    for place, scene in enumerate(SHOWN):
        other = do(scene, factor, SPACE, f"{place}")
        changed = {
            field.name for field in fields(scene) if getattr(scene, field.name) != getattr(other, field.name)
        }
        assert changed == {ALLOWED[factor]}
        assert do(scene, factor, SPACE, f"{place}") == other
        assert other.second is None or other.second != scene.concept
        if factor == CONTROL:
            still = [render(replace(one, noise=0)).tobytes() for one in (scene, other)]
            assert still[0] == still[1]
    if factor == "colour":
        assert len({do(SHOWN[0], factor, SPACE, f"{i}").colour for i in range(200)}) == len(COLOURS) - 1


def test_moved_counts_flips_and_variation():
    before = SimpleNamespace(who=("fused",), probabilities=torch.tensor([[[0.7, 0.3], [0.6, 0.4]]]))
    after = SimpleNamespace(who=("fused",), probabilities=torch.tensor([[[0.2, 0.8], [0.9, 0.1]]]))
    found = moved(before, after)["fused"]
    assert (found.flips, found.total_variation) == (0.5, pytest.approx((0.5 + 0.3) / 2))


@pytest.mark.slow
def test_pull_is_felt_by_who_looks_at_colours_only():
    other = [do(scene, "colour", SPACE, f"{place}") for place, scene in enumerate(SHOWN)]
    stub = Stub(sees_object, sees_colour)
    before, after = Answers(stub, SHOWN), Answers(stub, other)
    moves = pulled(before.probabilities, after.probabilities, other, usual_colours(DATA))
    found = before.by_name(moves)
    assert before.who == ("fused", "S1", "S2")
    assert found["S1"] == pytest.approx(0) and found["S2"] > 0.9 and 0 < found["fused"] < found["S2"]
    assert moved(before, after)["S1"].flips == 0 and moved(before, after)["S2"].flips == 1


def test_usual_colours_are_those_of_a_wholly_confounded_world():
    usual = usual_colours(DATA)
    assert all(scene.colour == usual[label] for scene, label in scenes(DATA, "train", 1.0))


def test_factors_are_numbers_from_0():
    found = factors_of(SHOWN, LABELS)
    assert found.keys() == {"object", *FACTORS}
    assert found["object"].tolist() == LABELS
    assert found["second object"].tolist() == [int(scene.second is not None) for scene in SHOWN]


def test_probe_finds_what_is_there_and_nothing_else():
    generator = torch.Generator().manual_seed(0)
    values = torch.randint(5, (600,), generator=generator)
    noise = torch.randn(600, 20, generator=generator)
    directions = torch.randn(5, 20, generator=generator)
    accuracy, chance = probe(noise * 0.1 + directions[values], values)
    assert accuracy == 1 and 0.2 <= chance < 0.3
    assert probe(noise, values)[0] == pytest.approx(chance, abs=0.08)


def test_variance_share_is_the_factors_part():
    generator = torch.Generator().manual_seed(0)
    values = torch.randint(4, (20_000,), generator=generator)
    means = torch.tensor([[-1.0, 1], [1, 1], [-1, -1], [1, -1]])  # variance 1 in each of two dimensions
    noise = torch.randn(20_000, 2, generator=generator)
    assert variance_share(means[values], values) == pytest.approx(1)
    assert variance_share(noise, values) == pytest.approx(0, abs=1e-3)
    assert variance_share(means[values] + 2 * noise, values) == pytest.approx(1 / 5, abs=0.01)


def test_contexts_bring_all_but_the_object():
    contexts = [scene for scene, _ in scenes(DATA, "train", 0.9)][:50]
    kept = {"concept", "artist", "scale", "angle", "x", "y", "cover"}
    for place, scene in enumerate(SHOWN):
        made = in_context(scene, contexts, f"{place}")
        assert all(getattr(made, name) == getattr(scene, name) for name in kept)
        assert made.second != scene.concept
        brought = {field.name for field in fields(scene)} - kept
        assert any(all(getattr(made, n) == getattr(context, n) for n in brought) for context in contexts)


def test_who_sees_the_object_is_at_the_front_door():
    stub = Stub(sees_object)
    found = front_door(stub, Answers(stub, SHOWN), SHOWN, torch.tensor(LABELS), SHOWN, draws=2)
    for way in ("fused", "mixture", "fused, adjusted", "front-door"):
        assert (found[way].accuracy, found[way].agreement) == (1, 1)
        assert found[way].distance == pytest.approx(0, abs=1e-12)
    assert found["index only"].accuracy == pytest.approx(1 / len(SPACE), abs=0.02)


@pytest.mark.slow
def test_the_front_door_estimate_is_its_formula():
    stub, contexts = Stub(sees_object, sees_colour), [scene for scene, _ in scenes(DATA, "train", 0.9)]
    plain = Answers(stub, SHOWN)
    plain.trust = torch.tensor([[0.9], [0.3]], dtype=torch.float64).expand(2, len(SHOWN))
    found = front_door(stub, plain, SHOWN, torch.tensor(LABELS), contexts, draws=3)
    estimate = torch.zeros(len(SHOWN), len(SPACE), dtype=torch.float64)
    for place, scene in enumerate(SHOWN):
        for draw in range(3):
            there = in_context(scene, contexts, f"{draw} {place}")
            for rule, share in ((sees_object, 0.75), (sees_colour, 0.25)):
                estimate[place] += share / 3 * torch.tensor(rule(there)).double().softmax(-1)
    distance = (plain.final - estimate).abs().sum(-1).mean() / 2
    assert found["fused"].distance == pytest.approx(distance.item(), rel=1e-6)
    assert found["front-door"].distance == 0
    assert found["front-door"].accuracy == 1 > found["fused"].accuracy


def test_averaging_fusion_is_a_mixture_by_strength():
    opinions = Opinion.from_evidence(torch.rand(4, 5, 7, generator=torch.Generator().manual_seed(0)) * 20)
    strength = 7 / opinions.uncertainty.unsqueeze(-1)
    mixture = (strength * opinions.probability).sum(0) / strength.sum(0)
    assert torch.allclose(opinions.fuse("averaging").probability, mixture)
