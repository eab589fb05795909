"""Score the shipped mini CLIP without any training, and check that it behaves like a CLIP.

    python tools/score_mini.py --photos DATA --out results/miniworld-zero-shot.json

Zero-shot accuracy on all MiniWorld data sets; on natural photos that it has not seen (Caltech-101 and
EuroSAT, where they lie below DATA in the field's layout); and the task misalignment: how much closer an image
is to its full description than to that of its object alone.
"""

import argparse
import json
from pathlib import Path
from typing import Any

from promptprism import __version__
from promptprism.backbones import Backbone, load_backbone
from promptprism.causality.misalignment import task_misalignment
from promptprism.data.miniworld import NAMES, REPORTED, load
from promptprism.data.miniworld.worlds import ELEVEN, VERSION
from promptprism.data.records import Dataset
from promptprism.data.registry import load_data
from promptprism.evaluation.evaluate import evaluate
from promptprism.files import write_text
from promptprism.inference.predictor import Predictor
from promptprism.methods import ZeroShot


def zero_shot(backbone: Backbone, dataset: Dataset) -> dict[str, Any]:
    """Return accuracy, chance and sizes of one data set."""
    classifier = ZeroShot(backbone).classifier(dataset.label_space)
    result = evaluate(Predictor(classifier), dataset.evaluation, dataset.name, batch_size=256)
    chance = 1 / result.classes
    return {
        "classes": result.classes,
        "images": result.images,
        "chance": chance,
        "accuracy": result.accuracy,
        "times_chance": result.accuracy / chance,
    }


def main() -> None:
    """Run the recipe."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--photos", type=Path, help="folder with caltech-101/ and eurosat/")
    parser.add_argument("--backbone", default="mini")
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    backbone = load_backbone(arguments.backbone)
    rows = {name: zero_shot(backbone, load(name)) for name in NAMES}
    photos = {
        name: zero_shot(backbone, load_data(name, arguments.photos))
        for name in (("caltech101", "eurosat") if arguments.photos else ())
    }
    result = {
        "command": f"python tools/score_mini.py --photos DATA --out {arguments.out}",
        "version": __version__,
        "miniworld": VERSION,
        "fingerprint": backbone.fingerprint,
        "logit_scale": backbone.logit_scale,
        "mean_of_eleven": sum(rows[n]["accuracy"] for n in ELEVEN) / len(ELEVEN),
        "mean_of_reported": sum(rows[n]["accuracy"] for n in REPORTED) / len(REPORTED),
        "data": rows,
        "photos_never_seen": photos,
        "task_misalignment": task_misalignment(backbone).summary(),
    }
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    write_text(arguments.out, json.dumps(result, indent=1) + "\n")
    print(json.dumps({n: round(r["accuracy"], 3) for n, r in (rows | photos).items()}, indent=1))
    print(f"mean of eleven {result['mean_of_eleven']:.3f}")


if __name__ == "__main__":
    main()
