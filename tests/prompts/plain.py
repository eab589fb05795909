"""The plain way of the reference repositories: all tokens, every class on its own, open_clip's own blocks."""

import torch
from torch.nn import functional as F


def plain_text(backbone, tokens, prompts=None):
    """Text features [M, K, D] of one template after the other, over the full context."""
    text = backbone.text
    features = []
    for template in [None] if prompts is None else prompts:
        x = text.token_embedding(tokens)
        if template is not None:
            n = template.shape[1]
            x = torch.cat([x[:, :1], template[0].expand(len(x), -1, -1), x[:, n + 1 :]], dim=1)
        x = x + text.positional_embedding
        for layer, block in enumerate(text.transformer.resblocks):
            if template is not None and 0 < layer < len(template):
                x = torch.cat([x[:, :1], template[layer].expand(len(x), -1, -1), x[:, n + 1 :]], dim=1)
            x = block(x, attn_mask=text.attn_mask)
        x = text.ln_final(x)[torch.arange(len(x)), backbone.end_positions(tokens)]
        features.append(F.normalize(x @ text.text_projection, dim=-1))
    return torch.stack(features)


def plain_image(backbone, views, prompts=None):
    """Image features [M, B, D] of one template after the other."""
    visual = backbone.visual
    templates = len(views) if prompts is None else len(prompts)
    features = []
    for m in range(templates):
        images = views[min(m, len(views) - 1)]
        x = visual.conv1(images).flatten(2).transpose(1, 2)
        x = torch.cat([visual.class_embedding.expand(len(x), 1, -1), x], dim=1) + visual.positional_embedding
        if prompts is not None:
            n = prompts.shape[2]
            x = torch.cat([x, prompts[m, 0].expand(len(x), -1, -1)], dim=1)
        x = visual.ln_pre(x)
        for layer, block in enumerate(visual.transformer.resblocks):
            if prompts is not None and 0 < layer < prompts.shape[1]:
                x = torch.cat([x[:, :-n], prompts[m, layer].expand(len(x), -1, -1)], dim=1)
            x = block(x)
        features.append(F.normalize(visual.ln_post(x[:, 0]) @ visual.proj, dim=-1))
    return torch.stack(features)
