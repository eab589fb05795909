"""MiniWorld's data sets: eleven label spaces, four shifts, and interventions on their scenes.

A record of split s of data set d with index i depends only on (VERSION, d, s, i, rho): the same scene on
any machine. The eleven stand for the eleven of the field, ``mini/general`` for ImageNet; settings may be
chosen on DEVELOPMENT only.
"""

import functools
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

from PIL import Image

from promptprism.data.miniworld.scenes import COLOURS, MONOCHROME, PATTERNS, UNSEEN_PATTERNS, Scene, render
from promptprism.data.miniworld.sprites import Concept, concepts
from promptprism.data.records import Dataset, Record, Records
from promptprism.errors import PromptPrismError

_T = TypeVar("_T")

VERSION = 1
RHO = 0.7

_TOPICS: dict[str, tuple[str, ...]] = {
    "mammals": ("animal-mammal",),
    "wildlife": ("animal-bird", "animal-amphibian", "animal-reptile", "animal-marine", "animal-bug"),
    "plants": ("plant-flower", "plant-other", "food-fruit", "food-vegetable"),
    "food": ("food-prepared", "food-asian", "food-sweet", "drink"),
    "vehicles": ("transport-ground", "transport-water", "transport-air"),
    "places": ("place-geographic", "place-building", "place-religious", "place-other"),
    "sport": ("sport", "game", "award-medal", "event"),
    "clothing": ("clothing",),
    "tools": ("tool", "household", "office", "science", "medical", "lock"),
    "faces": (
        "face-smiling", "face-affection", "face-tongue", "face-hand", "face-neutral-skeptical", "face-sleepy",
        "face-unwell", "face-hat", "face-glasses", "face-concerned", "face-negative", "face-costume",
    ),
}  # fmt: skip
MAX_CLASSES = 60
DEVELOPMENT = ("mini/mammals", "mini/vehicles", "mini/clothing")
ELEVEN = (*(f"mini/{topic}" for topic in _TOPICS), "mini/general")
REPORTED = tuple(name for name in ELEVEN if name not in DEVELOPMENT)
SHIFTS = ("mini/general-v2", "mini/general-sketch", "mini/general-adversarial", "mini/general-rendition")
NAMES = (*ELEVEN, *SHIFTS)

#: Artists of the eleven data sets, of whom the mini CLIP has seen little, and of the rendition shift, unseen.
WORLD_ARTISTS = ("fluent-emoji", "emojione")
RENDITION_ARTISTS = ("streamline-emojis",)
#: Main artists of the mini CLIP's pre-training.
PRETRAINING_ARTISTS = ("noto", "noto-v1", "twemoji", "fluent-emoji-flat", "fxemoji")
PER_CLASS = {"train": 40, "val": 8, "test": 24}


def classes(name: str) -> tuple[Concept, ...]:
    """Return the classes of a data set, sorted by name: the label space.

    Raises:
        PromptPrismError: If there is no such data set.
    """
    if name not in NAMES:
        raise PromptPrismError(f"MiniWorld has no data set '{name}'; it has {', '.join(NAMES)}")
    topic, _, shift = name.removeprefix("mini/").partition("-")
    drawn = {*WORLD_ARTISTS, *(MONOCHROME if topic == "general" else ())}
    if topic == "general":
        found = [c for topic in _TOPICS for c in _topic(topic) if drawn <= c.artists][::2]
    else:
        found = [c for c in _topic(topic) if drawn <= c.artists]
    if shift == "rendition":
        found = [c for c in found if c.artists.issuperset(RENDITION_ARTISTS)]
    return tuple(sorted(found, key=lambda c: c.name))


def _topic(topic: str) -> list[Concept]:
    found = [c for c in concepts() if c.group in _TOPICS[topic] and c.artists.issuperset(WORLD_ARTISTS)]
    return sorted(found[:MAX_CLASSES], key=lambda c: c.name)


def draw_scene(
    rng: random.Random,
    concept: Concept,
    artists: Sequence[str],
    others: Sequence[Concept],
    *,
    colours: Sequence[str] = tuple(COLOURS),
    patterns: Sequence[str] = PATTERNS,
    second: tuple[float, float] = (0.35, 0.3),
    cover: float = 0.0,
) -> Scene:
    """Draw the task-irrelevant factors of a scene of a concept, each on its own.

    Args:
        rng: Source of the draw.
        concept: The object.
        artists: Whose drawings to choose from; those who have not drawn the concept are passed over.
        others: What the second object is chosen from; the artist must have drawn one besides the concept.
        colours: Background colours to choose from.
        patterns: Background patterns to choose from.
        second: Probability of a second object, and its mean side as a part of the image's.
        cover: Largest part of the image that is covered from below.
    """

    # Only random() of Python's generator is promised to give the same numbers in every version.
    def pick(options: Sequence[_T]) -> _T:
        return options[int(rng.random() * len(options))]

    def uniform(low: float, high: float) -> float:
        return low + (high - low) * rng.random()

    scale = uniform(0.45, 0.85)
    artist = pick([a for a in artists if a in concept.artists])
    other = None
    if rng.random() < second[0]:
        other = pick(others)
        while other is concept or artist not in other.artists:
            other = pick(others)
    return Scene(
        concept=concept,
        artist=artist,
        colour=pick(colours),
        pattern=pick(patterns),
        period=6 + int(rng.random() * 7),
        scale=scale,
        angle=uniform(-35, 35),
        x=uniform(0.35 * scale + 0.1, 0.9 - 0.35 * scale),
        y=uniform(0.35 * scale + 0.1, 0.9 - 0.35 * scale),
        second=other,
        second_scale=second[1] * uniform(0.8, 1.2),
        corner=int(rng.random() * 4),
        cover=uniform(0, cover),
        noise=int(rng.random() * 40),
        seed=int(rng.random() * 2**31),
    )


@functools.lru_cache(maxsize=8192)
def _rendered(scene: Scene) -> Image.Image:
    return render(scene)


@dataclass(frozen=True)
class SceneSource:
    """A record's image that is drawn when it is asked for."""

    scene: Scene

    def image(self) -> Image.Image:
        """Draw the scene, or take it from the few thousand drawn last: 7 kB each, 1 ms to draw."""
        return _rendered(self.scene).copy()

    @property
    def key(self) -> str:
        """Tells the scene from others on every machine; its seed is drawn after all else."""
        scene = self.scene
        return f"{VERSION}/{scene.concept.name}/{scene.artist}/{scene.colour}/{scene.pattern}/{scene.seed}"

    def __str__(self) -> str:
        return f"a MiniWorld scene of '{self.scene.concept.name}'"


def _usual_colour(name: str, label: int) -> str:
    """Return the background colour that goes with a class in the train split."""
    topic = name.removeprefix("mini/").partition("-")[0]
    colours = list(COLOURS)
    return colours[(label * 5 + len(topic)) % len(colours)]


def scenes(name: str, split: str, rho: float = RHO) -> Iterator[tuple[Scene, int]]:
    """Yield the scenes of a split with their labels, class after class.

    In the train split a scene has its class's usual background colour with probability rho: the data
    misalignment. In the others colour and class are independent; in the adversarial shift the colour is
    another class's usual one.

    Raises:
        PromptPrismError: If the data set is unknown or rho is no probability.
    """
    if not 0 <= rho <= 1:
        raise PromptPrismError(f"rho = {rho} is no probability: give a number from 0 to 1")
    label_space = classes(name)
    _, _, shift = name.removeprefix("mini/").partition("-")
    for label, concept in enumerate(label_space):
        for i in range(PER_CLASS[split]):
            rng = random.Random(f"{VERSION}/{name}/{split}/{label * PER_CLASS[split] + i}")
            match shift:
                case "":
                    usual = split == "train" and rng.random() < rho
                    colours = (_usual_colour(name, label),) if usual else tuple(COLOURS)
                    scene = draw_scene(rng, concept, WORLD_ARTISTS, label_space, colours=colours)
                case "v2":
                    scene = draw_scene(rng, concept, WORLD_ARTISTS, label_space, patterns=UNSEEN_PATTERNS)
                case "sketch":
                    scene = draw_scene(
                        rng, concept, MONOCHROME, label_space, colours=("white", "gray"), patterns=("plain",)
                    )
                case "adversarial":
                    other = (label + 1 + int(rng.random() * (len(label_space) - 1))) % len(label_space)
                    scene = draw_scene(
                        rng,
                        concept,
                        WORLD_ARTISTS,
                        label_space,
                        colours=(_usual_colour(name, other),),
                        second=(1.0, 0.42),
                        cover=0.3,
                    )
                case _:
                    scene = draw_scene(rng, concept, RENDITION_ARTISTS, label_space)
            yield scene, label


@functools.lru_cache(maxsize=32)
def load(name: str, rho: float = RHO) -> Dataset:
    """Return a MiniWorld data set; its images are drawn when they are asked for.

    A shift has a test split only: what is tested on it was trained on ``mini/general``.

    Args:
        name: One of NAMES, for instance "mini/food".
        rho: Probability that a training scene has its class's usual background colour.

    Raises:
        PromptPrismError: If the data set is unknown or rho is no probability.
    """

    def records(split: str) -> Records:
        return tuple(Record(SceneSource(scene), label) for scene, label in scenes(name, split, rho))

    names = tuple(concept.name for concept in classes(name))
    train, val = ((), ()) if name in SHIFTS else (records("train"), records("val"))
    return Dataset(name, names, train, val, records("test"))
