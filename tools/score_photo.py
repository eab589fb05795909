"""Score the shipped model for photos, part by part, and check that it behaves like a CLIP.

    python tools/score_photo.py --data DATA --out results/photo-zero-shot.json [PART ...]

Parts: `zero-shot` (Caltech-101, EuroSAT, 12 flowers, and one photo of each ImageNet class), `captions`
(photos of Flickr8k that nothing was learned from: retrieval, and the task misalignment), `flowers` (CDC and
ridge regression on the stem's features from 16 images of each of 12 species), `coop` and
`maple` (the data misalignment: base and new classes over epochs), `speed`. Parts that the file has and that
are not asked for stay.
"""

from __future__ import annotations

import argparse
import io
import json
import tarfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from promptprism import __version__
from promptprism.backbones import Backbone, load_backbone
from promptprism.data.images import load_image
from promptprism.data.records import Record
from promptprism.data.registry import load_data
from promptprism.data.splits import base_new, few_shot
from promptprism.data.views import make_views
from promptprism.evaluation.evaluate import evaluate
from promptprism.files import write_text
from promptprism.inference import Predictor
from promptprism.methods import Method, build_method
from promptprism.prompts import encode_image, encode_text
from promptprism.training.loop import train

PHRASE = "a photo of a {}."
HELD_OUT = 400


def views(backbone: Backbone, sources: list[Any]) -> Tensor:
    """Plain views [N, 3, H, W]."""
    make = make_views(("test",), backbone.image_size, backbone.mean, backbone.std)
    return torch.stack([make(load_image(s), 0, 0, i)[0] for i, s in enumerate(sources)])


@torch.no_grad()
def image_features(backbone: Backbone, sources: list[Any]) -> Tensor:
    """Unit features [N, D] of images."""
    parts = [sources[i : i + 64] for i in range(0, len(sources), 64)]
    return torch.cat([encode_image(backbone, views(backbone, part)[None])[0] for part in parts])


@torch.no_grad()
def text_features(backbone: Backbone, texts: list[str]) -> Tensor:
    """Unit features [N, D] of texts."""
    return encode_text(backbone, backbone.tokenize(texts))[0]


def read(archive: Path, names: list[str] | None = None) -> dict[str, Image.Image]:
    """Photos of an archive by file name, in the order of names."""
    found = {}
    with tarfile.open(archive) as tar:
        for member in tar:
            name = Path(member.name).name
            if name.endswith(".jpg") and (names is None or name in names):
                file = tar.extractfile(member)
                assert file is not None
                found[name] = Image.open(io.BytesIO(file.read())).convert("RGB")
    return dict(sorted(found.items()))


def zero_shot(backbone: Backbone, data: Path) -> dict[str, Any]:
    """Accuracy without any training."""
    rows: dict[str, Any] = {}
    for name in ("caltech101", "eurosat", "flowers12"):
        dataset = load_data(data / name if name == "flowers12" else name, data)
        method = build_method("zero-shot", backbone, dataset.class_names, phrase=PHRASE)
        result = evaluate(Predictor(method), dataset.evaluation, name, batch_size=64)
        rows[name] = {"classes": result.classes, "images": result.images, "accuracy": result.accuracy}
        rows[name]["ece"] = result.metrics["cal/ece"]
    lines = (data / "metadata/splits/imagenet_classnames.txt").read_text().strip().splitlines()
    text = text_features(backbone, [PHRASE.format(line[10:]) for line in lines])
    photos = read(data / "photos/imagenet-1-per-class.tar")
    logits = backbone.logit_scale * image_features(backbone, list(photos.values())) @ text.T
    confidence, answer = logits.softmax(-1).max(-1)
    right = (answer == torch.arange(1000)).float().mean().item()
    rows["imagenet, one photo a class"] = {
        "classes": 1000,
        "images": 1000,
        "accuracy": right,
        "mean_confidence": confidence.mean().item(),
    }
    return rows


def captions(backbone: Backbone, data: Path) -> dict[str, Any]:
    """Retrieval, and cosines of photos with their caption and with parts of it (fig. 1a of CDC)."""
    with tarfile.open(data / "photos/flickr8k.tar") as tar:
        file = next(tar.extractfile(m) for m in tar if m.name.endswith("captions.json"))
        assert file is not None
        every = dict(sorted(json.load(file).items()))
    order = torch.randperm(len(every), generator=torch.Generator().manual_seed(1))[:HELD_OUT].sort().values
    names = [list(every)[i] for i in order.tolist()]
    images = image_features(backbone, list(read(data / "photos/flickr8k.tar", names).values()))
    texts = [min(every[n], key=lambda c: (len(c) > 120, every[n].index(c))) for n in names]
    words = [t.rstrip(" .").split() for t in texts]
    kinds = {
        "full": texts,
        "first half": [" ".join(w[: (len(w) + 1) // 2]) for w in words],
        "second half": [" ".join(w[(len(w) + 1) // 2 :]) for w in words],
        "another photo's": texts[1:] + texts[:1],
    }
    features = {k: text_features(backbone, t) for k, t in kinds.items()}
    cosine = {k: (images * f).sum(-1) for k, f in features.items()}
    ranks = (images @ features["full"].T).argsort(-1, descending=True)
    place = (ranks == torch.arange(len(names))[:, None]).int().argmax(-1)
    return {
        "photos": len(names),
        "right caption first": (place == 0).float().mean().item(),
        "right caption in five": (place < 5).float().mean().item(),
        "cosine": {k: c.mean().item() for k, c in cosine.items()},
        "full_is_closer": {
            k: (cosine["full"] > c).float().mean().item() for k, c in cosine.items() if k != "full"
        },
    }


def flowers(backbone: Backbone, data: Path) -> dict[str, Any]:
    """CDC with its defaults, start to end, and ridge regression on the stem's pooled features."""
    began = time.perf_counter()
    dataset = load_data(data / "flowers12")
    learned = few_shot(dataset.train, 16, seed=1)
    method = build_method("cdc", backbone, dataset.class_names)
    train(method, learned)
    result = evaluate(Predictor(method), dataset.test, "flowers12")
    seconds = time.perf_counter() - began

    @torch.no_grad()
    def pooled(records: tuple[Record, ...]) -> Tensor:
        parts = [records[i : i + 64] for i in range(0, len(records), 64)]
        trunk = backbone.visual.trunk
        dtype = trunk.head.weight.dtype
        maps = [trunk(views(backbone, [r.source for r in p]).to(dtype))[1].float() for p in parts]
        return F.normalize(torch.cat(maps), dim=-1)

    x, y = pooled(learned), torch.tensor([r.label for r in learned])
    centre = x.mean(0)
    x = x - centre
    target = F.one_hot(y).float() - 1 / len(dataset.class_names)
    weights = torch.linalg.solve(x.T @ x + 0.1 * torch.eye(x.shape[1]), x.T @ target)
    answers = ((pooled(dataset.test) - centre) @ weights).argmax(-1)
    truth = torch.tensor([r.label for r in dataset.test])
    return {
        "shots": 16,
        "seed": 1,
        "images": len(dataset.test),
        "cdc": result.accuracy,
        "cdc_ece": result.metrics["cal/ece"],
        "cdc_seconds": seconds,
        "ridge": (answers == truth).float().mean().item(),
    }


def drift(method_name: str, backbone: Backbone, data: Path) -> dict[str, Any]:
    """Accuracy on base and on new classes of the flowers before training and after each fifth epoch."""
    base, new = base_new(load_data(data / "flowers12"))
    learned = few_shot(base.train, 16, seed=1)
    method = build_method(method_name, backbone, base.class_names, epochs=20, batch_size=16)
    curve: list[dict[str, float]] = []

    def look(epoch: int, model: Method) -> None:
        if epoch % 5 == 4 or epoch < 0:
            row: dict[str, float] = {"epoch": epoch + 1}
            for part, space in (("base", base), ("new", new)):
                model.set_classes(space.class_names)
                row[part] = evaluate(Predictor(model), space.test, part).accuracy
            model.set_classes(base.class_names)
            curve.append(row)

    look(-1, method)
    train(method, learned, after_epoch=look)
    return {"curve": curve}


def speed(backbone: Backbone, _data: Path) -> dict[str, Any]:
    """Photos a second, batches of 16, of the stem alone and of CDC with four templates: medians of ten."""
    method = build_method("cdc", backbone, [f"thing {i}" for i in range(12)])
    images = torch.randn(16, 3, backbone.image_size, backbone.image_size)
    with torch.inference_mode():
        text = method.text_features()
        runs: dict[str, Callable[[], Any]] = {
            "stem": lambda: backbone.visual.stem(images),
            "cdc": lambda: method.probabilities(method(images[None], text)),
        }
        seconds: dict[str, list[float]] = {name: [] for name in runs}
        for _ in range(12):
            for name, run in runs.items():
                began = time.perf_counter()
                run()
                seconds[name].append(time.perf_counter() - began)
    median = {name: sorted(times[2:])[5] for name, times in seconds.items()}
    rates = {f"{name}, photos a second": 16 / value for name, value in median.items()}
    return rates | {"times the stem": median["cdc"] / median["stem"], "threads": torch.get_num_threads()}


PARTS: dict[str, Callable[[Backbone, Path], dict[str, Any]]] = {
    "zero-shot": zero_shot,
    "captions": captions,
    "flowers": flowers,
    "coop": partial(drift, "coop"),
    "maple": partial(drift, "maple"),
    "speed": speed,
}


def main() -> None:
    """Run the recipe."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "parts", nargs="*", metavar="PART", help=f"some of {', '.join(PARTS)}; by default all"
    )
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--precision", choices=("float32", "bfloat16"), default="bfloat16")
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    backbone = load_backbone("photo", precision=arguments.precision)
    for part in arguments.parts or PARTS:
        row = PARTS[part](backbone, arguments.data)
        print(part, json.dumps(row, indent=1), flush=True)
        # Another process may have scored another part meanwhile.
        kept = json.loads(arguments.out.read_text()) if arguments.out.exists() else {}
        facts = {
            "command": f"python tools/score_photo.py --data DATA --out {arguments.out}",
            "version": __version__,
            "fingerprint": backbone.fingerprint,
            "logit_scale": backbone.logit_scale,
        }
        same = kept if kept.get("fingerprint") == backbone.fingerprint else {}
        parts = same.get("parts", {}) | {part: row | {"precision": arguments.precision}}
        write_text(arguments.out, json.dumps(facts | {"parts": parts}, indent=1) + "\n")


if __name__ == "__main__":
    main()
