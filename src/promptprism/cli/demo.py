"""``promptprism demo``: methods from base to new classes of one data set, and some opinions of CDC."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from promptprism.cli.options import (
    BackboneName,
    Device,
    Json,
    Pretrained,
    Root,
    Seed,
    flag,
    open_data,
    option,
)
from promptprism.cli.output import Output
from promptprism.errors import PromptPrismError

if TYPE_CHECKING:
    from PIL.Image import Image

    from promptprism.backbones import Backbone
    from promptprism.data.records import Dataset, Record
    from promptprism.evaluation.suites import Suite

SHOTS = 16
_IMAGES = 3
#: What tells the story within two minutes: no training, one template, several. Settings beside the suite's.
QUICK: dict[str, dict[str, Any]] = {"zero-shot": {}, "maple": {"epochs": 4}, "cdc": {"epochs": 4}}
#: What grew out of what, each the start of the next.
FULL = ("zero-shot", "coop", "cocoop", "maple", "cdc")


def demo(
    data: Annotated[str, option("NAME", "Data set with a test split.")] = "mini/food",
    root: Root = None,
    backbone: BackboneName = "mini",
    pretrained: Pretrained = None,
    device: Device = "auto",
    seed: Seed = 1,
    full: Annotated[bool, flag("--full", "Five methods with all their epochs: 4 minutes.")] = False,
    json_file: Json = None,
) -> None:
    """Compare methods from base to new classes, and look at opinions.

    Takes less than two minutes on two cores.
    """
    output = Output("demo", json_file)
    from promptprism.backbones import load_backbone
    from promptprism.cli import tables
    from promptprism.evaluation.suites import load_suite

    suite, names = load_suite("mini/base-to-new"), FULL if full else QUICK
    chosen = {name: suite.methods[name] | ({} if full else QUICK[name]) for name in names}
    suite = suite.model_copy(
        update={"methods": chosen, "datasets": (data,), "shots": (SHOTS,), "seeds": (seed,), "per_data": {}}
    )
    dataset = open_data(data, output, root)
    frozen = load_backbone(backbone, pretrained, precision="float32", device=device)

    def show(done: dict[str, Any]) -> None:
        name, row = list(done.items())[-1]
        output.show(f"  {name} done in {tables.duration(row['seconds'])}")
        # The last method takes longest: here is something to read meanwhile.
        if len(done) == len(chosen) - 1:
            output.show(tables.methods(done))

    content, pictures = run_demo(suite, dataset, root, frozen, output.show, show)
    colours = output.console.color_system in {"truecolor", "256"}
    rows = content["images"]
    output.show(
        tables.methods(content["methods"]),
        tables.album(rows, pictures) if colours else tables.predictions(rows),
    )
    if not full:
        others = " and ".join(name for name in FULL if name not in QUICK)
        output.show(
            f"Left out: {others}, and most epochs of the others. promptprism demo --full has them all"
        )
    output.write(**content)


def run_demo(
    suite: Suite,
    dataset: Dataset,
    root: Path | None,
    backbone: Backbone,
    say: Callable[[str], None],
    show: Callable[[dict[str, Any]], None],
) -> tuple[dict[str, Any], list[Image]]:
    """Run the base-to-new protocol for methods, then ask CDC about test images of base and new classes.

    Args:
        suite: base-to-new on one data set with one seed; its methods, CDC last.
        dataset: the same, read.
        root: folder of the field's data sets.
        backbone: the frozen model.
        say: is told what happens.
        show: is given the results so far after each method.

    Returns:
        The fields of the demo's JSON, and the pictures that its ``images`` are about.

    Raises:
        PromptPrismError: the data cannot be used.
    """
    from promptprism.data.images import load_image
    from promptprism.data.splits import base_new
    from promptprism.estimator import load_model
    from promptprism.evaluation.run_suite import run_suite
    from promptprism.evaluation.store import Store
    from promptprism.inference.answers import answers

    base, new = base_new(dataset)
    say(
        f"{dataset.name}: learn {len(base.class_names)} base classes from {suite.shots[0]} images each, "
        f"then tell them apart, and {len(new.class_names)} new classes never trained"
    )
    methods: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        for name in suite.methods:
            outcome = run_suite(suite.only([name]), Path(folder), backbone, root=root, progress=True)
            if outcome.failures:
                raise PromptPrismError(outcome.failures[0][1])
            result = outcome.results[0]
            training = result.training
            methods[name] = {
                "base": result.scores["base"].accuracy,
                "new": result.scores["new"].accuracy,
                "hm": result.summary and result.summary["hm"],
                "seconds": training.cost.seconds,
                "seconds_per_step": training.seconds_per_step,
                "steps": training.steps,
                "epochs": len(training.history),
                "trainable": training.trainable,
                "collapsed": training.collapsed,
                "settings": result.cell.settings.model_dump(mode="json"),
            }
            show(methods)
        model = load_model(Store(Path(folder)).adapter(result.cell, result.learned), backbone=backbone)
    rows: list[dict[str, Any]] = []
    pictures: list[Image] = []
    for part, data in (("base", base), ("new", new)):
        picked = _spread(data, _IMAGES)
        names = [f"{part} image {number}" for number in range(1, len(picked) + 1)]
        sources = [record.source for record in picked]
        opinions = answers(model.with_classes(data.class_names).classifier_, sources, templates=True)
        truth = [data.class_names[record.label] for record in picked]
        rows += [
            row | {"image": name, "truth": true}
            for row, name, true in zip(opinions, names, truth, strict=True)
        ]
        pictures += map(load_image, sources)
    content = {
        "data": dataset.name,
        "seed": result.cell.seed,
        "shots": result.cell.shots,
        "backbone": result.backbone.model_dump(),
        "methods": methods,
        "images": rows,
    }
    return content, pictures


def _spread(data: Dataset, count: int) -> Sequence[Record]:
    """Test images spread evenly over the classes."""
    step = max(1, len(data.test) // count)
    return data.test[step // 2 :: step][:count]
