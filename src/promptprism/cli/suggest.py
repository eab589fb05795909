"""``promptprism suggest``."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

from promptprism.cli.options import Adapter, Json, ModelOptions, Root, argument, grouped, open_data, option
from promptprism.cli.output import Output, command
from promptprism.errors import PromptPrismError

if TYPE_CHECKING:
    from promptprism.data.images import ImageSource
    from promptprism.data.records import Dataset
    from promptprism.estimator import PromptPrism


@grouped
def suggest(
    *,
    adapter: Adapter,
    photos: Annotated[list[str] | None, argument("PHOTOS", "Photos, folders, patterns, lists.")] = None,
    count: Annotated[int, option("N", "How many photos to label.", "--next", min=1)] = 20,
    labelled: Annotated[
        str | None,
        option("DATA", "Instead: labelled images, of which those are listed whose labels look wrong."),
    ] = None,
    out: Annotated[
        Path | None, option("FILE", "CSV to fill in the labels: fit --corrections reads it.", "--out", "-o")
    ] = None,
    seed: Annotated[int, option("N", "Seed of the draw.", min=0)] = 1,
    root: Root = None,
    opening: ModelOptions,
    json_file: Json = None,
) -> None:
    """Say which photos to label next, or which labels look wrong.

    The photos to label are those that the adapter is unsure of, and unlike each other.
    """
    output = Output("suggest", json_file)
    from promptprism.cli import tables
    from promptprism.data.corrections import Correction, append
    from promptprism.data.photos import Heap
    from promptprism.files import check_place, is_there

    if (labelled is None) == (not photos):
        raise PromptPrismError("give PHOTOS to choose from, or --labelled DATA to look for wrong labels")
    if out is not None and is_there(out):
        raise PromptPrismError(f"'{out}' exists, and may hold labels: give another place with --out")
    if out is not None:
        check_place(out)
        if Heap([labelled] if labelled else photos or []).packed:
            raise PromptPrismError(
                "--out is a list for fit --corrections, which reads files, and photos in shards are none: "
                "unpack the shards into a folder, or leave out --out"
            )
    model = opening.open(adapter)
    if labelled is None:
        found = _to_label(model, photos or [], count, seed)
    else:
        known, _ = model.labelled(open_data(labelled, output, root))
        found = _label_issues(model, known)
    rows, unread = found.rows, found.unread
    if rows:
        output.show(tables.predictions(rows))
    if labelled is not None:
        output.show(f"{len(rows)} of {found.images} labels look wrong, the surest first")
    if found.learned:
        output.warn(
            f"{found.learned} photos were learned from and "
            + ("are left out" if labelled is None else "hide wrong labels of their own")
        )
    if out is not None and rows:
        append(out, [Correction(Path(r["image"]), "", r["class"], r["probability"]) for r in rows])
        goes_on = model.method_.continues and model.method_.settings.epochs
        anew = ("DATA", "--method", model.method) if model.method_.settings.learns else ("DATA",)
        start = ("--from", adapter) if goes_on else anew
        learnt = command("fit", *start, "--corrections", out, "--out", "NEW")
        output.show(f"Fill in the column label of {out}, then: {learnt}")
    output.write(
        adapter=str(adapter), images=found.images, learned_from=found.learned, suggestions=rows, unread=unread
    )
    output.end(unread)


class _Found(NamedTuple):
    """Rows for `tables.predictions`; of how many images, learned from or not; why some cannot be read."""

    rows: list[dict[str, Any]]
    images: int
    learned: int
    unread: list[str]


def _to_label(model: PromptPrism, places: list[str], count: int, seed: int) -> _Found:
    from promptprism.cli.output import watched
    from promptprism.data.photos import Heap
    from promptprism.inference.answers import answers
    from promptprism.inference.suggest import POOL, pool_of, worth_labelling

    learned = 0

    def new() -> Iterator[ImageSource]:
        nonlocal learned
        for source in watched(Heap(places), lambda: sum(1 for _ in Heap(places))):
            if model.has_seen(source):
                learned += 1
            else:
                yield source

    pool = pool_of(model.classifier_, new(), max(POOL, count))
    if not pool.images:
        raise PromptPrismError("all these photos were learned from: give others to choose from")
    chosen = worth_labelling(pool.probabilities, pool.features, count, seed)
    rows = list(answers(model.classifier_, [pool.sources[place] for place in chosen]))
    return _Found(rows, pool.images + learned, learned, pool.unread)


def _label_issues(model: PromptPrism, known: Dataset) -> _Found:
    import torch

    from promptprism.cli.output import watched
    from promptprism.data.names import name_key
    from promptprism.inference.answers import answers
    from promptprism.inference.predictor import Predictor, Unread
    from promptprism.inference.suggest import label_issues

    classifier = model.classifier_
    unread: Unread = {}
    records = [*known.train, *known.val, *known.test]
    sources = [record.source for record in records]
    shares = (
        share
        for logits in Predictor(classifier).logits(sources, unread=unread)
        for share in classifier.probabilities(logits).cpu()
    )
    probabilities = torch.stack([*watched(shares, lambda: len(sources))])
    places = [place for place in range(len(sources)) if place not in unread]
    labels = {key: place for place, key in enumerate(classifier.space.keys)}
    names = [known.class_names[records[place].label] for place in places]
    given = torch.tensor([labels[name_key(name)] for name in names])
    chosen = label_issues(probabilities, given)
    rows = answers(classifier, [sources[places[at]] for at in chosen])
    told = [{**row, "truth": names[at]} for row, at in zip(rows, chosen, strict=True)]
    learned = sum(map(model.has_seen, sources))
    return _Found(told, len(sources), learned, [*unread.values()])
