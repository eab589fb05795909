"""``promptprism backbones``: which frozen models can be used."""

from dataclasses import asdict
from typing import Annotated

from promptprism.cli.options import Json, option
from promptprism.cli.output import Output


def backbones(
    like: Annotated[str | None, option("WORD", "Only names that have it in them.")] = None,
    json_file: Json = None,
) -> None:
    """List the models that fit --backbone takes.

    With their size, what prompts they can carry, and the tags of their weights.
    """
    output = Output("backbones", json_file)
    from promptprism.backbones.catalog import entries
    from promptprism.cli import tables

    rows = [
        asdict(entry) | {"text_prompts": True, "vision_prompts": entry.vision_prompts}
        for entry in entries(like)
    ]
    output.show(tables.backbones(rows))
    if len(rows) == 1 and len(rows[0]["tags"]) > 1:
        output.show(f"weights: {', '.join(rows[0]['tags'])}")
    output.write(backbones=rows)
