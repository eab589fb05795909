"""The vision tower with prompts."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from promptprism.backbones import Backbone
from promptprism.prompts.block import run_block


def encode_image(backbone: Backbone, views: Tensor, prompts: Tensor | None = None) -> Tensor:
    """Image features of B images under M templates, all templates in one forward.

    Args:
        backbone: the frozen model.
        views: [M, B, 3, H, W], one view of each image per template, or [1, B, 3, H, W] if all see the same
            (its patches are then embedded once).
        prompts: [M, J, n, Dv]: the first of the J is appended after the patch tokens, behind the positional
            embedding and before the first layer norm; layers 2..J take the others in place of the last n
            tokens (MaPLe, Khattak et al., CVPR 2023, eqs. 6-7). None is the plain tower.

    Returns:
        Features [M, B, D], float32, L2-normalised.
    """
    visual = backbone.visual
    blocks = visual.transformer.resblocks
    images = views.shape[1]
    patches = visual.conv1(views.flatten(0, 1).to(backbone.dtype)).flatten(2).transpose(1, 2)
    class_token = visual.class_embedding.expand(len(patches), 1, -1)
    x = torch.cat([class_token, patches.float()], dim=1) + visual.positional_embedding
    x = visual.ln_pre(x).unflatten(0, (-1, images))

    depth, n = 0, 0
    if prompts is not None:
        templates, depth, n = prompts.shape[:3]
        appended = visual.ln_pre(prompts[:, 0])[:, None].expand(-1, images, -1, -1)
        x = torch.cat([x.expand(templates, -1, -1, -1), appended], dim=2)
    for layer, block in enumerate(blocks):
        if prompts is not None and 0 < layer < depth:
            replaced = prompts[:, layer, None].expand(-1, images, -1, -1)
            x = torch.cat([x[:, :, :-n], replaced], dim=2)
        # Only the class token is read after the last layer.
        x, _ = run_block(block, x, queries=x[:, :, :1] if layer == len(blocks) - 1 else None)
    feature = visual.ln_post(x.squeeze(2)).to(backbone.dtype) @ visual.proj
    return F.normalize(feature.float(), dim=-1)
