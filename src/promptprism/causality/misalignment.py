"""CDC's two misalignments, measured: of CLIP's task (its fig. 1a), and of the few-shot data (fig. 1b)."""

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from promptprism.backbones import Backbone
from promptprism.data.miniworld import Scene, render, scenes
from promptprism.data.miniworld.captions import caption_parts
from promptprism.data.records import Dataset
from promptprism.data.views import make_views
from promptprism.errors import PromptPrismError
from promptprism.evaluation.protocols import PROTOCOLS, draw, score
from promptprism.evaluation.suites import Cell
from promptprism.methods import Method, build_method
from promptprism.prompts import encode_image, encode_text
from promptprism.provenance import BackboneFacts, Cost, Facts, Meter
from promptprism.training.loop import learn

#: What the full description is compared with; the last is a control: as long, but of another image.
OTHERS = ("object", "background", "style", "second object", "another scene")
_BATCH = 64
_QUANTILES = (0, 0.05, 0.25, 0.5, 0.75, 0.95, 1)


class TaskMisalignment(Facts):
    """Cosines of scenes with their descriptions.

    Attributes:
        data: name of the MiniWorld data set.
        backbone: the frozen model.
        captions: the descriptions of the first scene, by kind.
        cosine: by kind of description, one for each scene.
        full_is_closer: share of scenes closer to their full description than to the other kind.
        full_is_closest: share of scenes closer to it than to every other kind.
    """

    data: str
    backbone: BackboneFacts
    captions: dict[str, str]
    cosine: dict[str, tuple[float, ...]]
    full_is_closer: dict[str, float]
    full_is_closest: float

    def summary(self) -> dict[str, Any]:
        """What goes into JSON: of the cosines their number, mean, deviation and quantiles."""
        cosine = {
            kind: {
                "mean": float(np.mean(values)),
                "std": float(np.std(values, ddof=1)),
                "quantiles": {f"{share:g}": float(np.quantile(values, share)) for share in _QUANTILES},
            }
            for kind, values in self.cosine.items()
        }
        facts = self.model_dump(mode="json", exclude={"cosine"})
        return {"scenes": len(self.cosine["full"]), "cosine": cosine, **facts}


def task_misalignment(backbone: Backbone, data: str = "mini/general", count: int = 1000) -> TaskMisalignment:
    """Compare test scenes that have a second object with full and partial descriptions (CDC, fig. 1a).

    Raises:
        PromptPrismError: no such MiniWorld data set, or it has fewer such scenes.
    """
    complete = [scene for scene, _ in scenes(data, "test") if scene.second is not None]
    if not 2 <= count <= len(complete):
        raise PromptPrismError(
            f"cannot take {count} scenes: '{data}' has {len(complete)} test scenes with a second object"
        )
    chosen = complete[:: len(complete) // count][:count]
    captions = [caption_parts(scene) for scene in chosen]
    texts = {part: [caption[part] for caption in captions] for part in captions[0]}
    # Scenes come class by class: half-way on there is another object.
    texts["another scene"] = texts["full"][count // 2 :] + texts["full"][: count // 2]
    with torch.no_grad():
        images = _image_features(backbone, chosen)
        cosine = {part: (images * _text_features(backbone, of)).sum(-1).cpu() for part, of in texts.items()}
    closer = {part: cosine["full"] > cosine[part] for part in OTHERS}
    closest = torch.stack(list(closer.values())).all(0)
    return TaskMisalignment(
        data=data,
        backbone=BackboneFacts.of(backbone),
        captions={part: of[0] for part, of in texts.items()},
        cosine={part: tuple(values.tolist()) for part, values in cosine.items()},
        full_is_closer={part: values.double().mean().item() for part, values in closer.items()},
        full_is_closest=closest.double().mean().item(),
    )


def _image_features(backbone: Backbone, chosen: Sequence[Scene]) -> Tensor:
    make = make_views(("test",), backbone.image_size, backbone.mean, backbone.std)
    views = torch.cat([make(render(scene), 0, 0, 0) for scene in chosen]).to(backbone.device)
    return torch.cat([encode_image(backbone, some[None])[0] for some in torch.split(views, _BATCH)])


def _text_features(backbone: Backbone, texts: Sequence[str]) -> Tensor:
    tokens = backbone.tokenize(texts)
    return torch.cat([encode_text(backbone, some)[0] for some in torch.split(tokens, _BATCH)])


class EpochCurve(Facts):
    """Accuracy over the epochs of one run.

    Attributes:
        cell: method, settings, data set and seed.
        backbone: the frozen model.
        base: accuracy on base classes before training and after each epoch; methods that learn nothing have
            the first only.
        new: the same on new classes.
        loss: mean training loss of each epoch.
        collapsed: why the run is no result, or None.
        cost: of training and all scoring.
    """

    format: Literal[1] = 1
    cell: Cell
    backbone: BackboneFacts
    base: tuple[float, ...]
    new: tuple[float, ...]
    loss: tuple[float, ...]
    collapsed: str | None
    cost: Cost


def accuracy_over_epochs(cell: Cell, backbone: Backbone, dataset: Dataset) -> EpochCurve:
    """Train on base classes; score base and new before training and after every epoch (CDC, fig. 1b).

    What is learned is the same as without looking.

    Raises:
        PromptPrismError: see `draw` and `learn`.
    """
    protocol, meter = PROTOCOLS["base-to-new"], Meter(backbone.device)
    learning, records = draw(protocol, dataset, cell.shots, cell.seed, cell.allow_fewer)
    settings, space = cell.settings, learning.label_space
    parts = protocol.scored(dataset, {})
    accuracies: dict[str, list[float]] = {part: [] for part in parts}

    def look(_epoch: int, method: Method) -> None:
        for part, scores in score(method, space, parts).items():
            accuracies[part].append(scores.accuracy)

    records = records if settings.learns else ()
    with backbone.keeping_stems():
        look(-1, build_method(settings, backbone, cell.seed))
        result = learn(settings, backbone, space, records, seed=cell.seed, after_epoch=look).training
    return EpochCurve(
        cell=cell,
        backbone=BackboneFacts.of(backbone),
        base=tuple(accuracies["base"]),
        new=tuple(accuracies["new"]),
        loss=tuple(epoch.loss for epoch in result.history),
        collapsed=result.collapsed,
        cost=meter.cost(),
    )
