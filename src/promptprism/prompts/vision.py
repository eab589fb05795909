"""The vision tower with prompts."""

import torch
from torch import Tensor
from torch.nn import functional as F

from promptprism.backbones import Backbone

# A CPU is faster on passes whose widest states, the MLP's, stay in its caches: about this much.
_PASS_MB = 24


def encode_image(
    backbone: Backbone,
    views: Tensor,
    prompts: Tensor | None = None,
    first_layer: int = 0,
    pool_prompts: bool = False,
    normalize: bool = True,
    shown: Tensor | None = None,
) -> Tensor:
    """Image features of B images under M templates, all templates in one forward.

    Args:
        backbone: the frozen model.
        views: [M, B, 3, H, W], one view of each image per template, or [1, B, 3, H, W] if all see the same
            (its patches are then embedded once).
        prompts: [M, J, n, Dv]: the first of the J is appended after the patch tokens, behind the positional
            embedding and before the first layer norm; layers 2..J take the others in place of the last n
            tokens (MaPLe, Khattak et al., CVPR 2023, eqs. 6-7). None is the plain tower.
        first_layer: append the first prompts only before this layer (from 0). The layers below are then the
            plain tower's: no gradient goes through them, and templates that share a view share them.
        pool_prompts: where the feature is read from all tokens, as their mean or by attention, read it from
            the prompts too.
        normalize: give the features length 1.
        shown: the patches that each template sees, [M, P] places; the others are dropped behind the
            positional embedding (PatchDropout, Liu et al., WACV 2023). None shows all.

    Returns:
        Features [M, B, D], float32, L2-normalised.
    """

    def run(views: Tensor, prompts: Tensor | None) -> Tensor:
        states = start_image(backbone, views, first_layer, shown)
        return finish_image(backbone, states, prompts, first_layer, pool_prompts, normalize)

    return backbone.ranks.over_images(run, views, prompts) if backbone.ranks else run(views, prompts)


def start_image(
    backbone: Backbone, views: Tensor, first_layer: int = 0, shown: Tensor | None = None
) -> Tensor:
    """States [V, B, S, Dv] of views [V, B, 3, H, W] before a layer (from 0) of the plain tower.

    Of V = M, and of the patches shown, where `shown` is given; see `encode_image`.
    """
    vision, images = backbone.vision, views.flatten(0, 1)
    x = vision.stem(images) if backbone.stems is None else backbone.stems(vision, images)
    x = x.view(*views.shape[:2], *x.shape[1:])
    if shown is not None:
        first = vision.first_patch
        before = torch.arange(first, device=x.device).expand(len(shown), -1)
        kept = torch.cat([before, first + shown.to(x.device)], dim=1)[:, None, :, None]
        x = x.expand(len(shown), -1, -1, -1).gather(2, kept.expand(-1, x.shape[1], -1, x.shape[3]))
    for layer in range(min(first_layer, backbone.vision_layers)):
        x = vision.run(layer, x)
    return x


def finish_image(
    backbone: Backbone,
    x: Tensor,
    prompts: Tensor | None = None,
    first_layer: int = 0,
    pool_prompts: bool = False,
    normalize: bool = True,
) -> Tensor:
    """Features [M, B, D] of what `start_image` gave; arguments as for `encode_image`."""
    vision = backbone.vision
    if prompts is not None and not x.is_cuda:
        together = max(1, int(_PASS_MB * 2**20 / (4 * x[0].numel() * backbone.dtype.itemsize)))
        if together < len(prompts):
            parts = [slice(first, first + together) for first in range(0, len(prompts), together)]
            passes = [(x if len(x) == 1 else x[part], prompts[part]) for part in parts]
            return torch.cat(
                [finish_image(backbone, *each, first_layer, pool_prompts, normalize) for each in passes]
            )
    tokens = x.shape[2]
    x = run_layers(backbone, x, prompts, first_layer)
    if vision.layers and not pool_prompts:
        x = x[:, :, :tokens]
    features = vision.read(x)
    return F.normalize(features, dim=-1) if normalize else features


def run_layers(
    backbone: Backbone, x: Tensor, prompts: Tensor | None, first_layer: int, whole: bool = False
) -> Tensor:
    """States behind the last layer of what `start_image` gave, [M, B, S + n, Dv].

    Args:
        backbone: the frozen model.
        x: the states.
        prompts: as for `encode_image`.
        first_layer: that takes the first of them.
        whole: give all tokens where the class token's state would do.
    """
    vision = backbone.vision
    for layer in range(first_layer, vision.layers):
        place = layer - first_layer
        if prompts is not None and place < prompts.shape[1]:
            inserted = prompts[:, place, None].expand(-1, x.shape[1], -1, -1)
            if place:
                x = x[:, :, : -prompts.shape[2]]
            elif layer == 0:
                inserted = vision.enter(inserted)
            x = torch.cat([x.expand(len(prompts), -1, -1, -1), inserted], dim=2)
        x = vision.run_block(layer, x) if whole else vision.run(layer, x)
    return x
