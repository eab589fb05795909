"""Which backbones can be used, how large they are, and what each can carry; no weights are needed."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import open_clip
import torch
from torch import nn

from promptprism.backbones.build import build_model
from promptprism.backbones.loading import SHIPPED, made, names, near_names, plain
from promptprism.backbones.text import text_tower
from promptprism.backbones.tower import TextTower, VisionTower
from promptprism.backbones.vision import vision_tower
from promptprism.errors import PromptPrismError, warn

#: Sizes of open_clip's models: measuring all takes a minute. `tools/list_backbones.py` writes it.
CATALOG = Path(__file__).with_name("catalog.json")


@dataclass(frozen=True)
class Entry:
    """A backbone that can be used.

    Attributes:
        name: for `load_backbone`.
        parameters: of both towers.
        image_size: pixels.
        image_tokens: tokens of one image that prompts may join; 0 where there are none.
        context_length: tokens of one text.
        image_read: where the image feature is read.
        text_read: where the text feature is read.
        causal: whether the text tower takes the exact shortcuts.
        tokenizer: of Hugging Face, which loading fetches; None for CLIP's own.
        needs: a package that must be installed for it.
        tags: of published weights; `shipped` where they come with the package.
    """

    name: str
    parameters: int
    image_size: int
    image_tokens: int
    context_length: int
    image_read: str
    text_read: str
    causal: bool
    tokenizer: str | None
    needs: str | None
    tags: tuple[str, ...]

    @property
    def vision_prompts(self) -> bool:
        """Whether prompts may join the image's tokens; those of texts may always."""
        return self.image_tokens > 0


def entries(like: str | None = None) -> list[Entry]:
    """The backbones that can be used, the shipped ones first.

    Args:
        like: part of the name, whatever its case and dashes.

    Raises:
        PromptPrismError: no name has that part.
    """
    known = json.loads(CATALOG.read_text(encoding="utf-8"))
    every, word = (*SHIPPED, *names()), like or ""
    wanted = [name for name in every if word.casefold() in name.casefold()]
    wanted = wanted or [name for name in every if plain(word) in plain(name)]
    if not wanted:
        near = near_names(cast(str, like))
        hint = f" Did you mean {', '.join(near)}?" if near else ""
        raise PromptPrismError(f"No backbone's name has {like!r} in it.{hint}")
    found = []
    for name in wanted:
        try:
            there = name in known
            found.append(Entry(**known[name], name=name, tags=_tags(name)) if there else describe(name))
        except PromptPrismError as error:  # another package's
            warn(f"left out: {error}")
    return found


def describe(name: str) -> Entry:
    """Build a model without storage and measure it."""
    if name in SHIPPED:
        model, _ = made(name)
        text: dict[str, Any] = {}
    else:
        config = open_clip.get_model_config(name)
        text = config["text_cfg"]
        with torch.device("meta"):
            model = build_model(config)
    vision = cast(VisionTower, vision_tower(cast(nn.Module, model.visual)))
    tower = cast(TextTower, text_tower(model, text.get("context_length")))
    tokenizer = text.get("hf_tokenizer_name")
    return Entry(
        name=name,
        parameters=sum(value.numel() for value in model.parameters()),
        image_size=vision.image_size,
        image_tokens=vision.tokens,
        context_length=tower.context_length,
        image_read=vision.reads,
        text_read=tower.reads,
        causal=tower.causal,
        tokenizer=tokenizer,
        needs="transformers" if tokenizer else None,
        tags=_tags(name),
    )


def write_catalog() -> None:
    """Measure all backbones anew."""
    rows = {}
    for name in (*SHIPPED, *names()):
        row = asdict(describe(name))
        del row["name"], row["tags"]
        rows[name] = row
    CATALOG.write_text("{\n" + ",\n".join(f'"{k}": {json.dumps(v)}' for k, v in rows.items()) + "\n}\n")


def _tags(name: str) -> tuple[str, ...]:
    return ("shipped",) if name in SHIPPED else tuple(open_clip.list_pretrained_tags_by_model(name))
