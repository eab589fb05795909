"""One transformer block on open_clip's weights, for both towers.

Beside what open_clip's own block does, sequences may be of several lengths, queries may be fewer than keys
(the last layer needs one row of its output), and the keys and values of a prefix that many sequences share
may be given once for all of them.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

KeysValues = tuple[Tensor, Tensor]

#: Which thirds of the weight of an attention: queries, keys and values.
_ALL, _QUERIES, _PAIRS = range(3), range(1), range(1, 3)

# On a CPU explicit products beat PyTorch's fused kernel: in bfloat16 always (2-4 times, 39 to 579 keys), in
# float32 up to about this many keys.
_LONGEST_EXPLICIT = 256


class Run(NamedTuple):
    """N sequences of S tokens each, one after the other."""

    sequences: int
    tokens: int
    #: Added to the attention scores, broadcast to [N, Q, S] (0, or -inf for unseen).
    mask: Tensor | None = None


@dataclass(frozen=True, eq=False)
class AdaptedBlock:
    """A frozen `ResidualAttentionBlock` whose queries, keys and values are not those of its weights alone.

    Attributes:
        block: the frozen one.
        attn: what stands in for its attention: `in_proj_weight`, `in_proj_bias`, `num_heads`, `out_proj`.
        update: added to the thirds of queries, keys and values asked for, [M, T, parts D] of [M or 1, T, D].
    """

    block: Any
    attn: Any
    update: Callable[[Tensor, range], Tensor] | None = None

    def __getattr__(self, name: str) -> Any:
        """All else is the frozen block's."""
        if "block" not in self.__dict__:  # while it is unpickled
            raise AttributeError(name)
        return getattr(self.block, name)


def run_block(
    block: Any, x: Tensor, *, queries: Tensor | None = None, mask: Tensor | None = None
) -> tuple[Tensor, KeysValues]:
    """Run one `ResidualAttentionBlock` over M templates of N sequences of one length.

    Args:
        block: the frozen block; the dtype of its matrices decides what the products run in.
        x: states of the sequences, [M, N, S, D], float32; [1, N, S, D] where all share what they are.
        queries: the states whose output is wanted, [M, N, Q, D]; by default `x` itself.
        mask: added to the attention scores, broadcast to [N, Q, S] (0, or -inf for unseen).

    Returns:
        The output [M, N, Q, D], float32, and the keys and values of `x`, [M, H, N, S, D / H] each.
    """
    rows = None if queries is None else queries.flatten(1, 2)
    out, pairs = run_packed(block, x.flatten(1, 2), [Run(x.shape[1], x.shape[2], mask)], queries=rows)
    return out.view(len(out), *(x if queries is None else queries).shape[1:]), pairs[0]


def run_packed(
    block: Any,
    x: Tensor,
    runs: Sequence[Run],
    *,
    queries: Tensor | None = None,
    prefix: KeysValues | None = None,
) -> tuple[Tensor, list[KeysValues]]:
    """Run one block over sequences of several lengths, which all take the same products with the weights.

    Args:
        block: as for `run_block`.
        x: the tokens of all runs, [M, T, D], float32.
        runs: what the T tokens are.
        queries: the states whose output is wanted, as many of every sequence, [M, R, D]; by default `x`.
        prefix: keys and values, [M, H, P, D / H] each, that all sequences of a template attend to in full.

    Returns:
        The output [M, T or R, D], float32, and each run's keys and values, [M, H, N, S, D / H] each.
    """
    shapes = [(run.sequences, run.tokens) for run in runs]
    if queries is None:
        parts = [part.unbind() for part in _project(block, x, _ALL, shapes)]
        queries = x
    else:
        asked = queries.shape[1] // sum(run.sequences for run in runs)
        of_asked = [(run.sequences, asked) for run in runs]
        alone = _project(block, queries, _QUERIES, of_asked)
        pairs = _project(block, x, _PAIRS, shapes)
        parts = [(*query, *pair) for query, pair in zip(alone, pairs, strict=True)]
    attended = [
        _attend(query, keys, values, run.mask, prefix).permute(0, 2, 3, 1, 4).flatten(3).flatten(1, 2)
        for (query, keys, values), run in zip(parts, runs, strict=True)
    ]
    x = queries + block.ls_1(block.attn.out_proj(attended[0] if len(runs) == 1 else torch.cat(attended, 1)))
    hidden = block.mlp.gelu(block.mlp.c_fc(block.ln_2(x).to(block.attn.in_proj_weight.dtype)))
    return x + block.ls_2(block.mlp.c_proj(hidden)), [(keys, values) for _, keys, values in parts]


def layer_bytes(width: int, heads: int, keys: int, item: int) -> int:
    """Bytes that autograd keeps of one token in one block.

    Two float32 states; queries, keys, values and the MLP's four widths in the products' precision, of so many
    bytes an item; and the attention weights, which a prefix makes it keep twice.
    """
    return 8 * width + item * (8 * width + 2 * heads * keys)


def keys_values(block: Any, x: Tensor) -> KeysValues:
    """Only the keys and values of `x` [M, N, S, D] in a block, [M, H, N, S, D / H] each."""
    ((keys, values),) = _project(block, x.flatten(1, 2), _PAIRS, [(x.shape[1], x.shape[2])])
    return keys, values


def _project(block: Any, x: Tensor, thirds: range, shapes: Sequence[tuple[int, int]]) -> list[Tensor]:
    """Some of queries, keys and values of x [M, T, D], cut into runs of N sequences of S tokens and heads.

    Returns:
        Of each run [parts, M, H, N, S, D / H], as many parts as thirds of the weight were wanted.
    """
    attention, width = block.attn, x.shape[-1]
    rows = slice(thirds.start * width, thirds.stop * width)
    weight = attention.in_proj_weight[rows]
    x = block.ln_1(x).to(weight.dtype)
    out = F.linear(x, weight, attention.in_proj_bias[rows])
    if isinstance(block, AdaptedBlock) and block.update is not None:
        out = out + block.update(x, thirds)
    # Cutting costs a copy in the backward pass.
    sizes = [sequences * tokens for sequences, tokens in shapes]
    cut = (out,) if len(shapes) == 1 else out.split_with_sizes(sizes, dim=1)
    heads = len(thirds), attention.num_heads, -1
    return [
        part.view(len(out), *shape, *heads).permute(3, 0, 4, 1, 2, 5).contiguous()
        for part, shape in zip(cut, shapes, strict=True)
    ]


def _attend(
    query: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None, prefix: KeysValues | None
) -> Tensor:
    long = keys.dtype == torch.float32 and keys.shape[-2] > _LONGEST_EXPLICIT
    if prefix is None and (query.is_cuda or long):
        # Four axes, or PyTorch takes its slow kernel.
        q, k, v = (tensor.flatten(0, 1) for tensor in (query, keys, values))
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask).view_as(query)
    query = query * query.shape[-1] ** -0.5
    scores = query @ keys.transpose(-1, -2)
    if mask is not None:
        scores = scores + mask
    if prefix is None:
        return scores.softmax(-1) @ values
    # The prefix is the same for all N sequences, so their queries are rows of one product: no copy of it per
    # sequence. One softmax over both parts keeps the result exact.
    shared_keys, shared_values = prefix
    folded = query.flatten(2, 3) @ shared_keys.transpose(-1, -2)
    weights = torch.cat([folded.view(*scores.shape[:-1], -1), scores], dim=-1).softmax(-1)
    length = shared_keys.shape[-2]
    own = weights[..., length:] @ values
    shared = weights[..., :length].flatten(2, 3) @ shared_values
    return own + shared.view_as(own)


def causal_mask(length: int, like: Tensor) -> Tensor:
    """Additive mask [length, length] that hides what comes later; device and dtype of `like`."""
    return torch.full((length, length), float("-inf"), dtype=like.dtype, device=like.device).triu(1)
