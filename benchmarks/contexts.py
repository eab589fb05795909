"""Averaging predictions over contexts, beside plain test-time augmentation of as many passes.

    python -m benchmarks.contexts --root DATA --csv benchmarks/results/contexts.csv

CDC learns all classes of each data set, with the settings of mini/few-shot, or of photos/base-to-new, but
fewer epochs. Every way but plain averages the class probabilities of as many looks at a photo, the plain one
among them:

- shifts: the photo moved by a few pixels (test-time augmentation).
- patches: the patches least attended by the class token give way to those of a training photo.
- cut out: the object, by attention and colours, before the colour of a training photo's background.
- oracle: MiniWorld draws the object again in the scene of a training photo, as
  `promptprism.causality.front_door` does.

What patches and cut out keep of the training photos takes at most 1 MiB. MiniWorld's scenes are looked at
again after do(colour). Rows are written after each run; one that the file has is not measured again. At the
end it prints the table of docs/explanation/causality.md.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev
from typing import Annotated, Any, cast

import torch
import typer
from torch import Tensor
from torch.nn import functional as F

from benchmarks.measure import CsvFile, is_there, machine, read_rows, tell
from promptprism.backbones import Backbone, Precision, as_backbone
from promptprism.backbones.block import run_block
from promptprism.causality.front_door import in_context
from promptprism.causality.interventions import do, pulled, usual_colours
from promptprism.data.batches import labels_of, plain_batches, view_batches
from promptprism.data.images import ImageSource
from promptprism.data.miniworld import Scene, scenes
from promptprism.data.miniworld.worlds import SceneSource, classes
from promptprism.data.names import LabelSpace
from promptprism.data.records import Dataset
from promptprism.data.registry import load_data
from promptprism.data.splits import base_new, few_shot
from promptprism.data.views import make_views
from promptprism.evaluation.suites import load_suite
from promptprism.inference.predictor import Predictor
from promptprism.methods import make_settings
from promptprism.methods.cdc_classifier import CdcClassifier
from promptprism.training.loop import Trained, learn

DATA = ("mini/clothing", "eurosat", "caltech101")
RHOS = (0.0, 0.9)
WAYS = ("plain", "shifts", "patches", "cut out", "oracle")
_ROOM = 2**20  # bytes that may be kept of the training photos
_CONTEXTS = 256  # of the adjustment
_SHOTS, _BATCH, _RUN = 16, 64, ("data", "rho", "seed", "passes")

# Chosen on the development sets, with zero-shot CLIP.
_REPLACED = 0.3  # share of the patches
_MOVES = ((1, 1), (-1, 1), (1, -1), (-1, -1), (2, 0), (0, 2), (2, 2))  # in 24ths of the side
_SIDE, _BEHIND, _OBJECT = 48, 0.4, 0.2  # of the small photo; shares of its pixels that are surely one of both
_NEAR = 0.06  # distance of colours that are taken for one, each channel from 0 to 1


@dataclass(frozen=True, eq=False)
class Kept:
    """What is kept of N training photos.

    Attributes:
        patches: the half that is attended least, [N, P, 3 p p], float16, normalised as the model sees them.
        colours: mean colour of the background, [N, 3], float16, from 0 to 1.
    """

    patches: Tensor
    colours: Tensor


@torch.no_grad()
def attention(backbone: Backbone, views: Tensor) -> Tensor:
    """What the class token attends to, [B, P] of views [B, 3, H, W]: mean over plain layers and heads."""
    vision = backbone.vision
    x, total = vision.stem(views)[None], torch.zeros(())
    for block in vision.blocks:
        after, (keys, _) = run_block(block, x)
        weight, bias = (part[: vision.width] for part in (block.attn.in_proj_weight, block.attn.in_proj_bias))
        query = F.linear(block.ln_1(x[:, :, :1]).to(weight.dtype), weight, bias)
        query = query.view(*query.shape[:3], vision.heads, -1).permute(0, 3, 1, 2, 4) / keys.shape[-1] ** 0.5
        shares = (query @ keys.transpose(-1, -2)).float().softmax(-1)[0, :, :, 0]
        x, total = after, total + shares.mean(0)[:, vision.first_patch :]
    return total / vision.layers


def coloured(backbone: Backbone, views: Tensor) -> Tensor:
    """Views [B, 3, H, W] as they were before they were normalised, from 0 to 1."""
    mean, std = (torch.tensor(of).view(3, 1, 1) for of in (backbone.mean, backbone.std))
    return views * std + mean


def normalised(backbone: Backbone, photos: Tensor) -> Tensor:
    """The inverse of `coloured`."""
    mean, std = (torch.tensor(of).view(3, 1, 1) for of in (backbone.mean, backbone.std))
    return (photos - mean) / std


def moved(views: Tensor, across: int, down: int) -> Tensor:
    """Views [B, 3, H, W] moved by 24ths of their side; the edge is repeated."""
    side = views.shape[-1]
    x, y = round(across * side / 24), round(down * side / 24)
    padded = F.pad(views, (max(x, 0), max(-x, 0), max(y, 0), max(-y, 0)), mode="replicate")
    return padded[..., max(-y, 0) : max(-y, 0) + side, max(-x, 0) : max(-x, 0) + side]


def cut(views: Tensor, grid: tuple[int, int]) -> Tensor:
    """Patches [B, P, 3 p p] of views [B, 3, H, W]."""
    side = views.shape[-1] // grid[0]
    return F.unfold(views, side, stride=side).transpose(1, 2)


def with_patches(views: Tensor, seen: Tensor, kept: Tensor, grid: tuple[int, int], seed: int) -> Tensor:
    """Views [B, 3, H, W] whose patches least attended, by [B, P], are some of those kept of one photo."""
    patches, generator = cut(views, grid), torch.Generator().manual_seed(seed)
    count = int(_REPLACED * patches.shape[1])
    whose = torch.randint(len(kept), (len(views), 1), generator=generator)
    which = torch.randint(kept.shape[1], (len(views), count), generator=generator)
    places = seen.argsort(-1)[:, :count, None].expand(-1, -1, patches.shape[2])
    mixed = patches.scatter(1, places, kept[whose, which].float())
    return F.fold(
        mixed.transpose(1, 2), views.shape[2:], views.shape[-1] // grid[0], stride=views.shape[-1] // grid[0]
    )


def opacity(photos: Tensor, seen: Tensor, grid: tuple[int, int]) -> Tensor:
    """How much of each pixel is the object, [B, 1, H, W] of photos [B, 3, H, W] from 0 to 1.

    Pixels of the least and of the most attended patches, by `seen` [B, P], give the colours of the background
    and of the object; each pixel goes by its colour and by the attention where it is.
    """
    small = F.adaptive_avg_pool2d(photos, _SIDE)
    shares = (seen / seen.mean(-1, keepdim=True)).view(-1, 1, *grid)
    prior = F.interpolate(shares, (_SIDE, _SIDE), mode="bilinear").flatten(1)
    colours, order = small.flatten(2).transpose(1, 2), prior.argsort(-1)
    count = order.shape[1]

    def likely(places: Tensor) -> Tensor:
        known = colours.gather(1, places.unsqueeze(-1).expand(-1, -1, 3))
        return (-((torch.cdist(colours, known) / _NEAR) ** 2) / 2).logsumexp(-1) - torch.tensor(
            known.shape[1]
        ).log()

    # A part of these pixels tells as much as all.
    behind, front = order[:, : int(_BEHIND * count) : 6], order[:, -int(_OBJECT * count) :: 3]
    odds = likely(front) - likely(behind) + 2 * prior.clamp(min=0.05).log()
    mask = odds.clamp(-8, 8).sigmoid().view(-1, 1, _SIDE, _SIDE)
    mask = F.avg_pool2d(mask, 3, 1, 1, count_include_pad=False)
    return F.interpolate(mask, photos.shape[2:], mode="bilinear")


def background(photos: Tensor, mask: Tensor) -> Tensor:
    """Mean colour [B, 3] of what `opacity` says is not the object."""
    weight = (1 - mask) ** 2
    return (photos * weight).sum((2, 3)) / weight.sum((2, 3)).clamp(min=1e-6)


def keep(backbone: Backbone, sources: Sequence[ImageSource]) -> Kept:
    """What is kept of as many of the photos, evenly over all, as there is room for."""
    vision = backbone.vision
    size = (vision.tokens - vision.first_patch) // 2 * 6 * (backbone.image_size // vision.grid[0]) ** 2 + 6
    chosen = sources[:: -(-len(sources) * size // _ROOM)]
    patches, colours = [], []
    make = make_views(("test",), backbone.image_size, backbone.mean, backbone.std)
    for _, views in view_batches(chosen, plain_batches(len(chosen), _BATCH), make):
        seen, photos = attention(backbone, views[0]), coloured(backbone, views[0])
        least = seen.argsort(-1)[:, : seen.shape[1] // 2, None]
        each = cut(views[0], vision.grid)
        patches.append(each.gather(1, least.expand(-1, -1, each.shape[2])).half())
        colours.append(background(photos, opacity(photos, seen, vision.grid)).half())
    return Kept(torch.cat(patches), torch.cat(colours))


def looks(way: str, backbone: Backbone, views: Tensor, kept: Kept, number: int) -> list[Tensor]:
    """So many further views of a batch [B, 3, H, W], besides the plain one."""
    if way == "shifts":
        return [moved(views, *move) for move in _MOVES[:number]]
    seen = attention(backbone, views)
    if way == "patches":
        return [with_patches(views, seen, kept.patches, backbone.vision.grid, at) for at in range(number)]
    photos = coloured(backbone, views)
    mask, found = opacity(photos, seen, backbone.vision.grid), []
    for at in range(number):
        whose = torch.randint(len(kept.colours), (len(views),), generator=torch.Generator().manual_seed(at))
        colour = kept.colours[whose].float()[:, :, None, None]
        found.append(normalised(backbone, mask * photos + (1 - mask) * colour))
    return found


@torch.no_grad()
def asked(classifier: CdcClassifier, views: Tensor) -> Tensor:
    """Probabilities [2, B, K] of views [B, 3, H, W], float64: as they are, and adjusted for the contexts."""
    features = classifier.seer.image_features(views[None])
    assert classifier.text is not None and classifier.adjust is not None
    each = [classifier.backbone.logits(of, classifier.text) for of in (features, classifier.adjust(features))]
    return torch.stack([classifier.probabilities(logits) for logits in each]).double()


def answers(
    classifier: CdcClassifier, sources: Sequence[ImageSource], kept: Kept, passes: int
) -> dict[str, Tensor]:
    """Probabilities [2, B, K] of photos by way, all but the oracle's; see `asked`."""
    found: dict[str, list[Tensor]] = {}
    for _, (views,) in Predictor(classifier).views(sources, _BATCH, None):
        plain = asked(classifier, views)
        found.setdefault("plain", []).append(plain)
        for way in WAYS[1:-1]:
            others = [
                asked(classifier, one) for one in looks(way, classifier.backbone, views, kept, passes - 1)
            ]
            found.setdefault(way, []).append(torch.stack([plain, *others]).mean(0))
    return {way: torch.cat(parts, dim=1) for way, parts in found.items()}


def told(shares: Tensor, labels: Tensor) -> dict[str, Any]:
    """Accuracy, and mean negative log-likelihood in nats, of probabilities [B, K]."""
    of_truth = shares.gather(1, labels[:, None])
    right = (shares.argmax(-1) == labels).double().mean().item()
    return {"accuracy": round(right, 4), "nll": round(-of_truth.log().mean().item(), 4)}


def on_scenes(
    classifier: CdcClassifier, data: str, rho: float, kept: Kept, passes: int, images: int
) -> list[dict[str, Any]]:
    """Figures by way on test scenes, and how do(colour) moves them; see `promptprism.causality`."""
    every = list(scenes(data, "test", rho))
    chosen = every[:: max(1, len(every) // images)]
    shown, labels = [scene for scene, _ in chosen], torch.tensor([label for _, label in chosen])
    other = [do(scene, "colour", classes(data), f"{data} {at}") for at, scene in enumerate(shown)]
    contexts = [scene for scene, _ in scenes(data, "train", rho)]
    drawn = [
        [in_context(scene, contexts, f"{draw} {at}") for at, scene in enumerate(shown)]
        for draw in range(passes - 1)
    ]
    before, after = (answers(classifier, _sources(some), kept, passes) for some in (shown, other))
    again = [_plain(classifier, _sources(some)) for some in drawn]
    # Drawn in the same contexts, a scene is the same whatever its colour was.
    for found in (before, after):
        found["oracle"] = torch.stack([found["plain"], *again]).mean(0)
    usual, rows = usual_colours(data), []
    for way, both in before.items():
        flips = (both.argmax(-1) != after[way].argmax(-1)).double().mean(-1).tolist()
        pull = pulled(both, after[way], other, usual).tolist()
        for at, adjusted in enumerate((False, True)):
            moved = {"flips": round(flips[at], 4), "pull": round(pull[at], 4)}
            rows.append({"part": "all", "way": way, "adjusted": adjusted} | told(both[at], labels) | moved)
    return rows


def _sources(shown: Sequence[Scene]) -> list[ImageSource]:
    return [SceneSource(scene) for scene in shown]


def _plain(classifier: CdcClassifier, sources: Sequence[ImageSource]) -> Tensor:
    batches = Predictor(classifier).views(sources, _BATCH, None)
    return torch.cat([asked(classifier, views) for _, (views,) in batches], dim=1)


def on_photos(
    trained: Trained, parts: Mapping[str, Dataset], kept: Kept, passes: int, images: int
) -> list[dict[str, Any]]:
    """Figures by way on test photos of base and new classes."""
    rows = []
    for part, data in parts.items():
        each = max(1, images // len(data.class_names))
        records = few_shot(data.test, each, 1, allow_fewer=True)
        classifier = _classifier(trained, data.label_space)
        found = answers(classifier, [record.source for record in records], kept, passes)
        for way, both in found.items():
            for adjusted, shares in zip((False, True), both, strict=True):
                figures = told(shares, labels_of(records)) | {"flips": "", "pull": ""}
                rows.append({"part": part, "way": way, "adjusted": adjusted} | figures)
    return rows


def _classifier(trained: Trained, space: LabelSpace) -> CdcClassifier:
    return cast(CdcClassifier, trained.classifier(space))


def measure(
    run: Mapping[str, Any], epochs: int, images: int, precision: Precision, root: Path | None
) -> list[dict[str, Any]]:
    """Train once; a row for each way, adjusted and not. The run is of `_RUN`."""
    name, rho, seed, passes = (run[head] for head in _RUN)
    world = rho != ""
    dataset = load_data(f"{name}@{rho}" if world else name, root)
    settings = load_suite("mini/few-shot" if world else "photos/base-to-new").methods["cdc"]
    settings = settings | {"epochs": epochs, "contexts": _CONTEXTS}
    backbone = as_backbone("auto", dataset.name, None, precision, "cpu")
    base = dataset if world else base_new(dataset)[0]
    learned = few_shot(base.train, _SHOTS, seed)
    trained = learn(make_settings("cdc", **settings), backbone, base.label_space, learned, seed=seed)
    kept = keep(backbone, [record.source for record in learned])
    if world:
        classifier = _classifier(trained, base.label_space)
        rows = on_scenes(classifier, name, float(rho), kept, passes, images)
    else:
        parts = dict(zip(("base", "new"), base_new(dataset), strict=True))
        rows = on_photos(trained, parts, kept, passes, images)
    facts: dict[str, Any] = {
        "epochs": epochs,
        "images": images,
        "precision": precision,
        "contexts": _CONTEXTS,
    }
    facts["collapsed"] = trained.training.collapsed or ""
    return [dict(run) | row | facts | machine() for row in rows]


def table(rows: Sequence[Mapping[str, str]]) -> str:
    """Rows of the file as Markdown: mean and deviation over seeds, in per cent, NLL in nats."""
    lines = [_HEAD, "|---|---|---|---|---:|---:|---:|---:|---:|---:|---:|---:|"]
    parts: dict[tuple[str, ...], list[Mapping[str, str]]] = {}
    for row in rows:
        parts.setdefault(tuple(row[head] for head in ("data", "part", "rho", "way")), []).append(row)
    for head, of in parts.items():
        both = [[row for row in of if row["adjusted"] == adjusted] for adjusted in ("False", "True")]
        cells = [_told([row[name] for row in own], times) for name, times in _FIGURES.items() for own in both]
        lines.append(f"| {' | '.join([part or '–' for part in head] + cells)} |")
    return "\n".join(lines)


_FIGURES = {"accuracy": 100, "nll": 1, "flips": 100, "pull": 100}
_HEAD = (
    "| data | classes | rho | way | accuracy | adjusted | NLL | adjusted |"
    " flips | adjusted | pull | adjusted |"
)


def _told(values: Sequence[str], times: int) -> str:
    if not all(values):
        return "–"
    numbers, digits = [times * float(value) for value in values], 1 if times > 1 else 2
    spread = f" ± {stdev(numbers):.{digits}f}" if numbers[1:] else ""
    return f"{fmean(numbers):.{digits}f}{spread}"


def main(
    data: Annotated[list[str] | None, typer.Option(help="Instead of those reported; repeatable.")] = None,
    root: Annotated[Path | None, typer.Option(help="Folder of the photos' data sets.")] = None,
    rhos: Annotated[list[float] | None, typer.Option("--rho", help="Of MiniWorld; repeatable.")] = None,
    seeds: Annotated[int, typer.Option(min=1, help="How many, from 1.")] = 3,
    passes: Annotated[int, typer.Option(min=2, max=len(_MOVES) + 1, help="Looks at each photo.")] = 4,
    epochs: Annotated[int, typer.Option(min=1, help="Of the learning.")] = 2,
    images: Annotated[int, typer.Option(min=1, help="Test photos, as many of each class.")] = 112,
    precision: Annotated[Precision, typer.Option(help="Of the matrix products.")] = "bfloat16",
    csv_file: CsvFile = None,
) -> None:
    """Measure what an average over contexts is worth."""
    for seed in range(1, seeds + 1):
        for name in data or DATA:
            for rho in (rhos or RHOS) if name.startswith("mini/") else [None]:
                told_rho = "" if rho is None else f"{rho:g}"
                run = dict(zip(_RUN, (name, told_rho, seed, passes), strict=True))
                if is_there(csv_file, run):
                    continue
                rows = measure(run, epochs, images, precision, root)
                tell(rows, (*_RUN, "part", "way", "adjusted", *_FIGURES), csv_file)
    if csv_file:
        typer.echo(table(read_rows(csv_file)))


if __name__ == "__main__":
    typer.run(main)
