"""The text tower with prompts, computing only what the text feature depends on.

Where the tower is causal and its feature is read at [EOT], what follows an [EOT] is cut, the last layer
answers only there, and the tokens that all classes begin with, prompts included, run once per template: the
classes' own tokens attend to their keys and values. All are exact, in values and gradients. Classes of like
length attend as a group, and all go through the products together; those beyond a memory budget are computed
a second time in the backward pass, not kept for it. Any other tower runs whole contexts, by the same budget.
"""

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from promptprism.backbones import Backbone
from promptprism.backbones.block import (
    KeysValues,
    Run,
    causal_mask,
    keys_values,
    layer_bytes,
    run_block,
    run_packed,
)

#: Fixed, not read from the machine: the order of sums, hence the last digits, depends on it.
TEXT_MEMORY_MB = 2048

# Starting another group costs about as much as this many more tokens in the last one.
_GROUP_COST = 64


class _Group(NamedTuple):
    """Classes that attend together: first, last + 1, and MiB kept of them for the backward pass."""

    first: int
    last: int
    size_mb: float


def encode_text(
    backbone: Backbone,
    tokens: Tensor,
    prompts: Tensor | None = None,
    memory_mb: float = TEXT_MEMORY_MB,
    *,
    insert_at: int | None = None,
    normalize: bool = True,
) -> Tensor:
    """Text features of K tokenised texts under M templates.

    Args:
        backbone: the frozen model.
        tokens: [K, L]; with prompts, the first n words (positions 1..n behind a start token) are placeholders
            that only keep the place.
        prompts: [M, J, n, Dt]: layer 1 takes the first of the J in place of the token embeddings of the first
            n words, layers 2..J take the others in place of the states there (MaPLe, Khattak et al., CVPR
            2023, eqs. 3-5). None is the plain tower, with M = 1.
        memory_mb: about how many MiB may be kept for the backward pass. Classes beyond it are recomputed
            there: memory no longer grows with K, and time by a third of what they take.
        insert_at: a layer (from 0) of a causal tower before which the first prompts are put between the
            start token and the words, the next layers taking the others in their place; there are no
            placeholders then (MMRL, Guo and Gu, CVPR 2025).
        normalize: give the features length 1.

    Returns:
        Features [M, K, D], float32, L2-normalised.
    """

    def run(tokens: Tensor, prompts: Tensor | None, share: float = 1.0) -> Tensor:
        return _encode(backbone, tokens, prompts, memory_mb * share, insert_at)

    ranks = backbone.ranks
    features = ranks.over_texts(run, tokens, prompts) if ranks else run(tokens, prompts)
    return F.normalize(features, dim=-1) if normalize else features


def _encode(
    backbone: Backbone, tokens: Tensor, prompts: Tensor | None, memory_mb: float, insert_at: int | None
) -> Tensor:
    """Features [M, K, D], not normalised."""
    if not backbone.text.causal:
        if insert_at is not None:
            raise ValueError("tokens can be inserted into a causal text tower only")
        return _run_whole(backbone, tokens, prompts, memory_mb)
    templates, n = (1, 0) if prompts is None else (prompts.shape[0], prompts.shape[2])
    n = n if insert_at is None else 0
    first = backbone.first_word
    end = backbone.text.end(tokens)
    first_end = int(end.min())
    if first_end < first + n:
        words = first_end - first
        raise ValueError(f"{n} prompts need {n} placeholder tokens; a text has only {words} tokens")
    start = shared_length(tokens, first_end, slice(first, first + n))
    prefix = _run_prefix(backbone, tokens[0, :start], prompts, insert_at)

    order = end.argsort(stable=True)
    tokens, end = tokens[order, start:], end[order] - start
    features, kept = [], 0.0
    share_mb = memory_mb / 4
    groups = _groups(backbone, (end + 1).tolist(), start, templates, share_mb)
    for share in _shares(groups, share_mb):
        classes = slice(share[0].first, share[-1].last)
        counts = [group.last - group.first for group in share]
        arguments = backbone, tokens[classes], end[classes], counts, start, prefix
        size_mb = sum(group.size_mb for group in share)
        if kept + size_mb <= memory_mb - share_mb:
            kept += size_mb
            features.append(_run_suffixes(*arguments))
        else:
            again = checkpoint(_run_suffixes, *arguments, use_reentrant=False, preserve_rng_state=False)
            features.append(again)
    return torch.cat(features, dim=1)[:, order.argsort()]


def shared_length(tokens: Tensor, first_end: int, placeholders: slice) -> int:
    """How many tokens all texts begin with, placeholders counted as equal, ending before the first [EOT]."""
    same = (tokens[:, :first_end] == tokens[:1, :first_end]).all(0)
    same[placeholders] = True
    return int(same.int().cumprod(0).sum())


def _groups(
    backbone: Backbone, lengths: list[int], start: int, templates: int, limit_mb: float
) -> Iterator[_Group]:
    """Cut ascending lengths into groups that keep at most so many MiB, or have one class."""
    first = 0
    for place in range(1, len(lengths) + 1):
        tokens = templates * (place - first) * lengths[place - 1]
        size = tokens * _kept_bytes(backbone, start + lengths[place - 1]) / 2**20
        if place < len(lengths):
            padding = templates * (place - first) * (lengths[place] - lengths[place - 1])
            following = size * (place - first + 1) / (place - first) * lengths[place] / lengths[place - 1]
            if padding <= _GROUP_COST and following <= limit_mb:
                continue
        yield _Group(first, place, size)
        first = place


def _shares(groups: Iterable[_Group], limit_mb: float) -> Iterator[list[_Group]]:
    """Gather groups in their order into shares that keep at most so many MiB, or have one group."""
    share: list[_Group] = []
    for group in groups:
        if share and sum(each.size_mb for each in share) + group.size_mb > limit_mb:
            yield share
            share = []
        share.append(group)
    yield share


def _kept_bytes(backbone: Backbone, keys: int) -> int:
    """Bytes that autograd keeps of one token over all layers; of the last one a state, keys and values."""
    width, heads, item = backbone.text_width, backbone.text.heads, backbone.dtype.itemsize
    return (backbone.text_layers - 1) * layer_bytes(width, heads, keys, item) + (4 + 2 * item) * width


def _run_prefix(
    backbone: Backbone, tokens: Tensor, prompts: Tensor | None, insert_at: int | None
) -> list[KeysValues]:
    """Keys and values [M, H, P, Dt / H] of the shared tokens [P], and of inserted ones, in every layer."""
    text, first = backbone.text, backbone.first_word
    blocks = text.blocks
    templates, depth, n = (1, 0, 0) if prompts is None else prompts.shape[:3]
    states = text.token_embedding(tokens) + text.positions(0, len(tokens))
    x = states.expand(templates, 1, -1, -1)
    pairs = []
    for layer, block in enumerate(blocks):
        place = layer - (insert_at or 0)
        if prompts is not None and 0 <= place < depth:
            put = prompts[:, place, None]
            if insert_at is None and layer == 0:
                put = put + text.positions(first, first + n)
            kept = first if place == 0 and insert_at is not None else first + n
            x = torch.cat([x[:, :, :first], put, x[:, :, kept:]], dim=2)
        mask = causal_mask(x.shape[2], x.new_empty(0, dtype=backbone.dtype))
        if layer < len(blocks) - 1:
            x, pair = run_block(block, x, mask=mask)
        else:
            pair = keys_values(block, x)
        pairs.append((pair[0][:, :, 0], pair[1][:, :, 0]))
    return pairs


def _run_suffixes(
    backbone: Backbone, tokens: Tensor, end: Tensor, counts: list[int], start: int, prefix: list[KeysValues]
) -> Tensor:
    """Features [M, K, D] of classes by their own tokens [K, S], read at `end` [K], behind a shared prefix.

    The K classes are groups of so many, each as long as its last class.
    """
    text = backbone.text
    blocks = text.blocks
    ends = end.split_with_sizes(counts)
    longest = [int(group[-1]) + 1 for group in ends]
    lengths = end.new_tensor(longest).repeat_interleave(end.new_tensor(counts))
    states = text.token_embedding(tokens[:, : longest[-1]])
    states = states + text.positions(start, start + longest[-1])
    x = states[torch.arange(longest[-1], device=end.device) < lengths[:, None]]
    x = x.expand(len(prefix[0][0]), -1, -1)
    mask = causal_mask(longest[-1], x.new_empty(0, dtype=backbone.dtype))
    shapes = list(zip(counts, longest, strict=True))
    runs = [Run(*shape, mask[: shape[1], : shape[1]]) for shape in shapes]
    for block, pair in zip(blocks[:-1], prefix[:-1], strict=True):
        x, _ = run_packed(block, x, runs, prefix=pair)
    runs = [Run(*shape, mask[group, None, : shape[1]]) for shape, group in zip(shapes, ends, strict=True)]
    at_end = x[:, lengths.cumsum(0) - lengths + end]
    feature, _ = run_packed(blocks[-1], x, runs, queries=at_end, prefix=prefix[-1])
    return text.read(feature)


def _run_whole(backbone: Backbone, tokens: Tensor, prompts: Tensor | None, memory_mb: float) -> Tensor:
    """Features [M, K, D] of whole contexts [K, L], in parts that keep a quarter of the budget or one text."""
    text, first = backbone.text, backbone.first_word

    def run(part: Tensor, own: Tensor | None) -> Tensor:
        return text.run(part, own, first)

    templates = 1
    if prompts is not None:
        templates, n = prompts.shape[0], prompts.shape[2]
        if first + n > tokens.shape[1]:
            raise ValueError(f"{n} prompts do not fit into {tokens.shape[1]} tokens")
        prompts = prompts[:, None].expand(-1, len(tokens), -1, -1, -1).flatten(0, 1)
    rows = tokens.repeat(templates, 1)
    size_mb = text.layers * tokens.shape[1] * layer_bytes(
        text.width, text.heads, tokens.shape[1], backbone.dtype.itemsize
    ) / 2**20  # fmt: skip
    together = max(1, int(memory_mb / 4 / size_mb))
    features, kept = [], 0.0
    for place in range(0, len(rows), together):
        part = slice(place, place + together)
        arguments = rows[part], None if prompts is None else prompts[part]
        kept += len(rows[part]) * size_mb
        if kept <= memory_mb * 3 / 4:
            features.append(run(*arguments))
        else:
            features.append(checkpoint(run, *arguments, use_reentrant=False, preserve_rng_state=False))
    return torch.cat(features).view(templates, len(tokens), -1)
