"""Score the shipped model for photos, part by part, and check that it behaves like a CLIP.

    python tools/score_photo.py --data DATA --out results/photo-zero-shot.json [PART ...]

Parts: `zero-shot` (Caltech-101, EuroSAT, 12 flowers, and one photo of each ImageNet class), `captions`
(photos of Flickr8k that nothing was learned from: retrieval, and the task misalignment), `flowers` (CDC and
ridge regression on the stem's features from 16 images of each of 12 species), `coop` and
`maple` (the data misalignment: base and new classes over epochs), `speed`. Parts that the file has and that
are not asked for stay.
"""

import argparse
import io
import json
import tarfile
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from photo_ingredients import captions as flickr_captions
from photo_teacher import HELD_OUT, PHRASE, imagenet_names
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from promptprism import PromptPrism, __version__, load_backbone, load_data
from promptprism.backbones import Backbone
from promptprism.backbones.photo import PhotoCLIP
from promptprism.causality.misalignment import accuracy_over_epochs
from promptprism.cost.speed import class_names, draw, interleave, prediction
from promptprism.data.batches import plain_batches, view_batches
from promptprism.data.content import distinct
from promptprism.data.images import ImageSource
from promptprism.data.names import LabelSpace
from promptprism.data.records import Records
from promptprism.data.splits import few_shot
from promptprism.data.views import make_views
from promptprism.evaluation.suites import Cell
from promptprism.files import write_text
from promptprism.methods import build_method, make_settings
from promptprism.prompts import encode_image, encode_text


def views(backbone: Backbone, sources: Sequence[ImageSource]) -> Iterator[Tensor]:
    """Plain views [1, B, 3, H, W], batch by batch."""
    make = make_views(("test",), backbone.image_size, backbone.mean, backbone.std)
    for _, some in view_batches(sources, plain_batches(len(sources), 64), make):
        yield some.to(backbone.device)


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
    model = PromptPrism("zero-shot", backbone, phrase=PHRASE)
    for name in ("caltech101", "eurosat", "flowers12"):
        dataset = load_data(data / name if name == "flowers12" else name, data)
        result = model.fit(dataset).evaluate(dataset)
        rows[name] = {"classes": result.classes, "images": result.images, "accuracy": result.accuracy}
        rows[name]["ece"] = result.metrics["cal/ece"]
    # Two classes are called alike, and told apart by their ids only.
    names = [f"{name} [n{offset}]" for offset, name in zip(*imagenet_names(data), strict=True)]
    photos = list(read(data / "photos/imagenet-1-per-class.tar").values())
    probabilities = model.fit(photos, range(1000), names).predict_proba(photos)
    rows["imagenet, one photo a class"] = {
        "classes": 1000,
        "images": 1000,
        "accuracy": float((probabilities.argmax(-1) == range(1000)).mean()),
        "mean_confidence": float(probabilities.max(-1).mean()),
    }
    return rows


@torch.no_grad()
def captions(backbone: Backbone, data: Path) -> dict[str, Any]:
    """Retrieval, and cosines of photos with their caption and with parts of it (fig. 1a of CDC)."""
    every = dict(flickr_captions(data))
    order = torch.randperm(len(every), generator=torch.Generator().manual_seed(1))[:HELD_OUT].sort().values
    names = [list(every)[i] for i in order.tolist()]
    photos = list(read(data / "photos/flickr8k.tar", names).values())
    images = torch.cat([encode_image(backbone, some)[0] for some in views(backbone, photos)]).cpu()
    texts = [min(every[n], key=lambda c: (len(c) > 120, every[n].index(c))) for n in names]
    words = [t.rstrip(" .").split() for t in texts]
    kinds = {
        "full": texts,
        "first half": [" ".join(w[: (len(w) + 1) // 2]) for w in words],
        "second half": [" ".join(w[(len(w) + 1) // 2 :]) for w in words],
        "another photo's": texts[1:] + texts[:1],
    }
    features = {k: encode_text(backbone, backbone.tokenize(t))[0].cpu() for k, t in kinds.items()}
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
    dataset = distinct(load_data(data / "flowers12"))
    result = PromptPrism("cdc", backbone, shots=16, seed=1).fit(dataset).evaluate(dataset)
    seconds = time.perf_counter() - began
    learned = few_shot(dataset.train, 16, seed=1)
    trunk = cast(PhotoCLIP, backbone.model).visual.trunk

    @torch.no_grad()
    def pooled(records: Records) -> Tensor:
        batches = views(backbone, [record.source for record in records])
        return F.normalize(
            torch.cat([trunk(v[0].to(backbone.dtype))[1].float().cpu() for v in batches]), dim=-1
        )

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


def drift(method: str, backbone: Backbone, data: Path) -> dict[str, Any]:
    """Accuracy on base and on new classes of the flowers before training and after each fifth epoch.

    Of prompts alone: offsets are the learned classes' own.
    """
    dataset = load_data(data / "flowers12")
    settings = make_settings(method, preset="paper", epochs=20, batch_size=16, class_offsets=False)
    cell = Cell(protocol="base-to-new", method=method, settings=settings, data=dataset.name, shots=16, seed=1)
    found = accuracy_over_epochs(cell, backbone, dataset)
    rows = enumerate(zip(found.base, found.new, strict=True))
    return {"curve": [{"epoch": i, "base": base, "new": new} for i, (base, new) in rows if i % 5 == 0]}


def speed(backbone: Backbone, _data: Path) -> dict[str, Any]:
    """Photos a second, batches of 16, of the stem alone and of CDC with four templates: medians of ten."""
    classifier = build_method(make_settings("cdc"), backbone).classifier(LabelSpace(tuple(class_names(12))))
    images, _ = draw(backbone, 1, 16, 12)
    stem = torch.no_grad()(partial(backbone.vision.stem, images[0]))
    found = interleave({"stem": stem, "cdc": prediction(classifier, images)}, 10, device=backbone.device)
    median = {name: samples.median for name, samples in found.items()}
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
