"""``promptprism suggest``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from promptprism.cli.options import (
    Adapter,
    Json,
    ModelOptions,
    Root,
    Seed,
    argument,
    grouped,
    open_data,
    option,
)
from promptprism.cli.output import Output
from promptprism.errors import PromptPrismError

if TYPE_CHECKING:
    from promptprism.data.images import ImageSource
    from promptprism.estimator import PromptPrism


@grouped
def suggest(
    *,
    adapter: Adapter,
    photos: Annotated[list[str] | None, argument("PHOTOS...", "Photos, folders, patterns, lists.")] = None,
    count: Annotated[int, option("N", "How many photos to label.", "--next", min=1)] = 20,
    labelled: Annotated[
        str | None,
        option("DATA", "Instead: labelled images, of which those are listed whose labels look wrong."),
    ] = None,
    out: Annotated[
        Path | None, option("FILE", "CSV to fill in the labels: fit --corrections reads it.", "--out", "-o")
    ] = None,
    seed: Seed = 1,
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
    from promptprism.files import is_there

    if (labelled is None) == (not photos):
        raise PromptPrismError("give PHOTOS to choose from, or --labelled DATA to look for wrong labels")
    if out is not None and is_there(out):
        raise PromptPrismError(f"'{out}' exists, and may hold labels: give another place with --out")
    model = opening.open(adapter)
    if labelled is None:
        sources, truths = list(Heap(photos or ())), None
    else:
        dataset = open_data(labelled, output, root)
        known, _ = model.labelled(dataset)
        records = [*known.train, *known.val, *known.test]
        sources, truths = [r.source for r in records], [known.class_names[r.label] for r in records]
    rows, unread, learned = suggestions(model, sources, truths, count, seed)
    output.show(tables.predictions(rows))
    if truths is not None:
        output.show(f"{len(rows)} of {len(sources)} labels look wrong, the surest first")
    if learned:
        output.warn(
            f"{learned} photos were learned from and "
            + ("are left out" if truths is None else "hide wrong labels of their own")
        )
    if out is not None:
        append(out, [Correction(Path(r["image"]), "", r["class"], r["probability"]) for r in rows])
        output.show(
            f"Fill in the column label of {out}, then: promptprism fit --from {adapter} "
            f"--corrections {out} --out NEW"
        )
    output.write(
        adapter=str(adapter),
        images=len(sources),
        learned_from=learned,
        suggestions=rows,
        unread=unread,
    )
    output.end(unread)


def suggestions(
    model: PromptPrism, sources: list[ImageSource], truths: list[str] | None, count: int, seed: int
) -> tuple[list[dict[str, Any]], list[str], int]:
    """Rows for `tables.predictions`, why some photos cannot be read, and how many were learned from."""
    import torch

    from promptprism.data.names import name_key
    from promptprism.inference.answers import answers
    from promptprism.inference.suggest import label_issues, look, worth_labelling

    seen = _seen(model, sources)
    if truths is None:
        sources = [source for place, source in enumerate(sources) if place not in seen]
        if not sources:
            raise PromptPrismError("all these photos were learned from: give others to choose from")
    found = look(model.classifier_, sources)
    if truths is None:
        chosen = worth_labelling(found.probabilities, found.features, count, seed)
    else:
        labels = {key: place for place, key in enumerate(model.classifier_.space.keys)}
        given = torch.tensor([labels[name_key(truths[place])] for place in found.places])
        chosen = label_issues(found.probabilities, given)
    places = [found.places[at] for at in chosen]
    rows = list(answers(model.classifier_, [sources[place] for place in places]))
    if truths is not None:
        rows = [{**row, "truth": truths[place]} for row, place in zip(rows, places, strict=True)]
    return rows, [*found.unread.values()], len(seen)


def _seen(model: PromptPrism, sources: list[ImageSource]) -> set[int]:
    """Places of photos that were learned from."""
    from promptprism.data.content import picture_id

    known = model.data_.seen if model.data_ else frozenset()
    found = set()
    for place, source in enumerate(sources) if known else ():
        try:
            if picture_id(source) in known:
                found.add(place)
        except PromptPrismError:
            continue  # it is told of when it is looked at
    return found
