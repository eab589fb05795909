"""How many floating-point operations a step cannot do without."""

from torch import Tensor

from promptprism.backbones import Backbone, Tower
from promptprism.prompts.text import shared_length


def image_flops(backbone: Backbone, prompts: int = 0, first_layer: int = 0, groups: int = 1) -> float:
    """Operations of one image under one template from the first layer with prompts on, forward.

    35.5e9 for ViT-B/16. Patches may be dealt out to groups, one of which is seen.
    """
    vision, tokens = backbone.vision, _seen(backbone, groups) + prompts
    if not first_layer:
        return vision.stem_flops + _tower_flops(vision, tokens)
    return _tower_flops(vision, tokens, layers=vision.layers - first_layer)


def shared_image_flops(backbone: Backbone, first_layer: int, groups: int = 1) -> float:
    """Operations of one image below the first layer with prompts: nothing goes back through them."""
    if not first_layer:
        return 0.0
    vision = backbone.vision
    return vision.stem_flops + _tower_flops(vision, _seen(backbone, groups), layers=first_layer)


def text_flops(backbone: Backbone, tokens: Tensor, prompts: int = 0) -> float:
    """Operations of texts [K, L] under one template, forward.

    Of a causal tower the shared beginning once and no padding, of any other whole contexts.
    """
    end = backbone.text.end(tokens)
    start = 0
    if backbone.text.causal:
        first = backbone.first_word
        start = shared_length(tokens, int(end.min()), slice(first, first + prompts))
    return _tower_flops(backbone.text, start) + sum(
        _tower_flops(backbone.text, own, start) for own in (end + 1 - start).tolist()
    )


def _seen(backbone: Backbone, groups: int) -> int:
    """Tokens of one image where patches are dealt out to so many groups."""
    vision = backbone.vision
    return vision.first_patch + (vision.tokens - vision.first_patch) // groups


def _tower_flops(tower: Tower, tokens: int, prefix: int = 0, layers: int | None = None) -> float:
    """Operations of so many tokens that attend to each other and to a prefix, last layer whole."""
    products = 2 * tokens * tower.block_weights
    attention = 4 * tokens * (tokens + prefix) * tower.width
    return float((tower.layers if layers is None else layers) * (products + attention))
