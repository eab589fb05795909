"""How many floating-point operations a step cannot do without."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from promptprism.backbones import Backbone
from promptprism.prompts.text import shared_length


def image_flops(backbone: Backbone, prompts: int = 0) -> float:
    """Operations of one image under one template through the vision tower, forward (35.5e9 for ViT-B/16)."""
    patch = backbone.visual.patch_size
    rows, columns = (side // size for side, size in zip(backbone.visual.image_size, patch, strict=True))
    patches = rows * columns
    embedding: float = 2 * patches * 3 * patch[0] * patch[1] * backbone.vision_width
    return embedding + _tower_flops(backbone.visual, patches + 1 + prompts)


def text_flops(backbone: Backbone, tokens: Tensor, prompts: int = 0) -> float:
    """Operations of texts [K, L] under one template, forward: the shared beginning once, no padding."""
    end = backbone.end_positions(tokens)
    start = shared_length(tokens, int(end.min()), prompts)
    return _tower_flops(backbone.text, start) + sum(
        _tower_flops(backbone.text, own, start) for own in (end + 1 - start).tolist()
    )


def _tower_flops(tower: Any, tokens: int, prefix: int = 0) -> float:
    """Operations of so many tokens that attend to each other and to a prefix, last layer whole."""
    blocks = tower.transformer.resblocks
    width, hidden = tower.transformer.width, blocks[0].mlp.c_fc.out_features
    products = 2 * tokens * width * (4 * width + 2 * hidden)
    attention = 4 * tokens * (tokens + prefix) * width
    return float(len(blocks) * (products + attention))
