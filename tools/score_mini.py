"""Score the shipped mini CLIP without any training, and check that it behaves like a CLIP.

    python tools/score_mini.py --photos DATA --out results/miniworld-zero-shot.json

Zero-shot accuracy on all MiniWorld data sets; on natural photos that it has not seen (Caltech-101 and
EuroSAT, where they lie below DATA in the field's layout); and the task misalignment: how much closer an image
is to its full description than to that of its object alone.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch

from promptprism import __version__
from promptprism.backbones import Backbone, load_backbone
from promptprism.data.images import load_image
from promptprism.data.miniworld import NAMES, REPORTED, describe, load, render, scenes
from promptprism.data.miniworld.worlds import ELEVEN, VERSION
from promptprism.data.records import Dataset
from promptprism.data.registry import load_data
from promptprism.data.views import make_views
from promptprism.evaluation.evaluate import evaluate
from promptprism.files import write_text
from promptprism.inference.predictor import Predictor
from promptprism.methods import build_method
from promptprism.prompts import encode_image, encode_text


def zero_shot(backbone: Backbone, dataset: Dataset) -> dict[str, Any]:
    """Return accuracy, chance and sizes of one data set."""
    method = build_method("zero-shot", backbone, dataset.class_names, phrase=dataset.phrase)
    result = evaluate(Predictor(method), dataset.evaluation, dataset.name, batch_size=256)
    chance = 1 / result.classes
    return {
        "classes": result.classes,
        "images": result.images,
        "chance": chance,
        "accuracy": result.accuracy,
        "times_chance": result.accuracy / chance,
    }


def task_misalignment(backbone: Backbone, name: str, count: int = 400) -> dict[str, Any]:
    """Return mean cosines of scenes with their full description and with parts of it (Fig. 1a of CDC)."""
    make = make_views(("test",), backbone.image_size, backbone.mean, backbone.std)
    whole = [s for s, _ in scenes(name, "test") if s.second is not None]
    some = whole[:: len(whole) // count][:count]
    parts = {
        "full": [describe(s) for s in some],
        "object": [describe(s, colour=False, pattern=False, second=False) for s in some],
        "background": [f"a {s.colour} {s.pattern} background." for s in some],
        "second object": [f"a small {s.second.name}." for s in some if s.second],
    }
    views = torch.stack([make(load_image(render(s)), 0, 0, i)[0] for i, s in enumerate(some)])
    with torch.no_grad():
        images = encode_image(backbone, views[None])[0]
        cosines = {
            part: (images * encode_text(backbone, backbone.tokenize(texts))[0]).sum(-1)
            for part, texts in parts.items()
        }
    return {
        "data": name,
        "scenes": len(some),
        "cosine": {p: {"mean": c.mean().item(), "std": c.std().item()} for p, c in cosines.items()},
        "full_is_closer_than_object": (cosines["full"] > cosines["object"]).double().mean().item(),
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
        "task_misalignment": task_misalignment(backbone, "mini/general"),
    }
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    write_text(arguments.out, json.dumps(result, indent=1) + "\n")
    print(json.dumps({n: round(r["accuracy"], 3) for n, r in (rows | photos).items()}, indent=1))
    print(f"mean of eleven {result['mean_of_eleven']:.3f}")


if __name__ == "__main__":
    main()
