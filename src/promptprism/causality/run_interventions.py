"""Train methods at several rho, and intervene on what they see: cells that any process may run."""

from collections.abc import Callable, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Literal

import torch

from promptprism.adapter import load_adapter
from promptprism.backbones import Backbone
from promptprism.causality.front_door import Estimate, front_door
from promptprism.causality.interventions import (
    CONTROL,
    FACTORS,
    Answers,
    Moved,
    do,
    factors_of,
    image_features,
    moved,
    probe,
    pulled,
    usual_colours,
    variance_share,
)
from promptprism.causality.measurements import measure
from promptprism.data.miniworld import Scene, scenes
from promptprism.data.miniworld.worlds import ELEVEN, RHO, classes
from promptprism.errors import PromptPrismError
from promptprism.evaluation.run_suite import Progress, run_suite
from promptprism.evaluation.store import CellResult, Store
from promptprism.evaluation.suites import Cell, Suite, digest_of
from promptprism.inference.predictor import Predictor
from promptprism.provenance import BackboneFacts, Cost, Facts, Meter

KIND = "interventions"
#: Raised when what is measured changes: older files are then measured again.
_VERSION = 2


class Interventions(Facts):
    """What interventions do to one trained method.

    Attributes:
        cell: method, settings, seed, and the data set it was trained on, its rho in the name.
        backbone: the frozen model.
        rho: probability of a class's usual colour in training.
        collapsed: why the run is no result, or None.
        images: number of scenes that were intervened on.
        draws: contexts for each scene in the front-door estimate.
        accuracy: of everyone ("fused", and "S1" to "SM" if there are several templates) on the scenes.
        moved: by factor (the control among them), of everyone.
        pull: probability that do(colour) moves to classes whose usual colour it is, of everyone.
        probes: accuracy of a linear probe by factor, for each template.
        chance: of the probes, by factor.
        variance: share of the variance of each template's features that goes with the factor.
        front_door: see `promptprism.causality.front_door.front_door`.
        cost: of measuring.
    """

    format: Literal[1] = 1
    cell: Cell
    backbone: BackboneFacts
    rho: float
    collapsed: str | None
    images: int
    draws: int
    accuracy: dict[str, float]
    moved: dict[str, dict[str, Moved]]
    pull: dict[str, float]
    probes: dict[str, tuple[float, ...]]
    chance: dict[str, float]
    variance: dict[str, tuple[float, ...]]
    front_door: dict[str, Estimate]
    cost: Cost


@cache
def _split(data: str, split: str, rho: float) -> tuple[tuple[Scene, ...], tuple[int, ...]]:
    shown, labels = zip(*scenes(data, split, rho), strict=True)
    return shown, labels


def intervene(
    result: CellResult, backbone: Backbone, store: Store, per_class: int, draws: int
) -> Interventions:
    """Measure what a trained method of a results folder does under interventions.

    Args:
        result: of a few-shot cell on a MiniWorld data set.
        backbone: of the cell.
        store: the results folder.
        per_class: test scenes of each class to intervene on, at most.
        draws: see `front_door`.
    """
    data, _, given = result.cell.data.partition("@")
    rho, meter = float(given or RHO), Meter(backbone.device)
    adapter = store.adapter(result.cell, result.learned)
    trained, _ = load_adapter(adapter, backbone, settings=result.cell.settings)
    classifier, label_space = trained.classifier(), classes(data)
    predictor = Predictor(classifier)
    every, of_every = _split(data, "test", rho)
    chosen = [place for place in range(len(every)) if place % (len(every) // len(label_space)) < per_class]
    shown, labels = [every[place] for place in chosen], torch.tensor([of_every[place] for place in chosen])
    plain = Answers(predictor, shown)
    movement: dict[str, dict[str, Moved]] = {}
    pull: dict[str, float] = {}
    for factor in (*FACTORS, CONTROL):
        other = [do(scene, factor, label_space, f"{data} {at}") for at, scene in enumerate(shown)]
        answers = Answers(predictor, other)
        movement[factor] = moved(plain, answers)
        if factor == "colour":
            moves = pulled(plain.probabilities, answers.probabilities, other, usual_colours(data))
            pull = plain.by_name(moves)
    val, of_val = _split(data, "val", rho)
    features = image_features(classifier, (*every, *val))
    factors = factors_of((*every, *val), (*of_every, *of_val))
    probed = {factor: [probe(one, values) for one in features] for factor, values in factors.items()}
    contexts, _ = _split(data, "train", rho)
    right = (plain.probabilities.argmax(-1) == labels).double().mean(-1)
    return Interventions(
        cell=result.cell,
        backbone=BackboneFacts.of(backbone),
        rho=rho,
        collapsed=result.training.collapsed,
        images=len(shown),
        draws=draws,
        accuracy=plain.by_name(right),
        moved=movement,
        pull=pull,
        probes={factor: tuple(accuracy for accuracy, _ in each) for factor, each in probed.items()},
        chance={factor: each[0][1] for factor, each in probed.items()},
        variance={
            factor: tuple(variance_share(one, values) for one in features)
            for factor, values in factors.items()
        },
        front_door=front_door(predictor, plain, shown, labels, contexts, draws),
        cost=meter.cost(),
    )


def run_interventions(
    suite: Suite,
    data: Sequence[str],
    rhos: Sequence[float],
    out: Path,
    backbone: Backbone,
    *,
    per_class: int = 12,
    draws: int = 6,
    show: Callable[[str], None] = lambda _: None,
) -> tuple[dict[str, list[Interventions]], list[str]]:
    """Train each row of a suite on all classes of each data set at each rho, and intervene.

    Cells that the results folder has are not run again; several processes may share it. Accuracy on the plain
    test images is there as few-shot results, for ``promptprism report``.

    Args:
        suite: gives methods, their settings, seeds and shots; its protocol and data sets do not count.
        data: names of MiniWorld data sets.
        rhos: of training.
        out: results folder.
        backbone: the suite's, loaded.
        per_class: test scenes of each class to intervene on, at most.
        draws: see `front_door`.
        show: told of what is going on.

    Returns:
        The measurements by row of the suite, and the failures in words.

    Raises:
        PromptPrismError: a data set that MiniWorld has not, or a rho that is no probability.
    """
    for name in data:
        if name not in ELEVEN:
            raise PromptPrismError(f"cannot intervene on '{name}': choose from {', '.join(ELEVEN)}")
    for rho in rhos:
        if not 0 <= rho <= 1:
            raise PromptPrismError(f"rho = {rho:g} is no probability: give a number from 0 to 1")
    names = tuple(f"{name}@{rho:g}" for name in data for rho in rhos)
    grid = suite.model_copy(update={"protocol": "few-shot", "datasets": names, "targets": ()})
    store, failures = Store(out), list[str]()
    found: dict[str, list[Interventions]] = {}
    for row in suite.methods:

        def tell(state: Progress, row: str = row) -> None:
            show(f"{row}: {state.done} of {state.total} trained. {state.running}")

        outcome = run_suite(grid.only([row]), out, backbone, show=tell)
        failures += [f"{cell}: {error}" for cell, error in outcome.failures]
        works = {}
        for result in outcome.results:
            key = digest_of(version=_VERSION, key=result.key, per_class=per_class, draws=draws)
            works[result.cell.file_name(key)] = partial(intervene, result, backbone, store, per_class, draws)
        files, failed = measure(store, KIND, works, show)
        failures += failed.values()
        found[row] = [Interventions.model_validate_json(file.read_bytes()) for file in files.values()]
    return found, failures
