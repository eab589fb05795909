"""``promptprism drift``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from promptprism.cli.options import Adapter, Json, ModelOptions, argument, grouped, option
from promptprism.cli.output import Output
from promptprism.errors import PromptPrismError

if TYPE_CHECKING:
    from promptprism.data.images import ImageSource

# More photos show nothing that these do not.
_PHOTOS = 1000


@grouped
def drift(
    *,
    adapter: Adapter,
    photos: Annotated[list[str], argument("PHOTOS", "Image files, folders of them, or data.")],
    reference: Annotated[
        str | None,
        option(
            "DATA", "Photos to compare with, not learned from, instead of those the adapter's card tells of."
        ),
    ] = None,
    opening: ModelOptions,
    json_file: Json = None,
) -> None:
    """Say how far new photos are from those of the training.

    Compares how sure the answers are with the answers about held-out photos. No labels are needed.
    """
    output = Output("drift", json_file)
    from promptprism.adapter import read_card
    from promptprism.drift import LEAST
    from promptprism.inference.doubt import doubt, evenly, reference_of

    known = read_card(adapter).reference
    if reference is None and known is None:
        raise PromptPrismError(
            f"adapter '{adapter}' tells of no held-out photos, for there were fewer than {LEAST} that were "
            "not learned from: give some, --reference DATA"
        )
    sources = evenly([source for name in photos for source in _photos(name)], _PHOTOS)
    model = opening.open(adapter)
    classifier = model.classifier_
    if reference is not None:
        there = _photos(reference)
        new = [source for source in there if not model.has_seen(source)]
        if learned := len(there) - len(new):
            output.warn(
                f"{learned} of {len(there)} photos of '{reference}' were learned from, and are left out: the "
                "model is surer of these than of any new ones"
            )
        known = reference_of(classifier, f"'{reference}'", new)
    if known is None:
        raise PromptPrismError(
            f"'{reference}' has fewer than {LEAST} photos that can be read and are new: give more"
        )
    unread: dict[int, str] = {}
    found = known.shift(*doubt(classifier, sources, unread))
    for name, score in found["scores"].items():
        output.show(
            f"{name}: median {score['median']:.3f}, of the reference {score['median_reference']:.3f}; "
            f"distance {score['distance']:.2f}, p {score['p_value']:.2g}, effect {score['effect']:+.2f}"
        )
    told = "are not like" if found["shifted"] else "look like"
    output.show(f"{len(sources) - len(unread)} photos {told} the {len(known.probability)} of {known.photos}")
    output.write(
        adapter=str(adapter),
        reference={"photos": known.photos, "images": len(known.probability)},
        images=len(sources) - len(unread),
        **found,
        unread=[{"image": str(sources[place]), "reason": reason} for place, reason in unread.items()],
    )
    output.end(unread.values())


def _photos(name: str) -> list[ImageSource]:
    """An image file, all images below a folder, or those of data that would be scored on."""
    from promptprism.data.images import IMAGE_SUFFIXES
    from promptprism.data.photos import Heap
    from promptprism.data.registry import load_data

    if Path(name).is_dir() or Path(name).suffix.lower() in IMAGE_SUFFIXES:
        return list(Heap([name]))
    return [record.source for record in load_data(name).evaluation]
