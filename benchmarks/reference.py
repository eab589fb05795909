"""The plain way of the reference repositories, which ours must equal and is measured against.

One template after the other, every class whole over the full context, open_clip's own blocks with prompts
inserted as MaPLe describes. It shares no code with the package's towers.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from promptprism.prompts import PromptLearner


def plain_text(model: Any, tokens: Tensor, prompts: Tensor | None = None) -> Tensor:
    """Text features [M, K, D] of tokens [K, L] under prompts [M, J, n, Dt], by an open_clip CLIP."""
    text = getattr(model, "text", model)
    dtype = text.transformer.get_cast_dtype()
    features = []
    for template in [None] if prompts is None else prompts.to(dtype):
        x = text.token_embedding(tokens).to(dtype)
        if template is not None:
            n = template.shape[1]
            x = torch.cat([x[:, :1], template[0].expand(len(x), -1, -1), x[:, n + 1 :]], dim=1)
        x = x + text.positional_embedding.to(dtype)
        for layer, block in enumerate(text.transformer.resblocks):
            if template is not None and 0 < layer < len(template):
                x = torch.cat([x[:, :1], template[layer].expand(len(x), -1, -1), x[:, n + 1 :]], dim=1)
            x = block(x, attn_mask=text.attn_mask)
        x = text.ln_final(x)[torch.arange(len(x)), tokens.argmax(-1)]
        features.append(F.normalize((x @ text.text_projection).float(), dim=-1))
    return torch.stack(features)


def plain_image(model: Any, views: Tensor, prompts: Tensor | None = None) -> Tensor:
    """Image features [M, B, D] of views [M or 1, B, 3, H, W] under prompts [M, J, n, Dv]."""
    visual = model.visual
    dtype = visual.transformer.get_cast_dtype()
    templates = len(views) if prompts is None else len(prompts)
    features = []
    for m in range(templates):
        images = views[min(m, len(views) - 1)]
        x = visual.conv1(images.to(dtype)).flatten(2).transpose(1, 2)
        x = torch.cat([visual.class_embedding.to(dtype).expand(len(x), 1, -1), x], dim=1)
        x = x + visual.positional_embedding.to(dtype)
        if prompts is not None:
            n = prompts.shape[2]
            x = torch.cat([x, prompts[m, 0].to(dtype).expand(len(x), -1, -1)], dim=1)
        x = visual.ln_pre(x)
        for layer, block in enumerate(visual.transformer.resblocks):
            if prompts is not None and 0 < layer < prompts.shape[1]:
                x = torch.cat([x[:, :-n], prompts[m, layer].to(dtype).expand(len(x), -1, -1)], dim=1)
            x = block(x)
        features.append(F.normalize((visual.ln_post(x[:, 0]) @ visual.proj).float(), dim=-1))
    return torch.stack(features)


def plain_gradients(
    model: Any, learner: PromptLearner, tokens: Tensor, views: Tensor, labels: Tensor
) -> tuple[Tensor, Tensor]:
    """Accumulate the gradients of MaPLe's cross-entropy, mean over templates, one template at a time.

    Each template's graph is freed before the next is built: the least memory a plain way can do with.

    Returns:
        Text features [M, K, D] and image features [M, B, D].
    """
    texts, images = [], []
    templates = len(learner.context)
    for m in range(templates):
        text_prompts, vision_prompts = learner()
        assert vision_prompts is not None
        text = plain_text(model, tokens, text_prompts[m : m + 1])
        image = plain_image(model, views[min(m, len(views) - 1)].unsqueeze(0), vision_prompts[m : m + 1])
        logits = model.logit_scale.exp() * image[0] @ text[0].T
        (F.cross_entropy(logits, labels) / templates).backward()  # type: ignore[no-untyped-call]
        texts.append(text.detach())
        images.append(image.detach())
    return torch.cat(texts), torch.cat(images)
