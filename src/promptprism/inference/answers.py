"""Answers for any number of images as they come, as rows: what is in an image, and how sure that is."""

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from promptprism.data.images import ImageSource
from promptprism.errors import PromptPrismError
from promptprism.evidence import Opinion
from promptprism.inference.conformal import Sets
from promptprism.inference.early import check_early, early_opinions
from promptprism.inference.leading import Leading, leading
from promptprism.inference.predictor import Predictor, Unread, check_finite
from promptprism.methods import PART, Classifier

Row = dict[str, Any]

_TOP = 5
# Images whose sources are held at once.
_CHUNK = 512


def answers(
    classifier: Classifier,
    sources: Iterable[ImageSource],
    templates: bool = False,
    margin: float | None = None,
    batch_size: int = 32,
    sets: Sets | None = None,
) -> Iterator[Row]:
    """A row for each image, in their order, looking no further ahead than a few batches.

    A row has ``image`` (what it is called), ``class``, ``probability``, ``belief`` and ``uncertainty`` (None
    without opinions), ``top`` (the most probable classes), ``disagreement``: the share of the templates whose
    own leading class is another one (None with a margin); ``templates``, what each of them says; with a
    margin ``templates_used``; with sets the ``set``, the most probable class first. Of an image that cannot
    be read it has ``image`` and ``reason``.

    Args:
        classifier: with M templates.
        sources: the images; drawn from as the answers are.
        templates: say what each template says.
        margin: stop asking templates early, see `promptprism.inference.early`.
        batch_size: images looked at together.
        sets: say which classes are in the conformal set.

    Raises:
        PromptPrismError: a margin is given beside ``templates`` or ``sets``, or for a method without
            opinions; or an answer is not finite.
    """
    if margin is not None:
        check_early(classifier, margin)
        if templates:
            raise PromptPrismError("with a margin not all templates are asked: leave out one of the two")
        if sets:
            raise PromptPrismError("sets were calibrated with all templates: leave out the margin")
    return _answers(classifier, iter(sources), templates, margin, batch_size, sets)


def _answers(
    classifier: Classifier,
    rest: Iterator[ImageSource],
    templates: bool,
    margin: float | None,
    size: int,
    sets: Sets | None,
) -> Iterator[Row]:
    while chunk := list(islice(rest, _CHUNK)):
        unread: Unread = {}
        place = 0
        for batch, views in Predictor(classifier).views(chunk, size, unread):
            rows = _rows(classifier, [chunk[i] for i in batch], views, templates, margin, sets)
            for i, row in zip(batch, rows, strict=True):
                yield from _unread(chunk, range(place, i), unread)
                yield row
                place = i + 1
        yield from _unread(chunk, range(place, len(chunk)), unread)


def _unread(sources: Sequence[ImageSource], places: range, unread: Unread) -> Iterator[Row]:
    return ({"image": str(sources[i]), "reason": unread[i]} for i in places)


@torch.no_grad()
def _rows(
    classifier: Classifier,
    sources: Sequence[ImageSource],
    views: Tensor,
    templates: bool,
    margin: float | None,
    sets: Sets | None,
) -> Iterator[Row]:
    names, classes = [str(source) for source in sources], classifier.space.names
    if len(classes) > PART and classifier.by_class and margin is None and not (templates or sets):
        yield from _rows_of(names, classes, leading(classifier, views, sources, _TOP))
        return
    fused: Opinion | None = None
    voices: list[list[Row]] = []
    disagreement = used = None
    if margin is not None:
        early = early_opinions(classifier, views, margin)
        fused, used = early.fused, early.templates_used.tolist()
        check_finite(fused.weight[None], sources)
        shares = fused.probability
    else:
        logits = classifier.logits(views)
        check_finite(logits, sources)
        shares = classifier.probabilities(logits)
        each: Opinion | None = None
        if classifier.evidential:
            each, fused = classifier.opinions(logits)
        own = logits.argmax(-1) if each is None else each.prediction
        if templates:
            voices = [
                _leaders(classes, *((logits[m].softmax(-1),) if each is None else _of(each[m])))
                for m in range(len(logits))
            ]
        disagreement = (own != shares.argmax(-1)).float().mean(0).tolist()
    leaders = _leaders(classes, shares, *(() if fused is None else _of(fused)[1:]))
    top = shares.topk(min(_TOP, len(classes)))
    tops = _tops(classes, top.indices, top.values)
    within = None if sets is None else sets.of(shares.cpu())
    for i, name in enumerate(names):
        row: Row = {"image": name, **leaders[i], "top": tops[i]}
        row["disagreement"] = None if disagreement is None else disagreement[i]
        if used is not None:
            row["templates_used"] = used[i]
        if within is not None:
            order = shares[i].argsort(descending=True, stable=True).tolist()
            row["set"] = [classes[k] for k in order if within[i, k]]
        if templates:
            row["templates"] = [voice[i] for voice in voices]
        yield row


def _rows_of(names: Sequence[str], classes: Sequence[str], found: Leading) -> Iterator[Row]:
    nothing = [None] * len(names)
    beliefs = nothing if found.belief is None else found.belief.tolist()
    uncertainties = nothing if found.uncertainty is None else found.uncertainty.tolist()
    tops = _tops(classes, found.classes, found.probability)
    parts = names, tops, beliefs, uncertainties, found.disagreement.tolist()
    for name, top, belief, uncertainty, disagreement in zip(*parts, strict=True):
        own = {"belief": belief, "uncertainty": uncertainty, "top": top, "disagreement": disagreement}
        yield {"image": name, **top[0], **own}


def _tops(classes: Sequence[str], places: Tensor, shares: Tensor) -> list[list[Row]]:
    return [
        [{"class": classes[k], "probability": share} for k, share in zip(at, of, strict=True)]
        for at, of in zip(places.tolist(), shares.tolist(), strict=True)
    ]


def _of(opinion: Opinion) -> tuple[Tensor, Tensor, Tensor]:
    return opinion.probability, opinion.belief, opinion.uncertainty


def _leaders(
    classes: Sequence[str],
    probability: Tensor,
    belief: Tensor | None = None,
    uncertainty: Tensor | None = None,
) -> list[Row]:
    """The leading class of each image by probabilities [B, K]."""
    shares, best = probability.max(-1)
    nothing = [None] * len(best)
    beliefs = nothing if belief is None else belief.gather(-1, best[:, None])[:, 0].tolist()
    uncertainties = nothing if uncertainty is None else uncertainty.tolist()
    return [
        {"class": classes[k], "probability": p, "belief": b, "uncertainty": u}
        for k, p, b, u in zip(best.tolist(), shares.tolist(), beliefs, uncertainties, strict=True)
    ]
