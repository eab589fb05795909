"""What `promptprism calibrate` promises, and what comes of it: coverage, sizes, errors above a threshold.

    python -m benchmarks.conformal --csv benchmarks/results/conformal.csv

CDC learns the base classes of each data set, with the settings of mini/few-shot, or of photos/base-to-new,
but fewer epochs: what is promised does not depend on how good the model is. Again and again a half of the
test images of these
classes, drawn at random, calibrates, as the command does it. What was found is tried on the other half (part
base), and on what it promises nothing of: test images of the classes that were not learned, among these
(new), and images of the base classes from shifted domains, where there are some. Rows are written after each
data set; one that the file has is not measured again. At the end it prints the table of
docs/how-to/calibrate.md. Photos (caltech101, eurosat) lie below --root; a folder with train/ and test/ can be
given too.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import mean, stdev
from typing import Annotated, Any

import torch
import typer
from torch import Tensor

from benchmarks.measure import CsvFile, called, is_there, machine, read_rows, tell
from promptprism.backbones import as_backbone
from promptprism.data.batches import labels_of
from promptprism.data.miniworld import REPORTED, SHIFTS
from promptprism.data.names import name_key
from promptprism.data.records import Dataset, Records
from promptprism.data.registry import load_data
from promptprism.errors import PromptPrismError
from promptprism.evaluation.calibration import calibration_of
from promptprism.evaluation.protocols import PROTOCOLS, draw
from promptprism.evaluation.suites import load_suite
from promptprism.inference.conformal import Calibration, Score, check_enough
from promptprism.inference.predictor import Predictor
from promptprism.methods import Classifier, make_settings
from promptprism.training.loop import learn

Answers = tuple[Tensor, Tensor]
_KINDS: tuple[tuple[Score, bool], ...] = (("lac", False), ("aps", False), ("lac", True))
_HEAD = (
    "| data | photos of | classes | accuracy | LAC: covered | size | APS: covered | size | answered | wrong |"
)
_FIGURES = ("accuracy", "coverage", "worst_class", "size", "answered", "wrong")


def answers(classifier: Classifier, records: Records) -> Answers:
    """Log-probabilities [B, K] and labels [B] of images."""
    found = [
        classifier.probabilities(logits.cpu().double()).log()
        for logits in Predictor(classifier).logits([record.source for record in records])
    ]
    return torch.cat(found), labels_of(records)


def tried(calibration: Calibration, logits: Tensor, labels: Tensor) -> dict[str, float]:
    """Figures of answers that nothing was calibrated on; `nan` where there are none to count.

    Args:
        calibration: found on others.
        logits: log-probabilities [B, K]; of other classes only if there is one quantile for all.
        labels: [B].
    """
    shares = (logits / calibration.temperature).softmax(-1)
    confidence, answer = shares.max(-1)
    right = (answer == labels).double()
    given = right[confidence >= (2 if calibration.threshold is None else calibration.threshold)]
    within = calibration.sets.of(shares)
    covered = within.gather(-1, labels[:, None])[:, 0].double()
    return {
        "accuracy": right.mean().item(),
        "coverage": covered.mean().item(),
        "worst_class": min(covered[labels == k].mean().item() for k in {*labels.tolist()}),
        "size": within.sum(-1).double().mean().item(),
        "answered": len(given) / len(labels),
        "wrong": 1 - given.mean().item() if len(given) else math.nan,
    }


def shifted(name: str, base: Dataset) -> dict[str, Records]:
    """Images of the base classes from shifted domains, with labels into them; by name of the domain."""
    place = {name_key(one): label for label, one in enumerate(base.class_names)}
    parts = {}
    for shift in SHIFTS if name == "mini/general" else ():
        other = load_data(shift)
        keys = [name_key(one) for one in other.class_names]
        parts[shift] = tuple(
            replace(record, label=place[keys[record.label]])
            for record in other.test
            if keys[record.label] in place
        )
    return parts


def measure(
    name: str, root: Path | None, epochs: int, draws: int, alpha: float, risk: float
) -> list[dict[str, Any]]:
    """A row for each part and kind of sets: means over the draws, and deviations of the coverage."""
    dataset = load_data(name, root)
    suite = load_suite("mini/few-shot" if name.startswith("mini/") else "photos/base-to-new")
    settings = suite.methods["cdc"] | {"epochs": epochs}
    backbone = as_backbone("auto", dataset.name, None, "float32", "auto")
    protocol = PROTOCOLS["base-to-new"]
    base, records = draw(protocol, dataset, 16, 1)
    trained = learn(
        make_settings("cdc", **settings), backbone, base.label_space, records, seed=1, progress=True
    )
    own = trained.classifier(base.label_space)
    logits, labels = answers(own, base.test)
    new = protocol.scored(dataset, {})["new"]
    others = {"new": answers(trained.classifier(new.label_space), new.test)}
    others |= {part: answers(own, found) for part, found in shifted(name, base).items()}
    found: dict[tuple[str, Score, bool], list[dict[str, float]]] = {}
    for number in range(draws):
        order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(number))
        half = len(order) // 2
        here, there = order[:half], order[half:]
        for score, per_class in _KINDS:
            try:
                check_enough(labels[here][half // 4 :], alpha, base.class_names, per_class)
            except PromptPrismError:
                continue  # too few of a class, as the command would say
            calibration = calibration_of(
                logits[here], labels[here], name, risk=risk, alpha=alpha, score=score, per_class=per_class
            )
            for part, of in {"base": (logits[there], labels[there]), **others}.items():
                if per_class and part == "new":
                    continue  # its classes have no quantiles
                found.setdefault((part, score, per_class), []).append(tried(calibration, *of))
    images = {"base": len(labels) - len(labels) // 2} | {part: len(of[1]) for part, of in others.items()}
    sizes = {part: of[0].shape[1] for part, of in {"base": (logits, labels), **others}.items()}
    return [
        {
            "data": called(name),
            "backbone": backbone.name,
            "epochs": epochs,
            "part": part,
            "classes": sizes[part],
            "images": images[part],
            "calibrated_on": len(labels) // 2,
            "score": score,
            "per_class": per_class,
            "alpha": alpha,
            "risk": risk,
            "draws": len(rows),
            **{figure: _mean([row[figure] for row in rows]) for figure in _FIGURES},
            "coverage_deviation": round(stdev([row["coverage"] for row in rows]), 4) if rows[1:] else "",
            **machine(),
        }
        for (part, score, per_class), rows in found.items()
    ]


def table(rows: Sequence[Mapping[str, str]]) -> str:
    """Rows of the file as Markdown, in per cent: a line for each data set and part."""
    lines = [_HEAD, "|" + _HEAD.count(" | ") * "---|" + "---|"]
    parts: dict[tuple[str, str], dict[str, Mapping[str, str]]] = {}
    for row in rows:
        if row["per_class"] == "False":
            parts.setdefault((row["data"], row["part"]), {})[row["score"]] = row
    for (data, part), of in parts.items():
        cells = [data, part, of["lac"]["classes"], _percent(of["lac"]["accuracy"])]
        for one in (of.get(score) for score in ("lac", "aps")):
            covered = one and f"{_percent(one['coverage'])} ± {_percent(one['coverage_deviation'])}"
            cells += [covered or "–", f"{float(one['size']):.2f}" if one else "–"]
        lines.append(
            f"| {' | '.join(cells)} | {_percent(of['lac']['answered'])} | {_percent(of['lac']['wrong'])} |"
        )
    return "\n".join(lines)


def _percent(share: str) -> str:
    return f"{100 * float(share):.1f}" if share else "–"


def _mean(values: list[float]) -> float | str:
    there = [value for value in values if not math.isnan(value)]
    return round(mean(there), 4) if there else ""


def main(
    data: Annotated[list[str] | None, typer.Option(help="Instead of those reported; repeatable.")] = None,
    root: Annotated[Path | None, typer.Option(help="Folder of the photos' data sets.")] = None,
    epochs: Annotated[int, typer.Option(min=1, help="Of the learning.")] = 3,
    draws: Annotated[int, typer.Option(min=1, help="Halves that are drawn.")] = 100,
    alpha: Annotated[float, typer.Option(help="Of the sets.")] = 0.1,
    risk: Annotated[float, typer.Option(help="Of the threshold.")] = 0.05,
    csv_file: CsvFile = None,
) -> None:
    """Measure coverage, size of sets, and errors above the threshold."""
    for name in data or REPORTED:
        if is_there(csv_file, {"data": called(name)}):
            continue
        rows = measure(name, root, epochs, draws, alpha, risk)
        tell(rows, ("data", "part", "score", *_FIGURES), csv_file)
    if csv_file:
        typer.echo(table(read_rows(csv_file)))


if __name__ == "__main__":
    typer.run(main)
