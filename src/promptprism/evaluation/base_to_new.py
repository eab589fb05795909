"""The base-to-new protocol of CoCoOp, MaPLe and CDC: learn half of the classes, be scored on both halves."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from promptprism.backbones import Backbone
from promptprism.data.records import Dataset
from promptprism.evaluation.evaluate import Evaluation
from promptprism.evaluation.metrics import harmonic_mean
from promptprism.evaluation.protocols import PROTOCOLS, draw, learn, score
from promptprism.provenance import BackboneFacts
from promptprism.training.loop import TrainResult


class BaseToNew(BaseModel):
    """Result of one method on one data set with one seed.

    Attributes:
        protocol: name of the protocol.
        method: name of the method.
        settings: all its settings.
        backbone: the frozen model.
        data: name of the data set.
        phrase: hand-crafted text around a class name.
        shots: training images per base class.
        seed: of the draw of images, the start values, the order and the views.
        training: what training was and cost.
        base: scores on base images among the base classes.
        new: scores on new images among the new classes.
        hm: harmonic mean of both accuracies; None if the run collapsed, so that no average takes it for a
            result.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    protocol: Literal["base-to-new"] = "base-to-new"
    method: str
    settings: dict[str, Any]
    backbone: BackboneFacts
    data: str
    phrase: str
    shots: int
    seed: int
    training: TrainResult
    base: Evaluation
    new: Evaluation
    hm: float | None


def base_to_new(
    method: str,
    backbone: Backbone,
    dataset: Dataset,
    *,
    shots: int = 16,
    seed: int = 1,
    allow_fewer: bool = False,
    checkpoint: Path | None = None,
    progress: bool = False,
    **settings: Any,
) -> BaseToNew:
    """Train on the first ceil(n/2) classes; score base images among them and new ones among the rest.

    Nothing is chosen on test images: the last epoch counts, with the settings as given. A suite's cell also
    tells new images from base ones and has post-hoc calibration to compare with; this is the quick way.

    Raises:
        PromptPrismError: no test split, too few images or classes, or anything `train` refuses.
    """
    protocol = PROTOCOLS["base-to-new"]
    base, records = draw(protocol, dataset, shots, seed, allow_fewer)
    model, training = learn(
        method, backbone, base, records, seed=seed, checkpoint=checkpoint, progress=progress, **settings
    )
    scores = score(model, protocol.scored(dataset, {}))
    on_base, on_new = scores["base"], scores["new"]
    return BaseToNew(
        method=method,
        settings=model.settings.model_dump(mode="json"),
        backbone=BackboneFacts.of(backbone),
        data=dataset.name,
        phrase=dataset.phrase,
        shots=shots,
        seed=seed,
        training=training,
        base=on_base,
        new=on_new,
        hm=None if training.collapsed else harmonic_mean(on_base.accuracy, on_new.accuracy),
    )
