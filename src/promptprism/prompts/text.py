"""The text tower with prompts, computing only what the text feature depends on.

The tower is causal and its feature is read at [EOT]. So what follows the last [EOT] is cut, the last layer
answers only there, and the tokens that all classes begin with, prompts included, run once per template: the
classes' own tokens attend to their keys and values. All three are exact, in values and gradients.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from promptprism.backbones import Backbone
from promptprism.prompts.block import causal_mask, keys_values, run_block


def encode_text(backbone: Backbone, tokens: Tensor, prompts: Tensor | None = None) -> Tensor:
    """Text features of K tokenised texts under M templates.

    Args:
        backbone: the frozen model.
        tokens: [K, L]; with prompts, positions 1..n hold placeholders that only keep the place.
        prompts: [M, J, n, Dt]: layer 1 takes the first of the J in place of the token embeddings at positions
            1..n, layers 2..J take the others in place of the states there (MaPLe, Khattak et al., CVPR 2023,
            eqs. 3-5). None is the plain tower, with M = 1.

    Returns:
        Features [M, K, D], float32, L2-normalised.
    """
    text = backbone.text
    blocks = text.transformer.resblocks
    templates, depth, n = (1, 0, 0) if prompts is None else prompts.shape[:3]
    end = backbone.end_positions(tokens)
    first_end, last_end = int(end.min()), int(end.max())
    if first_end <= n:
        raise ValueError(f"{n} prompts need {n} placeholder tokens; a text has only {first_end - 1} tokens")
    start = _shared_length(tokens, first_end, n)

    states = text.token_embedding(tokens[:, : last_end + 1]) + text.positional_embedding[: last_end + 1]
    prefix = states[:1, :start].expand(templates, 1, -1, -1)
    suffix = states[:, start:].expand(templates, -1, -1, -1)
    like = suffix.new_empty(0, dtype=backbone.dtype)
    prefix_mask, suffix_mask = causal_mask(start, like), causal_mask(last_end + 1 - start, like)

    for layer, block in enumerate(blocks):
        if prompts is not None and layer < depth:
            inserted = prompts[:, layer, None]
            if layer == 0:
                inserted = inserted + text.positional_embedding[1 : n + 1]
            prefix = torch.cat([prefix[:, :, :1], inserted, prefix[:, :, n + 1 :]], dim=2)
        if layer < len(blocks) - 1:
            prefix, (keys, values) = run_block(block, prefix, mask=prefix_mask)
            suffix, _ = run_block(block, suffix, mask=suffix_mask, prefix=(keys[:, :, 0], values[:, :, 0]))
    keys, values = keys_values(blocks[-1], prefix)
    row = end - start
    feature, _ = run_block(
        blocks[-1],
        suffix,
        queries=suffix[:, torch.arange(len(tokens), device=row.device), row].unsqueeze(2),
        mask=suffix_mask[row].unsqueeze(1),
        prefix=(keys[:, :, 0], values[:, :, 0]),
    )
    feature = text.ln_final(feature.squeeze(2))
    if text.text_projection is not None:
        feature = (feature.to(backbone.dtype) @ text.text_projection).float()
    return F.normalize(feature, dim=-1)


def _shared_length(tokens: Tensor, first_end: int, n: int) -> int:
    """How many tokens all texts begin with, placeholders counted as equal, ending before the first [EOT]."""
    same = (tokens[:, :first_end] == tokens[:1, :first_end]).all(0)
    same[1 : n + 1] = True
    return int(same.int().cumprod(0).sum())
