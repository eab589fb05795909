"""MiniWorld: the same world on every machine, with the factors it says it has."""

import hashlib
from collections import Counter
from dataclasses import fields, replace

import numpy as np
import pytest

from promptprism.data.miniworld import DEVELOPMENT, ELEVEN, NAMES, REPORTED, SHIFTS, load, render, scenes
from promptprism.data.miniworld.scenes import COLOURS, MONOCHROME, PATTERNS, SIZE, UNSEEN_PATTERNS
from promptprism.data.miniworld.sprites import sprite
from promptprism.data.miniworld.worlds import (
    PRETRAINING_ARTISTS,
    RENDITION_ARTISTS,
    VERSION,
    WORLD_ARTISTS,
    classes,
)
from promptprism.errors import PromptPrismError


def pixels(scene):
    return np.asarray(render(scene)).astype(int)


@pytest.mark.slow
def test_the_first_food_scenes_have_the_bytes_they_always_had():
    digest = hashlib.sha256(b"".join(r.source.image().tobytes() for r in load("mini/food").train[:600]))
    assert VERSION == 1
    assert digest.hexdigest() == "22a6330eb9d503869d4cca08b87c3b8c9dfee67f50bff32259042e8a49d7ca0b"


def test_eleven_label_spaces_of_20_to_60_classes_and_a_general_one():
    sizes = {name: len(classes(name)) for name in ELEVEN}
    assert len(ELEVEN) == 11
    assert sizes.pop("mini/general") == 256
    assert min(sizes.values()) >= 20
    assert max(sizes.values()) <= 60
    assert len(DEVELOPMENT) == 3
    assert set(DEVELOPMENT) | set(REPORTED) == set(ELEVEN)
    assert not set(DEVELOPMENT) & set(REPORTED)


@pytest.mark.parametrize("name", NAMES)
def test_names_are_sorted_and_none_occurs_twice(name):
    names = [c.name for c in classes(name)]
    assert names == sorted(set(names))


def test_splits_have_enough_images_of_every_class():
    dataset = load("mini/clothing")
    for records, least in ((dataset.train, 32), (dataset.val, 8), (dataset.test, 20)):
        assert min(Counter(r.label for r in records).values()) >= least
    assert not load("mini/general-sketch").train


def usual_share(name, split, rho):
    """The share of scenes whose background is the colour most frequent in their class."""
    by_class = {}
    for scene, label in scenes(name, split, rho):
        by_class.setdefault(label, Counter())[scene.colour] += 1
    return np.mean([c.most_common(1)[0][1] / c.total() for c in by_class.values()])


@pytest.mark.slow
def test_rho_ties_colour_to_class_in_train_only():
    # With probability rho the usual colour, else any of twelve: rho + (1 - rho) / 12 of a class.
    assert usual_share("mini/food", "train", 0.7) == pytest.approx(0.7 + 0.3 / 12, abs=0.02)
    assert usual_share("mini/food", "train", 1.0) == 1.0
    assert usual_share("mini/food", "train", 0.0) < 0.25
    assert usual_share("mini/food", "test", 0.7) < 0.3


@pytest.mark.slow
def test_artists_of_the_world_are_not_the_main_ones_of_pretraining():
    assert not set(PRETRAINING_ARTISTS) & {*WORLD_ARTISTS, *RENDITION_ARTISTS, *MONOCHROME}
    assert {s.artist for s, _ in scenes("mini/food", "test")} == set(WORLD_ARTISTS)
    assert {s.artist for s, _ in scenes("mini/general-rendition", "test")} == set(RENDITION_ARTISTS)
    assert {s.artist for s, _ in scenes("mini/general-sketch", "test")} == set(MONOCHROME)


@pytest.mark.slow
def test_shifts_shift_what_they_say():
    assert {s.pattern for s, _ in scenes("mini/general-v2", "test")} == set(UNSEEN_PATTERNS)
    assert {s.pattern for s, _ in scenes("mini/general", "test")} == set(PATTERNS)
    assert all(s.second is not None for s, _ in scenes("mini/general-adversarial", "test"))
    general = set(classes("mini/general"))
    assert set(classes("mini/general-rendition")) < general
    assert len(SHIFTS) == 4


def test_an_intervention_changes_one_factor_and_the_image():
    scene = next(s for s, _ in scenes("mini/food", "test") if s.second is not None)
    for change in (
        {"colour": "teal"},
        {"pattern": "plain"},
        {"second": None},
        {"angle": 90.0},
        {"noise": 100},
    ):
        other = replace(scene, **change)
        differing = [f.name for f in fields(scene) if getattr(scene, f.name) != getattr(other, f.name)]
        assert differing == list(change)
        assert np.abs(pixels(scene) - pixels(other)).max() > 0


def test_an_unscaled_sprite_lies_where_it_should():
    scene = replace(
        next(scenes("mini/food", "test"))[0], scale=64 / SIZE, angle=0.0, x=0.5, y=0.5, noise=0, cover=0.0
    )
    scene = replace(scene, second=None, pattern="plain", colour="blue")
    drawing = sprite(scene.artist, scene.concept.code).astype(int)
    edge = (64 - SIZE) // 2
    drawing = drawing[edge : 64 - edge, edge : 64 - edge]
    alpha = drawing[..., 3:] / 255
    expected = drawing[..., :3] * alpha + np.array(COLOURS["blue"]) * (1 - alpha)
    assert np.abs(pixels(scene) - expected).max() <= 2


def test_plain_background_is_the_named_colour():
    scene = replace(next(scenes("mini/food", "test"))[0], pattern="plain", noise=0, scale=0.01, second=None)
    assert pixels(scene)[0, 0].tolist() == list(COLOURS[scene.colour])


def test_cover_hides_the_lower_part():
    scene = replace(next(scenes("mini/food", "test"))[0], cover=0.5, noise=0, second=None)
    lower = pixels(scene)[SIZE // 2 :].reshape(-1, 3)
    assert len(np.unique(lower, axis=0)) == 1


@pytest.mark.parametrize("wrong", ["mini/cars", "food", "mini/general-v3"])
def test_unknown_data_set_is_named(wrong):
    with pytest.raises(PromptPrismError, match=f"no data set '{wrong}'.*mini/food"):
        load(wrong)


@pytest.mark.parametrize("rho", [-0.1, 1.5])
def test_rho_must_be_a_probability(rho):
    with pytest.raises(PromptPrismError, match=f"rho = {rho}"):
        load("mini/food", rho)
