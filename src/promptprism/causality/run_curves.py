"""Accuracy over epochs of a suite's methods: cells that any process may run."""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from promptprism.backbones import Backbone
from promptprism.causality.measurements import measure
from promptprism.causality.misalignment import EpochCurve, accuracy_over_epochs
from promptprism.data.registry import load_data
from promptprism.evaluation.store import Store
from promptprism.evaluation.suites import Suite, digest_of, fingerprint
from promptprism.provenance import BackboneFacts

KIND = "epochs"


def run_curves(
    suite: Suite,
    data: Sequence[str],
    epochs: int | None,
    out: Path,
    backbone: Backbone,
    show: Callable[[str], None] = lambda _: None,
) -> tuple[dict[str, list[EpochCurve]], list[str]]:
    """Run each row of a suite on the base classes of each data set, looking after every epoch.

    Cells that the results folder has are not run again; several processes may share it.

    Args:
        suite: gives methods, their settings, seeds and shots; its protocol and data sets do not count.
        data: what `load_data` takes.
        epochs: of every method that learns, instead of the suite's.
        out: results folder.
        backbone: the suite's, loaded.
        show: told of what is going on.

    Returns:
        The curves by row of the suite, and the failures in words.

    Raises:
        PromptPrismError: unknown data or unusable settings.
    """
    sets = {name: load_data(name) for name in data}
    prints = {name: fingerprint(dataset) for name, dataset in sets.items()}
    grid = suite.model_copy(
        update={"protocol": "base-to-new", "datasets": tuple(sets), "targets": (), "shots": suite.shots[:1]}
    )
    facts = BackboneFacts.of(backbone).model_dump(include={"fingerprint", "precision"})
    store, failures = Store(out), list[str]()
    found: dict[str, list[EpochCurve]] = {}
    for row in grid.methods:
        works = {}
        for cell in grid.only([row]).cells():
            if epochs is not None and cell.settings.learns:
                settings = cell.settings.model_copy(update={"epochs": epochs})
                cell = cell.model_copy(update={"settings": settings})
            key = digest_of(cell=cell.differing(), backbone=facts, data=prints[cell.data])
            works[cell.file_name(key)] = partial(accuracy_over_epochs, cell, backbone, sets[cell.data])
        files, failed = measure(store, KIND, works, partial(_tell, show, row))
        failures += failed.values()
        found[row] = [EpochCurve.model_validate_json(file.read_bytes()) for file in files.values()]
    return found, failures


def _tell(show: Callable[[str], None], row: str, text: str) -> None:
    show(f"{row} {text}")
