"""Results as suites write them, with accuracies made up."""

from promptprism.evaluation.calibration import Reliability
from promptprism.evaluation.evaluate import Evaluation
from promptprism.evaluation.protocols import PROTOCOLS
from promptprism.evaluation.store import CellResult
from promptprism.evaluation.suites import Cell
from promptprism.methods import make_settings
from promptprism.provenance import BackboneFacts, Cost
from promptprism.training.loop import TrainResult

COST = Cost(seconds=1, peak_memory_mb=1, device="cpu", threads=1, versions={})
MINI = BackboneFacts(name="mini", pretrained=None, fingerprint="f" * 16, precision="float32")
OPENAI = BackboneFacts(name="ViT-B-16", pretrained="openai", fingerprint="e" * 16, precision="float32")


def result(
    method,
    data,
    seed,
    accuracies,
    protocol="base-to-new",
    backbone=MINI,
    collapsed=None,
    shots=16,
    targets=(),
    finished="now",
    each=(),
    **settings,
):
    """A result with these accuracies by part; each: of the templates."""
    of_method = make_settings(method, **settings)
    cell = Cell(
        protocol=protocol, method=method, settings=of_method, data=data, targets=targets, shots=shots,
        seed=seed, version=of_method.version,
    )  # fmt: skip
    scores = {
        part: Evaluation(
            data=part, classes=2, images=10, metrics={"cls/accuracy": value}, class_accuracy={},
            templates=[{"cls/accuracy": one} for one in each], risk_coverage={},
            reliability=Reliability(count=(), confidence=(), accuracy=()),
            images_per_second=1.0, cost=COST,
        )
        for part, value in accuracies.items()
    }  # fmt: skip
    training = TrainResult(
        seed=seed, images=1, trainable=1, steps=1, seconds_per_step=None, history=(), accuracy=None,
        collapsed=collapsed, cost=COST,
    )  # fmt: skip
    return CellResult(
        key=f"{protocol}{method}{data}{seed}{shots}{settings}{finished}", learned="x", revision=None,
        finished=finished, cell=cell, phrase="{}",
        backbone=backbone, fingerprints={}, training=training, scores=scores, images={},
        summary=None if collapsed else PROTOCOLS[protocol].summary(accuracies),
    )  # fmt: skip


def two(base, new):
    return {"base": base, "new": new}


def rows(table):
    return {(row[0], row[1]): row[2:] for row in table.rows}
