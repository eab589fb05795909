r"""At how many photos `promptprism drift` finds a shift, and how often it cries wolf without one.

    promptprism fit mini/general --method zero-shot --backbone mini --out general
    python -m benchmarks.drift general mini/general mini/general-v2 mini/general-sketch \
        mini/general-adversarial mini/general-rendition --csv benchmarks/results/drift.csv
    promptprism fit DATA/flowers12/train --shots 16 --seed 1 --out flowers12
    python -m benchmarks.drift flowers12 DATA/flowers12/test eurosat --root DATA \
        --csv benchmarks/results/drift.csv

The adapter answers once for at most 1,000 photos of each data set. Of these answers so many are drawn, again
and again, and compared with the reference that the adapter's card keeps: `found` is the share of draws that
are called shifted. The first data set is like the reference, so that `found` is its rate of false alarms.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from benchmarks.measure import CsvFile, called, tell
from promptprism import load_data, load_model
from promptprism.drift import Reference
from promptprism.errors import PromptPrismError
from promptprism.inference.doubt import doubt, evenly

PHOTOS = (20, 50, 100, 200, 500)
_MOST = 1000


def rows(
    reference: Reference, data: str, answers: tuple[list[float], list[float] | None], draws: int
) -> list[dict[str, Any]]:
    """A row for each number of photos: the share of draws that are called shifted, and the effect of all."""
    probability, uncertainty = (None if each is None else np.array(each) for each in answers)
    assert probability is not None
    whole = reference.shift(probability.tolist(), None if uncertainty is None else uncertainty.tolist())
    generator, found = np.random.default_rng(0), []
    for count in (*(one for one in PHOTOS if one < len(probability)), len(probability)):
        shifted, times = 0, draws if count < len(probability) else 1  # all of them can be drawn once
        for _ in range(times):
            some = generator.choice(len(probability), count, replace=False)
            new = None if uncertainty is None else uncertainty[some].tolist()
            shifted += reference.shift(probability[some].tolist(), new)["shifted"]
        found.append(
            {
                "data": data,
                "reference": len(reference.probability),
                "photos": count,
                "draws": times,
                "found": round(shifted / times, 4),
                "distance": round(max(one["distance"] for one in whole["scores"].values()), 3),
                "effect": round(whole["scores"]["probability"]["effect"], 3),
            }
        )
    return found


def table(rows: Sequence[Mapping[str, str]]) -> str:
    """Markdown of the share of draws that are called shifted, in %."""
    figures: dict[tuple[str, ...], dict[int, str]] = {}
    for row in rows:
        found = figures.setdefault(tuple(row[name] for name in ("adapter", "data", "distance", "effect")), {})
        found[int(row["photos"])] = f"{100 * float(row['found']):.0f}"
    lines = [
        " | ".join([*key, *(found.get(count, "–") for count in PHOTOS)]) for key, found in figures.items()
    ]
    columns = ["adapter", "photos of", "distance", "effect", *map(str, PHOTOS)]
    head = [" | ".join(columns), " | ".join("---" for _ in columns)]
    return "\n".join(f"| {line} |" for line in [*head, *lines])


def main(
    adapter: Annotated[Path, typer.Argument(help="Fitted on the first data set, or on data like it.")],
    data: Annotated[list[str], typer.Argument(help="First what is like the reference, then what is not.")],
    root: Annotated[Path | None, typer.Option(help="Folder that holds the data sets' folders.")] = None,
    draws: Annotated[int, typer.Option(min=1, help="Of each number of photos.")] = 500,
    csv_file: CsvFile = None,
) -> None:
    """Measure at how many photos a shift is found."""
    model = load_model(adapter)
    if model.reference_ is None:
        raise PromptPrismError(f"adapter '{adapter}' tells of no held-out photos: fit it with fewer shots")
    for name in data:
        photos = evenly([record.source for record in load_data(name, root).evaluation], _MOST)
        shown = "/".join(Path(name).parts[-2:])
        made = [
            {"adapter": called(str(adapter)), **row}
            for row in rows(model.reference_, shown, doubt(model.classifier_, photos, {}), draws)
        ]
        tell(made, made[0], csv_file)


if __name__ == "__main__":
    typer.run(main)
