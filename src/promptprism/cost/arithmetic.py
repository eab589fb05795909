"""How many floating-point operations a step cannot do without."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from promptprism.backbones import Backbone
from promptprism.prompts.text import shared_length


def image_flops(backbone: Backbone, prompts: int = 0, first_layer: int = 0) -> float:
    """Operations of one image under one template from the first layer with prompts on, forward.

    35.5e9 for ViT-B/16.
    """
    if not first_layer:
        return _embedding_flops(backbone) + _tower_flops(backbone.visual, _image_tokens(backbone) + prompts)
    layers = backbone.vision_layers - first_layer
    return _tower_flops(backbone.visual, _image_tokens(backbone) + prompts, layers=layers)


def shared_image_flops(backbone: Backbone, first_layer: int) -> float:
    """Operations of one image below the first layer with prompts: nothing goes back through them."""
    if not first_layer:
        return 0.0
    below = _tower_flops(backbone.visual, _image_tokens(backbone), layers=first_layer)
    return _embedding_flops(backbone) + below


def text_flops(backbone: Backbone, tokens: Tensor, prompts: int = 0) -> float:
    """Operations of texts [K, L] under one template, forward: the shared beginning once, no padding."""
    end = backbone.end_positions(tokens)
    start = shared_length(tokens, int(end.min()), prompts)
    return _tower_flops(backbone.text, start) + sum(
        _tower_flops(backbone.text, own, start) for own in (end + 1 - start).tolist()
    )


def _image_tokens(backbone: Backbone) -> int:
    """Patches, and the class token."""
    visual = backbone.visual
    rows, columns = (s // size for s, size in zip(visual.image_size, visual.patch_size, strict=True))
    return int(rows * columns) + 1


def _embedding_flops(backbone: Backbone) -> float:
    height, width = backbone.visual.patch_size
    return float(2 * (_image_tokens(backbone) - 1) * 3 * height * width * backbone.vision_width)


def _tower_flops(tower: Any, tokens: int, prefix: int = 0, layers: int | None = None) -> float:
    """Operations of so many tokens that attend to each other and to a prefix, last layer whole."""
    blocks = tower.transformer.resblocks
    width, hidden = tower.transformer.width, blocks[0].mlp.c_fc.out_features
    products = 2 * tokens * width * (4 * width + 2 * hidden)
    attention = 4 * tokens * (tokens + prefix) * width
    return float((layers or len(blocks)) * (products + attention))
